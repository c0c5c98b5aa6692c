"""PPO on whole episodes with the environment's final reward (Schulman et al., 2017).

In each iteration the policy plays the expert's tasks, then takes clipped steps on what it wrote:

    reward of a token    -κ (log π_old - log π_SFT), and at the episode's last token + its score
    advantage            GAE over the tokens the agent wrote, one after another (`training.losses`)

Observation tokens are no part of that recursion: credit reaches the first action undiminished by
what the environment said in between. All replies of an episode share one forward and backward pass.

Deviations: where the paper only says PPO with the final reward, this is the form that language
models are trained with (a KL a token, a value head on the policy's hidden states which sends no
gradient into them). With `ppo.baseline` "group" the advantage of every token is the episode's
reward less the mean over the task's episodes. Advantages are whitened over an iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from stepagent.training import processes, rollouts, sft
from stepagent.training.checks import check_model
from stepagent.training.config import Config
from stepagent.training.dataset import Sample
from stepagent.training.implicit import draw
from stepagent.training.losses import generalised_advantages
from stepagent.training.session import Session
from stepagent.training.surrogate import (
    ActorCritic,
    Graded,
    Reading,
    step_policy,
    updates_of,
    whitened,
)
from stepagent.training.tree import StepTree


def learn(session: Session) -> None:
    """SFT, then `reflection.iterations` times episodes and PPO's updates.

    Raises ValueError before any training where the model cannot run the step trees.
    """
    check_model("ppo", session.policy)
    sft.learn(session)
    work = functools.partial(_iterate, session, session.entering())
    session.iterate(session.config.reflection.iterations, work)


def check(config: Config) -> None:
    """Raises ValueError where one episode a task leaves a group baseline nothing to compare."""
    if config.ppo.baseline == "group" and config.rollouts.samples < 2:
        raise ValueError(
            "ppo.baseline is group with rollouts.samples 1: an episode alone in its group has no "
            "advantage over it; take 2 samples or more, or the baseline value"
        )


def _iterate(session: Session, entering: Path, iteration: int, name: str) -> dict[str, float]:
    config, seed = session.config, session.config.seed + 1000 * iteration
    actor = ActorCritic(session.policy.model, config.ppo.baseline)
    actor.load_head(session.rundir.helpers(f"iteration-{iteration - 1}") / "value.safetensors")
    items, found = episodes(session, name, actor, entering, seed)
    if not items:
        session.note(f"{name}: no episode can be learned from; the policy stays as it is")
        return found
    # The KL is part of the reward here.
    return found | update(session, name, actor, items, seed, kl=0.0)


def update(
    session: Session, name: str, actor: ActorCritic, items: Sequence[Graded], seed: int, kl: float
) -> dict[str, float]:
    """PPO's updates on graded actions, with a progress bar; the figures of `step_policy`."""
    config = session.config
    title = f"{name}: PPO"
    with session.progress(title, updates_of(items, config.reflection, seed), "updates") as move:
        return step_policy(
            actor,
            items,
            config.ppo,
            config.reflection,
            session.rundir,
            name,
            seed,
            kl=kl,
            checkpoint_seconds=config.checkpoint_seconds,
            on_update=move,
        )


def episodes(
    session: Session, name: str, actor: ActorCritic, entering: Path, seed: int
) -> tuple[list[Graded], dict[str, float]]:
    """Free episodes of the policy as it stands, graded by their final reward, whitened."""
    config = session.config
    samples = draw(session.samples, config.reflection.trajectories, seed)
    played = rollouts.play(session, name, samples)
    groups, left_out = [], 0
    for row in played:
        usable, lost = rollouts.encode(session, row)
        kept = [s for s in usable if len(s.encoded.ids) <= config.reflection.max_tree_tokens]
        left_out += lost + len(usable) - len(kept)
        groups.append(kept)
    flat = [sample for group in groups for sample in group]
    rewards = [sample.trajectory.reward for sample in flat]
    found = {
        "episodes": float(len(flat)),
        "episodes_left_out": float(left_out),
        "final_reward": sum(rewards) / max(1, len(rewards)),
    }
    same = " (all the same: nothing to learn)" if len(set(rewards)) == 1 else ""
    session.note(
        f"{name}: {len(flat)} episodes, mean reward {found['final_reward']:.3f}{same}, "
        f"{left_out} left out"
    )
    if not flat:
        return [], found
    readings = processes.share(flat, lambda s: actor.read(_tree(s)))
    with session.policy.as_in(entering):
        reference = processes.share(flat, lambda s: actor.read(_tree(s)).log_probs)
    costs = [
        config.ppo.kl * (now.log_probs - before)
        for now, before in zip(readings, reference, strict=True)
    ]
    if config.ppo.baseline == "group":
        items = _by_group(groups, readings, costs)
    else:
        items = [
            _by_value(*row, config.ppo.gamma, config.ppo.lam)
            for row in zip(flat, readings, costs, strict=True)
        ]
    return whitened(items), found


def _tree(sample: Sample) -> StepTree:
    return StepTree(tuple(sample.encoded.ids), tuple(sample.encoded.replies))


def token_rewards(reward: float, kl_costs: torch.Tensor) -> torch.Tensor:
    """float32 [T]: the KL's cost at each token the agent wrote, the episode's reward at the last.

    >>> token_rewards(1.0, torch.tensor([0.5, 0.0, 0.25])).tolist()
    [-0.5, -0.0, 0.75]
    """
    rewards = -kl_costs.clone()
    rewards[-1] += reward
    return rewards


def _by_value(
    sample: Sample, reading: Reading, costs: torch.Tensor, gamma: float, lam: float
) -> Graded:
    """Advantages by GAE over the value head's guesses."""
    rewards = token_rewards(sample.trajectory.reward, costs)
    advantages = generalised_advantages(rewards, reading.values, gamma, lam)
    return _graded(sample, reading, advantages, advantages + reading.values)


def _by_group(
    groups: Sequence[Sequence[Sample]], readings: Sequence[Reading], costs: Sequence[torch.Tensor]
) -> list[Graded]:
    """Advantages over the mean of the task's episodes, the KL's cost taken off."""
    items, rows = [], iter(zip(readings, costs, strict=True))
    for group in groups:
        ours = [next(rows) for _ in group]
        totals = [
            s.trajectory.reward - float(c.sum()) for s, (_, c) in zip(group, ours, strict=True)
        ]
        mean = sum(totals) / max(1, len(totals))
        for sample, (reading, _), total in zip(group, ours, totals, strict=True):
            advantages = torch.full_like(reading.log_probs, total - mean)
            items.append(_graded(sample, reading, advantages, torch.zeros_like(advantages)))
    return items


def _graded(
    sample: Sample, reading: Reading, advantages: torch.Tensor, returns: torch.Tensor
) -> Graded:
    ones = torch.ones_like(advantages)
    return Graded(
        tree=_tree(sample),
        actions=float(len(sample.encoded.replies)),
        weights=ones,
        old_log_probs=reading.log_probs,
        advantages=advantages,
        returns=returns,
        value_weights=ones,
    )
