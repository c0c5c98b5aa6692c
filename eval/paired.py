"""Two runs on the same tasks: the mean difference, its interval, and whether it could be chance.

Pairing removes what both runs share, the difficulty of the tasks, so that far fewer tasks show a
difference than two independent means would need. The interval is a percentile bootstrap over tasks,
as for a mean; the p-value comes from a sign-flip permutation test: if both runs were equally good,
each task's difference could just as well have the opposite sign. If at most 12 tasks differ, all
sign patterns are enumerated, else 10,000 are drawn (seeded, so the same results give the same p).
Several comparisons are corrected together by Holm's method (Holm, 1979): the probability that any
of them is wrongly called significant stays at 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from stepagent.eval.summary import RESAMPLES, bootstrap

_EXACT = 12
"""Up to 2^12 sign patterns are enumerated."""


@dataclass(frozen=True)
class Paired:
    """Second minus first, over the tasks that both have."""

    tasks: int
    mean: float
    low: float
    high: float
    p: float
    """Two-sided; 1 if no task differs"""
    better: int
    """Tasks on which the second is better"""
    worse: int


def paired(first: Mapping[str, float], second: Mapping[str, float]) -> Paired | None:
    """Compares task → score of two runs; None if they share no task.

    >>> paired({"a": 0.0, "b": 0.5}, {"a": 1.0, "b": 0.5, "c": 1.0})
    Paired(tasks=2, mean=0.5, low=0.0, high=1.0, p=1.0, better=1, worse=0)
    """
    tasks = sorted(first.keys() & second.keys())
    if not tasks:
        return None
    gains = np.array([second[task] - first[task] for task in tasks])
    gains[np.abs(gains) < 1e-12] = 0.0  # sums of rewards that differ only by rounding
    low, high = bootstrap(gains.tolist())
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return Paired(len(tasks), float(gains.mean()), low, high, sign_flip(gains), better, worse)


def sign_flip(gains: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the mean of `gains` under sign flips.

    >>> sign_flip([1.0, 1.0, 1.0])  # of 8 sign patterns 2 are as far from 0
    0.25
    """
    differing = np.abs([g for g in gains if g != 0])
    n = len(differing)
    if not n:
        return 1.0
    seen = abs(float(np.sum(gains))) - 1e-9
    if n <= _EXACT:
        patterns = 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) - 1
        return float(np.mean(np.abs(patterns @ differing) >= seen))
    rng, beyond = np.random.default_rng(seed), 0
    block = max(1, 2_000_000 // n)  # patterns at a time: at most 16 MB
    for done in range(0, RESAMPLES, block):
        size = (min(block, RESAMPLES - done), n)
        signs = 2.0 * rng.integers(2, size=size, dtype=np.int8) - 1.0
        beyond += int((np.abs(signs @ differing) >= seen).sum())
    return (beyond + 1) / (RESAMPLES + 1)  # the observed pattern is one of them


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `ps`.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = most
    return adjusted


LEVEL, POWER = 0.05, 0.8


def detectable(error: float, comparisons: int = 1) -> float:
    """The smallest true difference that is called significant with a probability of 80 %, at a
    level of 5 % over all m comparisons (Bonferroni): (z(1 - 0.05 / 2m) + z(0.8)) · standard error.

    >>> round(detectable(0.2 / 740**0.5), 3)  # a spread of 0.2 per task, 740 tasks
    0.021
    """
    normal = NormalDist()
    level = LEVEL / (2 * max(1, comparisons))
    return (normal.inv_cdf(1 - level) + normal.inv_cdf(POWER)) * error
