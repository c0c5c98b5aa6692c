"""Trajectories as tokens; everything that is left out is counted, with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.agents.chat_template import first_difference
from stepagent.envs.core import checksum
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


def shown_otherwise(samples: Sequence[Sample], codec: ChatCodec) -> tuple[int, str]:
    """In how many steps a server's model was shown other tokens than the policy's template gives
    for that state, and a warning that shows the first difference; "" where there is none."""
    recorded, differing = 0, 0
    warning = ""
    for sample in samples:
        for number, step in enumerate(sample.trajectory.steps):
            shown = list(step.prompt_tokens)
            if not shown:
                continue
            recorded += 1
            state = sample.encoded.state(number)
            if shown == state:
                continue
            differing += 1
            warning = warning or (
                f"task {sample.trajectory.task_id}, step {number + 1}, "
                f"{first_difference(codec.tokenizer, {'shown': shown, 'the policy': state})}"
            )
    if not differing:
        return 0, ""
    return differing, (
        f"In {differing} of {recorded} steps a server's model was shown other tokens than the "
        "policy's chat template gives, in which its replies will be learned: serve it with the "
        "policy's tokenizer and template, or give the policy the server's arguments "
        f"(policy.template). The first: {warning}"
    )


def select(
    trajectories: Sequence[Trajectory], limit: int, min_reward: float, seed: int | None
) -> list[Trajectory]:
    """Those that scored enough; at most `limit` of them, drawn by the seed, in file order. Without
    a seed they are those of the first tasks in the fixed shuffle of `eval.evaluate`.

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
    if seed is None:
        order = sorted(range(len(good)), key=lambda i: checksum(good[i].task_id))
    else:
        order = np.random.default_rng([seed, 1]).permutation(len(good)).tolist()
    return [good[i] for i in sorted(order[:limit])]


def draw(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """`count` of the items, drawn by the seed without repetition, in their order; 0: all."""
    if not count or count >= len(items):
        return list(items)
    chosen = np.random.default_rng([seed, 2]).permutation(len(items))[:count]
    return [items[i] for i in sorted(chosen)]
