"""Advantages of the actions of whole episodes by their final reward, for `ppo` and `inverse`.

    reward of a turn     -κ Σ (log π_old - log π_SFT) over its tokens, in the last turn + the score
    value of a turn      the value head's estimate in its state, before its first token
    advantage            GAE over turns (`methods.losses`); all tokens of a turn have the turn's

Over tokens (`ppo.credit` "token") each of them would cost a factor γ λ: at λ = 0.95 the first of
three turns of 50 tokens would get 0.95¹⁰⁰ of a final reward, 0.6 %, instead of 90 %. Observation
tokens are no part of either recursion. All replies of an episode share one forward and backward
pass. With `ppo.baseline` "group" the advantage of every token is the episode's reward less the mean
over the task's episodes.

A new value head says 0 everywhere. It is therefore warmed up (`ppo.critic_warmup`) on the rewards
to come, λ = 1, before the first advantages are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from stepagent.training.config import Config, PpoConfig
from stepagent.training.data import Sample
from stepagent.training.methods import find, rollouts
from stepagent.training.methods.actor_critic import (
    ActorCritic,
    PolicyOutputs,
    TreeAdvantages,
    normalised,
    warm_up,
)
from stepagent.training.methods.losses import generalised_advantages, turn_advantages
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.tree import StepTree


def episode_advantages(
    run: TrainingRun, stage: Stage, actor: ActorCritic, entering: Path
) -> list[TreeAdvantages]:
    """The advantages, normalised, of episodes that the policy as it is now plays; figures of them
    go to the stage. `entering` is the policy that the KL is taken to."""
    config = run.config
    groups = rollouts.fitting(run, stage)
    episodes = [sample for group in groups for sample in group]
    rewards = {sample.trajectory.reward for sample in episodes}
    same = " (all the same: nothing to learn)" if len(rewards) == 1 else ""
    stage.note(
        f"{len(episodes)} episodes, mean reward {stage.figures['final_reward']:.3f}{same}, "
        f"{stage.figures['episodes_left_out']:.0f} left out"
    )
    if not episodes:
        return []
    trees = [StepTree.of(sample.encoded) for sample in episodes]
    outputs = processes.share(trees, actor.outputs)
    with run.policy.as_in(entering):
        reference = processes.share(trees, lambda tree: actor.outputs(tree).log_probs)
    kl_costs = [
        config.ppo.kl * (now.log_probs - before)
        for now, before in zip(outputs, reference, strict=True)
    ]
    if config.ppo.baseline == "group":
        return normalised(_by_group(groups, outputs, kl_costs), config.ppo)
    if actor.is_new and config.ppo.critic_warmup:
        undiscounted = replace(config.ppo, lam=1.0)
        rows = zip(episodes, outputs, kl_costs, strict=True)
        warm_up(stage, actor, [by_value(*row, undiscounted) for row in rows], config)
        outputs = processes.share(trees, actor.outputs)
    rows = zip(episodes, outputs, kl_costs, strict=True)
    return normalised([by_value(*row, config.ppo) for row in rows], config.ppo)


def check_episodes(config: Config) -> None:
    """Raises ValueError where one episode per task leaves a group baseline nothing to compare."""
    if config.ppo.baseline == "group" and find(config.method).samples(config) < 2:
        raise ValueError(
            "ppo.baseline is group with rollouts.samples 1: an episode alone in its group has no "
            "advantage over it; take 2 samples or more, or the baseline value"
        )


def token_rewards(reward: float, kl_costs: Tensor) -> Tensor:
    """float32 [T]: the KL's cost at each token the agent wrote, the episode's reward at the last.

    >>> token_rewards(1.0, torch.tensor([0.5, 0.0, 0.25])).tolist()
    [-0.5, -0.0, 0.75]
    """
    rewards = -kl_costs.clone()
    rewards[-1] += reward
    return rewards


def by_value(
    sample: Sample, outputs: PolicyOutputs, kl_costs: Tensor, config: PpoConfig
) -> TreeAdvantages:
    """Advantages and returns by GAE over the value head's estimates, per turn or per token.

    `kl_costs`: float32 [P], of each token that the agent wrote.
    """
    rewards, values = token_rewards(sample.trajectory.reward, kl_costs), outputs.values
    if config.credit == "token":
        advantages = generalised_advantages(rewards, values, config.gamma, config.lam)
        ones = torch.ones_like(advantages)
        return _of_episode(sample, outputs, advantages, advantages + values, ones)
    turn_values = values[outputs.first]
    turn_rewards = torch.zeros_like(turn_values).index_add(0, outputs.action, rewards)
    turns = turn_advantages(turn_rewards, turn_values, config.gamma, config.lam)
    returns = (turns + turn_values)[outputs.action]
    is_first = torch.zeros_like(values)
    is_first[outputs.first] = 1.0
    return _of_episode(sample, outputs, turns[outputs.action], returns, is_first)


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
            nothing = torch.zeros_like(advantages)
            items.append(_of_episode(sample, policy, advantages, nothing, nothing))
    return items


def _of_episode(
    sample: Sample,
    outputs: PolicyOutputs,
    advantages: Tensor,
    returns: Tensor,
    value_weights: Tensor,
) -> TreeAdvantages:
    return TreeAdvantages(
        tree=StepTree.of(sample.encoded),
        actions=float(len(sample.encoded.replies)),
        weights=torch.ones_like(advantages),
        old_log_probs=outputs.log_probs,
        advantages=advantages,
        returns=returns,
        value_weights=value_weights,
    )
