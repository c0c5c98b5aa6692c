"""Practice that an earlier start has written: it is read for the trajectories that it is of."""

from __future__ import annotations

import pytest

from stepagent.agents.chat import Encoded
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.config import ReflectionConfig
from stepagent.training.data import Sample
from stepagent.training.methods.practice import practise, practise_each
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.stage import Stage
from stepagent.training.trees import sampling

CONFIG = ReflectionConfig(practice=2, equal="tokens")


def sample(task_id: str, seed: int = 0, states: int = 2) -> Sample:
    trajectory = Trajectory("e", task_id, "train", "expert", seed, (Step("o", "", "a"),) * states)
    replies = [(4 * i + 2, 4 * i + 4) for i in range(states)]
    return Sample(trajectory, Encoded(list(range(5, 5 + 4 * states)), replies))


@pytest.fixture
def stage(tmp_path):
    return Stage("iteration-1", RunDirectory(tmp_path, ""))


@pytest.mark.parametrize(
    "other",
    [sample("t/3"), sample("t/2", seed=1), sample("t/2", states=1)],
    ids=["task", "seed", "states"],
)
def test_practice_of_other_trajectories_is_refused(policy, stage, other):
    samples = [sample("t/1"), sample("t/2")]
    practised = practise(stage, policy, samples, CONFIG)
    assert practise(stage, policy, samples, CONFIG) == practised
    with pytest.raises(DamagedState, match=r"practice/iteration-1\.jsonl .*another `output`"):
        practise(stage, policy, [samples[0], other], CONFIG)
    with pytest.raises(DamagedState):  # before what is missing is drawn
        practise(stage, None, [samples[0], other, sample("t/4")], CONFIG)
    each = practise_each(stage, policy, [samples[0], other], CONFIG)
    assert next(each) == (0, practised[0])
    with pytest.raises(DamagedState):
        next(each)


@pytest.mark.parametrize("left", range(6))
def test_practice_goes_on_in_the_same_company(policy, stage, left, monkeypatch):
    """Trajectories that are decoded together stay together when a run is killed between their
    lines: rows of a batch differ in their last digits with its shape."""
    samples, shapes = [sample(f"t/{i}", states=1 + i % 3) for i in range(6)], []
    monkeypatch.setattr(sampling, "MAX_ROWS", 8)
    decode = sampling._decode
    monkeypatch.setattr(
        sampling, "_decode", lambda *args: shapes.append(len(args[2])) or decode(*args)
    )
    practised = practise(stage, policy, samples, CONFIG)
    assert shapes == [6, 8, 4, 6]
    path = stage.directory.path / "practice" / "iteration-1.jsonl"
    written = path.read_bytes()
    shapes.clear()
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:left]))
    assert practise(stage, policy, samples, CONFIG) == practised
    assert path.read_bytes() == written
    assert shapes == [6, 8, 4, 6][[0, 0, 1, 1, 2, 3][left] :]
