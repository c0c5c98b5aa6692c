"""Trajectories as tokens; everything that is left out is counted, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Trajectory

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """One trajectory and its tokens."""

    trajectory: Trajectory
    encoded: Encoded


def encode(
    trajectories: Sequence[Trajectory],
    codec: ChatCodec,
    prompt: Prompt,
    style: PromptStyle,
    context: int,
) -> tuple[list[Sample], dict[str, int]]:
    """The trajectories that can be learned from, and how many were left out for which reason.

    Raises ValueError where none is left, with the reasons.
    """
    samples: list[Sample] = []
    left_out = {"without_steps": 0, "longer_than_context": 0}
    longest = 0
    for trajectory in trajectories:
        if not trajectory.steps or trajectory.error:
            left_out["without_steps"] += 1
            continue
        encoded = codec.encode(
            trajectory.messages(prompt, style), tokens=[step.tokens for step in trajectory.steps]
        )
        longest = max(longest, encoded.longest)
        if encoded.longest > context:
            left_out["longer_than_context"] += 1
            continue
        samples.append(Sample(trajectory, encoded))
    if not samples:
        raise ValueError(
            f"none of {len(trajectories)} trajectories can be learned from ({left_out}; the "
            f"longest has {longest} tokens, the model's context {context}): leave out the example "
            "(prompt.example: false), or use a model with a longer context"
        )
    return samples, {reason: count for reason, count in left_out.items() if count}


def select(
    trajectories: Sequence[Trajectory], limit: int, min_reward: float, seed: int
) -> list[Trajectory]:
    """Those that scored enough; at most `limit` of them, drawn by the seed, in file order.

    Raises ValueError where none scored enough.
    """
    good = [t for t in trajectories if t.reward >= min_reward - 1e-9 and not t.error]
    if not good:
        best = max((t.reward for t in trajectories), default=0.0)
        raise ValueError(
            f"none of {len(trajectories)} expert trajectories scored {min_reward} (the best: "
            f"{best:.2f}): lower expert.min_reward"
        )
    if not limit or limit >= len(good):
        return good
    chosen = np.random.default_rng([seed, 1]).permutation(len(good))[:limit]
    return [good[i] for i in sorted(chosen)]


def draw(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """`count` of the items, drawn by the seed without repetition, in their order; 0: all."""
    if not count or count >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 2]).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]
