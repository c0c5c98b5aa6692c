"""Which options of two starts of a run differ."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from stepagent.training.config import Config
from stepagent.training.runs.options import differing


def text(samples: int | None) -> str:
    config = Config(output="runs/one")
    config.rollouts.samples = samples
    return yaml.safe_dump(dataclasses.asdict(config))


@pytest.mark.parametrize(("old", "new", "differs"), [(1, None, False), (None, 1, False),
                         (1, 1, False), (2, None, True), (None, 8, True)])  # fmt: skip
def test_one_episode_per_task_was_the_default(
    old: int | None, new: int | None, differs: bool
) -> None:
    """Runs of earlier versions, whose files say 1 where nothing was set, can be resumed."""
    assert bool(differing(text(old), text(new))) == differs
