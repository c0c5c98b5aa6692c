"""Means over seeds with their intervals.

A 95 % interval is Student's t over the seeds' scores: it is about new seeds on the same test tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in percent."""

    mean: float
    half_width: float
    """Half of the 95 % interval; NaN for one seed"""
    values: tuple[float, ...]
    """One per seed"""

    def __str__(self) -> str:
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.1f}"
        return f"{self.mean:.1f}{spread} (n={len(self.values)})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of scores in percent; None where there is none.

    >>> print(estimate([50.0, 52.0, 54.0]))
    52.0 ± 5.0 (n=3)
    """
    n = len(values)
    if not n:
        return None
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    t = _T[n - 2] if n - 2 < len(_T) else 1.96
    return Estimate(mean, t * deviation / math.sqrt(n), tuple(values))


def estimates(values: Mapping[int, Sequence[float]]) -> dict[int, Estimate]:
    """For each x with a value, in order."""
    return {x: result for x, v in sorted(values.items()) if (result := estimate(v))}
