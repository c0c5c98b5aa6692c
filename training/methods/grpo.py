"""GRPO: group relative policy optimisation on whole episodes (Shao et al., 2024).

In each iteration the policy plays every task of the expert's trajectories `rollouts.samples` times.
An episode's advantage is its score less the group's mean, over the group's standard deviation; no
value head is needed. With `group.reward` "step" (process supervision) the rewards of all steps of a
group are normalised together, and a turn's advantage is the sum of those from it on:

    final   A_i,t = (R_i - mean R) / std R
    step    A_i,t = Σ_{k ≥ t} (r_i,k - mean r) / std r

`methods.group_policy` has the loss. Settings of the updates are those of `reflection`; a batch
counts episodes.

Deviations: an update takes complete groups, not episodes drawn one by one, because that is what
makes them share a pass. Groups whose episodes all scored alike have no advantage and are left out,
KL and all. `group.scale` "none" leaves out the division by the standard deviation, which weighs
tasks by how rarely they differ (Liu et al., 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepagent.envs.trajectory import Trajectory
from stepagent.training.config import GroupConfig
from stepagent.training.methods import Method
from stepagent.training.methods.group_policy import (
    GROUP,
    check_groups,
    episode_advantages,
    learn_in_groups,
    normalised,
)
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times episodes in groups and updates."""
    learn_in_groups(run, advantages)


def advantages(group: Sequence[Trajectory], config: GroupConfig) -> list[Tensor]:
    """float32 [turns] of each episode of a task."""
    if config.reward == "final" or not group:
        return episode_advantages(group, config)
    rewards = torch.tensor([step.reward for t in group for step in t.steps])
    steps = normalised(rewards, config.scale).split([len(t.steps) for t in group])
    return [row.flip(0).cumsum(0).flip(0) for row in steps]


METHOD = Method(
    learn, check_groups, stages=lambda config: config.reflection.iterations, episodes=GROUP
)
