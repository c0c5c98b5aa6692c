"""The benchmark of GRPO: both of its sides do the same, TRL's by a trainer of its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.benchmarks.grpo import Trl, _equality, with_shared_steps
from stepagent.training.trees.compat import enable_step_trees
from tests.training.toys import random_tree


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_trls_trainer(policy, checkpointing):
    first = random_tree(4, 3, [])
    start, end = first.replies[1]
    trees = [first]
    for at, shorter in ((start, 0), (end - 1, 1), (end + 1, 0)):
        other = random_tree(5 + at, 8, []).ids
        tree = replace(first, ids=(*first.ids[:at], *other[: len(first.ids) - at]))
        replies = tree.replies[: len(tree.replies) - shorter]
        trees.append(replace(tree, ids=tree.ids[: replies[-1][1]], replies=replies))
    trl = Trl(SimpleNamespace(model=policy.model, tokenizer=policy.tokenizer), 3, checkpointing)
    enable_step_trees(policy.model)
    loss, gradient = _equality(policy.model, trl, trees)
    assert loss.ours == pytest.approx(loss.baseline, abs=1e-5)
    assert abs(loss.ours) > 1e-3
    assert gradient.ours < 1e-4


def test_rollouts_share_their_first_steps_and_part_after_them():
    steps = [tuple(Step(f"{n} {i}", "", f"go {i}") for i in range(4)) for n in range(3)]
    trajectories = [
        Trajectory("toy", f"t/{n}", "train", "expert", 0, of) for n, of in enumerate(steps)
    ]
    rollouts = with_shared_steps(trajectories, 2)
    for number, rollout in enumerate(rollouts):
        assert rollout.steps[:2] == trajectories[0].steps[:2]
        assert rollout.steps[3:] == trajectories[number].steps[3:]
    assert len({rollout.steps[2].thought for rollout in rollouts}) == 3
    shorter = with_shared_steps(trajectories, 2, spread=1)
    assert [len(rollout.steps) for rollout in shorter] == [4, 3, 4]
