"""GiGPO: group-in-group policy optimisation (Feng et al., 2025).

As GRPO, with groups of steps inside the groups of episodes. Episodes of one task meet again in the
same states; the steps taken in one such state are compared with each other by the discounted reward
that followed:

    A_i,t = A_i + ω A_S(i, t)
    A_i   = (R_i - mean R) / std R                     over the task's episodes
    G_i,t = Σ_{k ≥ t} γ^(k-t) r_i,k
    A_S   = (G_i,t - mean G) / std G                   over all steps of the task in the same state

A state is recognised by its observation, as in the paper, so two ways to the same sight are one
state. A state that no other step was taken in has A_S = 0. `methods.group_policy` has the loss;
settings of the updates are those of `reflection`, a batch counts episodes.

Deviations: an update takes complete groups, and groups without any advantage are left out, KL and
all, as in `grpo`.
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
    of_episodes = episode_advantages(group, config)
    of_steps = step_advantages(group, config)
    return [a + config.step_weight * s for a, s in zip(of_episodes, of_steps, strict=True)]


def step_advantages(group: Sequence[Trajectory], config: GroupConfig) -> list[Tensor]:
    """A_S, float32 [turns] of each episode."""
    states: dict[str, list[tuple[int, int]]] = {}
    for i, trajectory in enumerate(group):
        for t, step in enumerate(trajectory.steps):
            states.setdefault(step.observation, []).append((i, t))
    returns = [returns_of(trajectory, config.gamma) for trajectory in group]
    out = [torch.zeros(len(trajectory.steps)) for trajectory in group]
    for places in states.values():
        values = torch.stack([returns[i][t] for i, t in places])
        for (i, t), value in zip(places, normalised(values, config.scale), strict=True):
            out[i][t] = value
    return out


def returns_of(trajectory: Trajectory, gamma: float) -> Tensor:
    """G, float32 [turns]: the discounted rewards from each turn on."""
    values = torch.zeros(len(trajectory.steps))
    following = 0.0
    for t in range(len(trajectory.steps) - 1, -1, -1):
        following = trajectory.steps[t].reward + gamma * following
        values[t] = following
    return values


METHOD = Method(
    learn, check_groups, stages=lambda config: config.reflection.iterations, episodes=GROUP
)
