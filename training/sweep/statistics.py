"""Means over seeds, paired gains over seeds and tasks, and correlations, with their intervals.

The 95 % interval of a mean is Student's t over the seeds' scores: it is about new seeds on the same
test tasks. Two seeds are shown as they are. That of a gain is a percentile bootstrap which draws
seeds and tasks, both with replacement and independently (the pigeonhole bootstrap; Owen, 2007),
from the differences of two rows on the same seed and task: it is about new seeds on new tasks. Its
variance counts the noise of single episodes too often, and that between n seeds as (n - 1) / n;
with fewer than `FEW_SEEDS` the latter wins where seeds differ, and the interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepagent.eval.paired import detectable
from stepagent.eval.summary import RESAMPLES, resamples

FEW_SEEDS = 5
"""With fewer, intervals of gains say little about other seeds, and reports say so."""
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""
_Z = 1.959964
"""That of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in percent."""

    mean: float
    half_width: float
    """Half of the 95 % interval; NaN for one or two seeds, which say too little about others"""
    values: tuple[float, ...]
    """One per seed"""

    def __str__(self) -> str:
        n = len(self.values)
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.1f}"
        both = ": {:.1f}, {:.1f}".format(*self.values) if n == 2 else ""
        return f"{self.mean:.1f}{spread} (n={n}{both})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of scores in percent; None where there is none.

    >>> print(estimate([50.0, 52.0, 54.0]))
    52.0 ± 5.0 (n=3)
    >>> print(estimate([50.0, 53.0]))
    51.5 (n=2: 50.0, 53.0)
    """
    n = len(values)
    if not n:
        return None
    mean = sum(values) / n
    if n <= 2:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return Estimate(mean, student_t(n - 1) * deviation / math.sqrt(n), tuple(values))


def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's t; beyond the table by Cornish and Fisher's expansion
    (Abramowitz and Stegun, 26.7.5).

    >>> round(student_t(20), 3)
    2.086
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    terms = (
        _Z,
        (_Z**3 + _Z) / 4,
        (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
        (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def estimates(values: Mapping[int, Sequence[float]]) -> dict[int, Estimate]:
    """For each x with a value, in order."""
    return {x: result for x, v in sorted(values.items()) if (result := estimate(v))}


@dataclass(frozen=True)
class Gain:
    """One row minus another, in the unit of the values."""

    mean: float
    low: float
    high: float
    """95 % interval"""
    p: float
    """Two-sided, by the bootstrap; not corrected"""
    error: float
    """Standard error of the mean"""
    by_seed: tuple[float, ...]
    tasks: int

    def detectable(self, comparisons: int = 1) -> float:
        """The smallest true gain that a table with these errors calls significant with a
        probability of 80 %, at a level of 5 % over all its comparisons (Bonferroni)."""
        return detectable(self.error, comparisons)


def gain(
    differences: Sequence[Sequence[float]], weights: Sequence[float] | None = None
) -> Gain | None:
    """Bootstrap of Σ differences / Σ weights over seeds and tasks.

    Parameters
    ----------
    differences: [seeds, tasks], the second row's value minus the first's on the same seed and task.
    weights: [tasks], for how many values each of them stands, such as steps; one by default.

    None without a seed or a task.

    >>> gain([[0.0, 1.0]]).mean, gain([[0.5, 0.5], [0.5, 0.5]]).low
    (0.5, 0.5)
    """
    table = np.array(differences, dtype=float)
    if not table.size:
        return None
    seeds, tasks = table.shape
    weight = np.ones(tasks) if weights is None else np.array(weights, dtype=float)
    of_seeds = np.concatenate([_counts(block, seeds) for block in resamples(seeds, seed=0)])
    means, done = np.empty(RESAMPLES), 0
    for block in resamples(tasks, seed=1):
        of_tasks, rows = _counts(block, tasks), slice(done, done + len(block))
        sums = ((of_seeds[rows] @ table) * of_tasks).sum(axis=1)
        means[rows] = sums / (seeds * (of_tasks @ weight))
        done += len(block)
    low, high = np.percentile(means, [2.5, 97.5])
    side = min(int((means <= 1e-12).sum()), int((means >= -1e-12).sum()))
    return Gain(
        mean=float(table.sum() / (seeds * weight.sum())),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (side + 1) / (RESAMPLES + 1)),
        error=float(means.std()),
        by_seed=tuple((table.sum(axis=1) / weight.sum()).tolist()),
        tasks=tasks,
    )


def _counts(drawn: np.ndarray, n: int) -> np.ndarray:
    """[block, n]: how often each of n items was drawn, of indices [block, n]."""
    rows = np.arange(len(drawn))[:, None] * n
    return np.bincount((drawn + rows).ravel(), minlength=drawn.size).reshape(drawn.shape)


@dataclass(frozen=True)
class Correlation:
    """Of two figures over policies, with 95 % bootstrap intervals over the policies."""

    pearson: float
    pearson_ci95: tuple[float, float]
    spearman: float
    spearman_ci95: tuple[float, float]
    policies: int


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Pearson's and Spearman's; None for fewer than three policies, or for a constant figure.

    >>> round(correlation([1, 2, 3, 4], [1, 4, 9, 16]).spearman, 6)
    1.0
    """
    points = np.array([x, y], dtype=float)
    if points.shape[1] < 3 or (np.ptp(points, axis=1) == 0).any():
        return None
    samples = np.concatenate([points[:, block].swapaxes(0, 1) for block in resamples(len(x))])
    pearson, pearson_ci95 = _with_interval(points[None], samples)
    spearman, spearman_ci95 = _with_interval(_ranks(points[None]), _ranks(samples))
    return Correlation(pearson, pearson_ci95, spearman, spearman_ci95, policies=len(x))


def _with_interval(values: np.ndarray, drawn: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Pearson's of values [1, 2, policies], with an interval from those of `drawn`, [n, …]."""
    over = _pearson(drawn)
    low, high = np.percentile(over[np.isfinite(over)], [2.5, 97.5])
    return float(_pearson(values)[0]), (float(low), float(high))


def _pearson(points: np.ndarray) -> np.ndarray:
    """[n] of points [n, 2, policies]; NaN where a figure is constant."""
    centred = points - points.mean(axis=2, keepdims=True)
    x, y = centred[:, 0], centred[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))


def _ranks(points: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, from 0; equal values share the mean of theirs.

    >>> _ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [1.5, 0.0, 1.5]
    """
    order = points.argsort(axis=-1)
    ordered = np.take_along_axis(points, order, axis=-1)
    place = np.broadcast_to(np.arange(points.shape[-1]), points.shape)
    edge = np.ones((*points.shape[:-1], 1), dtype=bool)
    differs = ordered[..., 1:] != ordered[..., :-1]
    starts, ends = np.concatenate([edge, differs], -1), np.concatenate([differs, edge], -1)
    first = np.maximum.accumulate(np.where(starts, place, 0), axis=-1)
    last = np.minimum.accumulate(np.where(ends, place, len(place.T))[..., ::-1], -1)[..., ::-1]
    ranks = np.empty(points.shape)
    np.put_along_axis(ranks, order, (first + last) / 2, axis=-1)
    return ranks
