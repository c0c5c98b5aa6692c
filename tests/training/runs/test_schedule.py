"""Schedules: how many updates, and of what."""

from __future__ import annotations

import pytest

from stepagent.training.config import OptimiserConfig, ReflectionConfig
from stepagent.training.runs.schedule import shuffled


def one(item: int) -> float:
    return 1.0


def test_every_item_once_per_epoch() -> None:
    updates = shuffled(range(5), one, OptimiserConfig(batch_size=2, epochs=2), seed=1).updates
    assert [len(update) for update in updates] == [2, 2, 1] * 2
    for epoch in (updates[:3], updates[3:]):
        assert sorted(item for update in epoch for item in update) == list(range(5))
    assert updates[:3] != updates[3:]


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_as_many_updates_as_the_configuration_says(count: int) -> None:
    config = ReflectionConfig(batch_size=2, epochs=4)
    in_epochs = shuffled(range(5), one, config, seed=1).updates
    config.updates = count
    updates = shuffled(range(5), one, config, seed=1).updates
    assert len(updates) == count
    assert updates == in_epochs[:count]


def test_nothing_is_no_update() -> None:
    assert shuffled([], one, ReflectionConfig(updates=3), seed=1).updates == []
