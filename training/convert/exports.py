"""Trajectories of ours as rows that other projects read, and the files that hold the rows.

Conversations are conversational everywhere: lists of messages. `prompt-completion` has a row for
each step, so that the loss is on the agent's words alone; `preference` pairs the best trajectory of
a task with each that scored less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from stepagent import envs
from stepagent.envs import PromptStyle, Trajectory
from stepagent.envs.react import Message, Prompt
from stepagent.eval.recorded_env import check_id
from stepagent.files import write_atomically
from stepagent.optional import missing

Row = dict[str, Any]
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
_BATCH = 256


@dataclass
class Conversations:
    """Trajectories as messages, each in the prompt of its environment."""

    style: PromptStyle
    arguments: dict[str, Any]
    """Of the environments that the prompts come from."""
    _prompts: dict[str, Prompt] = field(default_factory=dict)

    def messages(self, trajectory: Trajectory) -> list[Message]:
        """Raises ValueError where its environment is unknown or cannot be made."""
        return trajectory.messages(self._prompt(trajectory), self.style)

    def _prompt(self, trajectory: Trajectory) -> Prompt:
        env = trajectory.env
        if env not in self._prompts:
            if not env:
                raise ValueError(
                    f"the environment of {trajectory.task_id!r} is unknown, and with it the "
                    "prompt: name it with --env"
                )
            check_id(env, f"trajectory {trajectory.task_id!r}")
            instance = envs.make(env, **{**self.arguments, "split": trajectory.split})
            self._prompts[env] = instance.prompt
            instance.close()
        return self._prompts[env]


def messages(trajectories: Iterable[Trajectory], conversations: Conversations) -> Iterator[Row]:
    for trajectory in trajectories:
        yield {"messages": conversations.messages(trajectory), **_about(trajectory)}


def sharegpt(trajectories: Iterable[Trajectory], conversations: Conversations) -> Iterator[Row]:
    for trajectory in trajectories:
        turns = [
            {"from": _SHAREGPT[message["role"]], "value": message["content"]}
            for message in conversations.messages(trajectory)
        ]
        yield {"id": trajectory.task_id, "conversations": turns, **_about(trajectory)}


def prompt_completion(
    trajectories: Iterable[Trajectory], conversations: Conversations
) -> Iterator[Row]:
    for trajectory in trajectories:
        turns = conversations.messages(trajectory)
        for i, message in enumerate(turns):
            if message["role"] == "assistant":
                yield {"prompt": turns[:i], "completion": [message], **_about(trajectory)}


def preference(trajectories: Iterable[Trajectory], conversations: Conversations) -> Iterator[Row]:
    """Raises ValueError where no task has two trajectories of different scores."""
    tasks: dict[tuple[str, str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.steps and not trajectory.error:
            task = trajectory.env, trajectory.split, trajectory.task_id
            tasks.setdefault(task, []).append(trajectory)
    pairs = 0
    for (_, _, task_id), group in tasks.items():
        best = max(group, key=lambda t: t.reward)
        for worse in group if task_id else ():
            if worse.reward < best.reward:
                pairs += 1
                yield _pair(best, worse, conversations)
    if not pairs:
        raise ValueError("no task has two trajectories of different scores: there is no pair")


def _pair(best: Trajectory, worse: Trajectory, conversations: Conversations) -> Row:
    chosen, rejected = conversations.messages(best), conversations.messages(worse)
    start = next(i for i, message in enumerate(chosen) if message["role"] == "assistant")
    return {
        "prompt": chosen[:start],
        "chosen": chosen[start:],
        "rejected": rejected[start:],
        "env": best.env,
        "task_id": best.task_id,
        "chosen_reward": best.reward,
        "rejected_reward": worse.reward,
    }


def _about(trajectory: Trajectory) -> Row:
    t = trajectory
    return {"env": t.env, "task_id": t.task_id, "reward": float(t.reward), "success": t.success}


EXPORTS: dict[str, Callable[[Iterable[Trajectory], Conversations], Iterator[Row]]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt-completion": prompt_completion,
    "preference": preference,
}
"""Layout written → its rows."""


# Files ----------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Writes rows as parquet or JSON lines, by the file's suffix; complete or not at all.

    Returns how many. Raises OSError where the file cannot be written.
    """
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    save = _parquet if path.suffix == ".parquet" else _json_lines
    write_atomically(path, lambda partial: save(partial, counted()))
    return count


def _json_lines(path: Path, rows: Iterator[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def _parquet(path: Path, rows: Iterator[Row]) -> None:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise missing("pyarrow", f"writing {path}") from None
    writer = None
    try:
        while batch := list(islice(rows, _BATCH)):
            table = pyarrow.Table.from_pylist(batch, schema=writer.schema if writer else None)
            writer = writer or ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer:
            writer.close()
