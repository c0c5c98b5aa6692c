"""Step pairs from files (`preference.trajectories` of `implicit`), as trees like those of practice.

A file holds step pairs, as `stepagent convert RUN --to step-pairs` writes them (`prompt` up to the
state, `chosen` and `rejected` with one reply each, `weight`, rewards), or trajectories. Of two
trajectories of a task (`methods.preference_files`) the step at which they part is a pair: the first
whose actions differ, in the state that both have reached. What follows it are other states.

Pairs whose prompts extend one another share a tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepagent.agents.chat import Encoded
from stepagent.envs.layouts import layout_of_file
from stepagent.envs.react import Message, Prompt
from stepagent.envs.records import read_records
from stepagent.training.config import Config
from stepagent.training.data import Sample
from stepagent.training.methods.practice import Practice, action_of, trees_of
from stepagent.training.methods.preference_files import compare_files, read_files
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.tree import Branch


@dataclass(frozen=True)
class StepPair:
    """Two replies in the same state, the first preferred."""

    prompt: list[Message]
    """The conversation up to the state"""
    chosen: Message
    rejected: Message
    weight: float = 1.0
    """How often the second was drawn"""
    rewards: tuple[float, float] | None = None
    """Of both, where they are known"""

    @property
    def conversation(self) -> list[Message]:
        return [*self.prompt, self.chosen]

    @property
    def value(self) -> float | None:
        """How much more the first earns; at least 0."""
        return None if self.rewards is None else max(0.0, self.rewards[0] - self.rewards[1])


@dataclass
class _Trunk:
    """A conversation and the pairs whose states are in it."""

    messages: list[Message]
    pairs: list[StepPair] = field(default_factory=list)

    def takes(self, pair: StepPair) -> bool:
        """Whether the pair's conversation is this one's, or extends it."""
        return pair.conversation[: len(self.messages)] == self.messages


def practice_of_files(
    run: TrainingRun, files: Sequence[str]
) -> tuple[list[Practice], list[tuple[float, ...]] | None]:
    """The pairs of the files as practice; for each branch what its pair weighs by the rewards of
    the file, where `reflection.weights` says "value" (else None).

    Raises FileNotFoundError and ValueError that name the file and the record: what is no step pair,
    was written under another prompt, is longer than the context, or lacks the rewards; and where
    there is no pair.
    """
    by_value = run.config.reflection.weights == "value"
    trunks: list[_Trunk] = []
    for pair in _pairs(run, files):
        if by_value and pair.rewards is None:
            raise ValueError(
                f"{', '.join(files)}: a pair without rewards, which reflection.weights value needs "
                "(chosen_reward and rejected_reward)"
            )
        if not (trunks and trunks[-1].takes(pair)):
            trunks.append(_Trunk([]))
        trunks[-1].messages = pair.conversation
        trunks[-1].pairs.append(pair)
    practices, weights = [], []
    for trunk in trunks:
        for practice, row in _trees(run, trunk):
            practices.append(practice)
            weights.append(row)
    if not any(practice.tree.branches for practice in practices):
        raise ValueError(f"{', '.join(files)}: no pair of two different actions")
    return practices, weights if by_value else None


def _trees(run: TrainingRun, trunk: _Trunk) -> Iterator[tuple[Practice, tuple[float, ...]]]:
    """The trunk's pairs as trees of at most `reflection.max_tree_tokens`, with their values."""
    codec, config = run.policy.codec, run.config.reflection
    encoded = codec.encode(trunk.messages)
    if len(encoded.ids) > run.policy.context:
        raise ValueError(
            f"a conversation of preference.trajectories has {len(encoded.ids)} tokens, the model's "
            f"context {run.policy.context}: leave it out, or use a model with a longer context"
        )
    same, branches = [0.0] * len(encoded.replies), dict[Branch, float]()
    earned: dict[Branch, float] = {}
    for pair in trunk.pairs:
        step = sum(message["role"] == "assistant" for message in pair.prompt)
        ids = _reply_ids(run, pair.rejected["content"])
        if _is_same(run, encoded, step, ids):
            same[step] += pair.weight
        else:
            branch = Branch(step, tuple(ids))
            branches[branch] = branches.get(branch, 0.0) + pair.weight
            earned[branch] = earned.get(branch, 0.0) + pair.weight * (pair.value or 0.0)
    for practice in trees_of(encoded, branches, same, config.max_tree_tokens):
        yield practice, tuple(earned[b] / branches[b] for b in practice.tree.branches)


def _is_same(run: TrainingRun, encoded: Encoded, step: int, ids: list[int]) -> bool:
    """Whether a reply counts as the expert's (`reflection.equal`; effects cannot be played)."""
    start, end = encoded.replies[step]
    expert, codec = encoded.ids[start:end], run.policy.codec
    if run.config.reflection.equal == "tokens":
        return ids == expert
    return ids == expert or action_of(codec, ids) == action_of(codec, expert)


def _reply_ids(run: TrainingRun, text: str) -> list[int]:
    """Tokens of a reply; without an end of turn where it fills the policy's length limit."""
    body = run.policy.codec.body_ids(text)
    is_cut = len(body) >= run.policy.config.max_new_tokens
    return body if is_cut else run.policy.codec.reply_ids(text)


# Files --------------------------------------------------------------------------------------------


def check_files(config: Config, prompt: Prompt) -> None:
    """Raises FileNotFoundError or ValueError for files of `preference.trajectories` that cannot be
    learned from."""
    trajectories, others = _by_layout(config.preference.trajectories)
    read_files(config, prompt, trajectories)
    for path in others:
        for _ in _recorded(path, config.env, prompt.system(config.prompt)):
            pass


def _by_layout(files: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Files of trajectories, and others."""
    trajectories = [file for file in files if layout_of_file(Path(file)) == "trajectories"]
    return trajectories, [Path(file) for file in files if file not in trajectories]


def _pairs(run: TrainingRun, files: Sequence[str]) -> Iterator[StepPair]:
    trajectories, others = _by_layout(files)
    for path in others:
        yield from _recorded(path, run.config.env, run.prompt.system(run.style))
    if trajectories:
        for better, worse in compare_files(run, trajectories).pairs:
            if pair := parting(run, better, worse):
                yield pair


def parting(run: TrainingRun, better: Sample, worse: Sample) -> StepPair | None:
    """The step at which two trajectories of a task part; None where one only goes on longer, or the
    environment answered the same actions differently."""
    first, second = better.trajectory, worse.trajectory
    messages = first.messages(run.prompt, run.style)
    states = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for state, one, other in zip(states, first.steps, second.steps, strict=False):
        if one.observation != other.observation:
            return None
        if one.action != other.action:
            rejected: Message = {"role": "assistant", "content": other.text(run.style)}
            rewards = first.reward, second.reward
            return StepPair(messages[:state], messages[state], rejected, 1.0, rewards)
    return None


def _recorded(path: Path, env: str, system: str) -> Iterator[StepPair]:
    """The step pairs of a file. Raises ValueError that names the record."""
    for record in read_records(path):
        try:
            if record.problem:
                raise ValueError(record.problem)
            pair = _step_pair(record.value, env)
            opening = pair.prompt[0]
            if (opening["content"] if opening["role"] == "system" else "") != system:
                raise ValueError(
                    "its system message is not that of this run: set prompt.* as for the run that "
                    "the pairs are of"
                )
        except ValueError as error:
            raise ValueError(f"{path}, {record.place}: {error}") from None
        yield pair


def _step_pair(row: Any, env: str) -> StepPair:
    sides: list[Message] = []
    if not isinstance(row, dict) or not _is_conversation(row.get("prompt")):
        raise ValueError(
            "no step pair: it needs prompt, chosen and rejected, which are lists of messages "
            "(`stepagent convert RUN --to step-pairs` writes them)"
        )
    for name in ("chosen", "rejected"):
        if not _is_conversation(row.get(name)) or [m["role"] for m in row[name]] != ["assistant"]:
            raise ValueError(
                f"{name} is not one message of the assistant: pairs of whole trajectories go into "
                "one file of trajectories, good and bad"
            )
        sides.append(row[name][0])
    if row.get("env") not in (None, env):
        raise ValueError(f"it is of {row['env']}, but this run trains on {env}")
    weight = _number(row, "weight")
    if weight is not None and weight <= 0:
        raise ValueError(f"weight is {weight}: it must be above 0")
    earned, lost = _number(row, "chosen_reward"), _number(row, "rejected_reward")
    rewards = None if earned is None or lost is None else (earned, lost)
    weight = 1.0 if weight is None else weight
    return StepPair(row["prompt"], sides[0], sides[1], weight, rewards)


def _number(row: dict[str, Any], name: str) -> float | None:
    """A finite number, or None where the row has none."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, which is no finite number")
    return float(value)


def _is_conversation(value: Any) -> bool:
    """Whether it is a list of messages with roles and texts, at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) for message in value)
        and all(isinstance(m.get(key), str) for m in value for key in ("role", "content"))
    )
