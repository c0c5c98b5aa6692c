"""The schedule of a stage's updates: which items each one learns from.

A schedule is a function of the seed alone, so a run that was killed and started again makes the
same updates in the same order and ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from stepagent.training.config import OptimiserConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Schedule(Generic[Item]):
    """The updates of a stage, in order."""

    updates: Sequence[Sequence[Item]]
    """For each update the items it learns from (never empty)."""
    size: Callable[[Item], float]
    """How many samples an item counts for; an update's loss is the mean over its samples."""
    until: Callable[[int, dict[str, float]], bool] | None = None
    """(updates done, figures of the last) → True to end the stage early."""


def shuffled(
    items: Sequence[Item],
    size: Callable[[Item], float],
    config: OptimiserConfig,
    seed: int,
    salt: Sequence[int] = (),
) -> Schedule[Item]:
    """Every item once per epoch, each epoch in a new order, in updates of `config.batch_size`
    samples or a little more (`batches`). `salt` gives other orders for the same seed."""
    updates = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch, *salt]).permutation(len(items))
        updates += batches([items[i] for i in order], config.batch_size, size)
    return Schedule(updates, size)


def batches(
    items: Sequence[Item], batch_size: int, size: Callable[[Item], float]
) -> list[list[Item]]:
    """Cuts a sequence into updates of at least `batch_size` samples (the last may have fewer)."""
    updates: list[list[Item]] = [[]]
    samples = 0.0
    for item in items:
        if samples >= batch_size:
            updates.append([])
            samples = 0.0
        updates[-1].append(item)
        samples += size(item)
    return [update for update in updates if update]
