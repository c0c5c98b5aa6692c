"""Advantages of the actions of whole episodes by their final reward, for `ppo` and `inverse`.

    reward of a token    -κ (log π_old - log π_SFT), and at the episode's last token + its score
    advantage            GAE over the tokens the agent wrote, one after another (`methods.losses`)

Observation tokens are no part of that recursion: credit reaches the first action undiminished by
what the environment said in between. All replies of an episode share one forward and backward pass.
With `ppo.baseline` "group" the advantage of every token is the episode's reward less the mean over
the task's episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stepagent.training.config import Config, PpoConfig
from stepagent.training.data import Sample, draw
from stepagent.training.methods import rollouts
from stepagent.training.methods.actor_critic import (
    ActorCritic,
    PolicyOutputs,
    TreeAdvantages,
    whitened,
)
from stepagent.training.methods.losses import generalised_advantages
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.tree import StepTree


def episode_advantages(
    run: TrainingRun, stage: Stage, actor: ActorCritic, entering: Path
) -> list[TreeAdvantages]:
    """The advantages, whitened, of episodes that the policy as it is now plays; figures of them go
    to the stage. `entering` is the policy that the KL is taken to."""
    config = run.config
    samples = draw(run.samples, config.reflection.trajectories, stage.seed)
    groups, left_out = [], 0
    for trajectories in rollouts.play(run, stage, samples):
        usable, lost = rollouts.encode(run, trajectories)
        fitting = [s for s in usable if len(s.encoded.ids) <= config.reflection.max_tree_tokens]
        left_out += lost + len(usable) - len(fitting)
        groups.append(fitting)
    episodes = [sample for group in groups for sample in group]
    rewards = [sample.trajectory.reward for sample in episodes]
    mean = sum(rewards) / max(1, len(rewards))
    stage.figures |= {
        "episodes": float(len(episodes)),
        "episodes_left_out": float(left_out),
        "final_reward": mean,
    }
    same = " (all the same: nothing to learn)" if len(set(rewards)) == 1 else ""
    stage.note(f"{len(episodes)} episodes, mean reward {mean:.3f}{same}, {left_out} left out")
    if not episodes:
        return []
    outputs = processes.share(episodes, lambda s: actor.outputs(_tree(s)))
    with run.policy.as_in(entering):
        reference = processes.share(episodes, lambda s: actor.outputs(_tree(s)).log_probs)
    kl_costs = [
        config.ppo.kl * (now.log_probs - before)
        for now, before in zip(outputs, reference, strict=True)
    ]
    if config.ppo.baseline == "group":
        return whitened(_by_group(groups, outputs, kl_costs))
    rows = zip(episodes, outputs, kl_costs, strict=True)
    return whitened([_by_value(*row, config.ppo) for row in rows])


def check_episodes(config: Config) -> None:
    """Raises ValueError where one episode per task leaves a group baseline nothing to compare."""
    if config.ppo.baseline == "group" and config.rollouts.samples < 2:
        raise ValueError(
            "ppo.baseline is group with rollouts.samples 1: an episode alone in its group has no "
            "advantage over it; take 2 samples or more, or the baseline value"
        )


def _tree(sample: Sample) -> StepTree:
    return StepTree(tuple(sample.encoded.ids), tuple(sample.encoded.replies))


def token_rewards(reward: float, kl_costs: Tensor) -> Tensor:
    """float32 [T]: the KL's cost at each token the agent wrote, the episode's reward at the last.

    >>> token_rewards(1.0, torch.tensor([0.5, 0.0, 0.25])).tolist()
    [-0.5, -0.0, 0.75]
    """
    rewards = -kl_costs.clone()
    rewards[-1] += reward
    return rewards


def _by_value(
    sample: Sample, outputs: PolicyOutputs, kl_costs: Tensor, config: PpoConfig
) -> TreeAdvantages:
    """Advantages by GAE over the value head's estimates."""
    rewards = token_rewards(sample.trajectory.reward, kl_costs)
    advantages = generalised_advantages(rewards, outputs.values, config.gamma, config.lam)
    return _of_episode(sample, outputs, advantages, advantages + outputs.values)


def _by_group(
    groups: Sequence[Sequence[Sample]],
    outputs: Sequence[PolicyOutputs],
    kl_costs: Sequence[Tensor],
) -> list[TreeAdvantages]:
    """Advantages over the mean of the task's episodes, the KL's cost subtracted."""
    items, rows = [], iter(zip(outputs, kl_costs, strict=True))
    for group in groups:
        group_rows = [next(rows) for _ in group]
        totals = [
            sample.trajectory.reward - float(costs.sum())
            for sample, (_, costs) in zip(group, group_rows, strict=True)
        ]
        mean = sum(totals) / max(1, len(totals))
        for sample, (policy, _), total in zip(group, group_rows, totals, strict=True):
            advantages = torch.full_like(policy.log_probs, total - mean)
            items.append(_of_episode(sample, policy, advantages, torch.zeros_like(advantages)))
    return items


def _of_episode(
    sample: Sample, outputs: PolicyOutputs, advantages: Tensor, returns: Tensor
) -> TreeAdvantages:
    ones = torch.ones_like(advantages)
    return TreeAdvantages(
        tree=_tree(sample),
        actions=float(len(sample.encoded.replies)),
        weights=ones,
        old_log_probs=outputs.log_probs,
        advantages=advantages,
        returns=returns,
        value_weights=ones,
    )
