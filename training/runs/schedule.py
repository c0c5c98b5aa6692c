"""The schedule of a stage's updates: which items each one learns from.

A schedule is a function of the seed alone, so a run that was killed and started again makes the
same updates in the same order and ends with the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from stepagent.training.config import OptimiserConfig, ReflectionConfig
from stepagent.training.runs import processes

Item = TypeVar("Item")


@dataclass(frozen=True)
class Schedule(Generic[Item]):
    """The updates of a stage, in order."""

    updates: Sequence[Sequence[Item]]
    """For each update the items it learns from (never empty)."""
    size: Callable[[Item], float]
    """How many samples an item counts for; an update's loss is the mean over its samples."""
    until: Callable[[int, dict[str, float]], bool] | None = None
    """(updates done, `Position.recent`) → True to end the stage early."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Name of a part of the model → its own peak learning rate; its gradient is also clipped by
    itself."""
    per: Mapping[str, str] = field(default_factory=dict)
    """Name of a figure that is no mean over samples → the figure that counts what it is a mean
    over. Of an update that has none of it, it is not logged."""


def shuffled(
    items: Sequence[Item],
    size: Callable[[Item], float],
    config: OptimiserConfig,
    seed: int,
    salt: Sequence[int] = (),
) -> Schedule[Item]:
    """Every item once per epoch, each epoch in a new order, in updates of `config.batch_size`
    samples or a little more (`batches`). `salt` gives other orders for the same seed. With
    `updates` of `ReflectionConfig` as many epochs as it takes, the last one cut short."""

    def one_pass(epoch: int) -> list[list[Item]]:
        order = np.random.default_rng([seed, epoch, *salt]).permutation(len(items))
        return batches([items[i] for i in order], config.batch_size, size)

    exactly = config.updates if isinstance(config, ReflectionConfig) and items else 0
    epochs = itertools.count() if exactly else range(config.epochs)
    updates = itertools.chain.from_iterable(map(one_pass, epochs))
    return Schedule(list(itertools.islice(updates, exactly or None)), size)


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


def packed(
    schedule: Schedule[Item], length: Callable[[Item], int], budget: int
) -> Schedule[tuple[Item, ...]]:
    """The same updates, neighbours in groups of at most `budget` tokens, each for one forward pass.

    `length` is an item's number of tokens; a longer item than the budget is a group of its own. An
    update that several processes share has a group for each of them, where it has the items.
    """
    return Schedule(
        [_groups(update, length, budget) for update in schedule.updates],
        lambda group: sum(schedule.size(item) for item in group),
        schedule.until,
        schedule.rates,
    )


def _groups(
    items: Sequence[Item], length: Callable[[Item], int], budget: int
) -> list[tuple[Item, ...]]:
    share = -(-sum(length(item) for item in items) // processes.count())
    groups: list[list[Item]] = [[]]
    tokens = 0
    for item in items:
        if groups[-1] and tokens + length(item) > min(budget, share):
            groups.append([])
            tokens = 0
        groups[-1].append(item)
        tokens += length(item)
    return [tuple(group) for group in groups]
