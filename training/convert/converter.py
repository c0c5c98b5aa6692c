"""Records of any layout as trajectories, each with its task and, where possible, its replay."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepagent.envs import Trajectory
from stepagent.envs.layouts import CONVERTIBLE, LAYOUTS, layout_of
from stepagent.envs.records import Record, read_records
from stepagent.errors import SetupError
from stepagent.training.convert import tasks
from stepagent.training.convert.conversations import Conversation, conversation_of
from stepagent.training.convert.options import Config
from stepagent.training.convert.replaying import replay
from stepagent.training.convert.report import Report

_SUFFIXES = ("*.json", "*.jsonl", "*.parquet", "*.json.gz", "*.jsonl.gz")
_EXPERT = ("eto", "agentgym", "alfworld")
"""Layouts whose records are expert demonstrations where they do not say how they scored."""


class Converter:
    """Turns records into trajectories, and keeps account of them in `report`."""

    def __init__(self, config: Config):
        self.config, self.report = config, Report()
        self._indices: dict[str, tasks.TaskIndex | str] = {}
        self._seen: Counter[tuple[str, str]] = Counter()

    def trajectories(self, names: Sequence[str]) -> Iterator[Trajectory]:
        """Of all files, in order. Raises ValueError for a file that holds no records at all."""
        for path in input_files(names):
            for number, record in enumerate(read_records(path)):
                if number == self.config.limit:
                    break
                self.report.records += 1
                try:
                    trajectory = self._trajectory(path, record)
                except ValueError as error:
                    self.report.problem(path, record.place, str(error))
                else:
                    self.report.converted += 1
                    self.report.envs[trajectory.env or "unknown"] += 1
                    yield trajectory

    def _trajectory(self, path: Path, record: Record) -> Trajectory:
        """Raises ValueError that says why the record cannot be understood."""
        if record.problem:
            raise ValueError(record.problem)
        layout = self.config.format or layout_of(record.value)
        if layout is None:
            raise ValueError(_unknown(record.value))
        self.report.layouts[layout] += 1
        if layout not in CONVERTIBLE:
            raise ValueError(f"it is {LAYOUTS[layout]}, which holds no episode{_instead(layout)}")
        if layout == "trajectories":
            return Trajectory.from_json(json.dumps(record.value))
        conversation = conversation_of(record.value, layout)
        env = self.config.env or tasks.environment_of(conversation)
        if not env and not conversation.labelled:
            raise ValueError(
                "no reply says `Action:` and no environment is recognised: a conversation without "
                "actions, or name the environment with --env"
            )
        return self._checked(path, record, conversation, layout, env)

    def _checked(
        self, path: Path, record: Record, conversation: Conversation, layout: str, env: str
    ) -> Trajectory:
        """The trajectory, after its replay where there is one."""
        index = self._index(env)
        task = index.find(conversation, layout) if isinstance(index, tasks.TaskIndex) else None
        score = self.config.reward if self.config.reward is not None else float(layout in _EXPERT)
        reward = score if conversation.reward is None else conversation.reward
        steps = conversation.steps
        steps = (*steps[:-1], replace(steps[-1], reward=reward))
        task_id = task.task_id if task else tasks.derived_id(conversation, env, layout)
        self._seen[env, task_id] += 1
        trajectory = Trajectory(
            env=env,
            task_id=task_id,
            split=task.split if task else tasks.derived_split(conversation),
            agent=layout,
            seed=self._seen[env, task_id] - 1,  # tells several episodes of a task apart
            steps=steps,
            final_observation=conversation.final_observation,
            reward=reward,
            success=reward == 1.0,
            fingerprint={"converted_from": layout},
        )
        if task and isinstance(index, tasks.TaskIndex) and self.config.replay:
            return self._replayed(path, record, trajectory, index)
        if isinstance(index, str):
            self.report.replays[f"not replayed: {index}"] += 1
        elif task is None:
            self.report.tasks_unknown += 1
        if conversation.reward is None:
            self.report.rewards_assumed[f"{score:g}"] += 1
        return trajectory

    def _replayed(
        self, path: Path, record: Record, trajectory: Trajectory, index: tasks.TaskIndex
    ) -> Trajectory:
        try:
            result = replay(trajectory, index.instances[trajectory.split])
        except (ValueError, RuntimeError, OSError, ImportError) as error:  # no Java, a broken game
            self.report.replays[f"not replayed: {error}"] += 1
            return trajectory
        self.report.replays["over_limit"] += result.over_limit
        if result.difference:
            self.report.replays["differing"] += 1
            self.report.difference(path, record.place, result.difference)
            return result.trajectory if self.config.observations == "replay" else trajectory
        self.report.replays["equal"] += 1
        return result.trajectory

    def _index(self, env: str) -> tasks.TaskIndex | str:
        """The environment's tasks, or why there are none."""
        if env not in self._indices:
            try:
                if not env:
                    raise ValueError("the environment is unknown")
                index = tasks.TaskIndex(env, self.config.env_args)
                assert index.instances
                self._indices[env] = index
            except (ValueError, TypeError, OSError, ImportError) as error:
                if self.config.env or self.config.env_args:
                    raise SetupError(str(error)) from error
                self._indices[env] = str(error)
        return self._indices[env]

    def close(self) -> None:
        for index in self._indices.values():
            if isinstance(index, tasks.TaskIndex):
                index.close()


def _unknown(value: Any) -> str:
    if isinstance(value, dict):
        keys = ", ".join(list(map(str, value))[:8])
        nested = [k for k, v in value.items() if isinstance(v, list) and v and layout_of(v[0])]
        if nested:
            return f"its key {nested[0]!r} holds a list of records: write that list to a file"
        return f"no known layout (its keys: {keys})"
    return f"no known layout (a JSON {type(value).__name__})"


def _instead(layout: str) -> str:
    if layout == "alfred":
        return (
            "; play the game's expert: stepagent collect --env stepagent/ALFWorld-v0 "
            "--env-args.data FOLDER --out FOLDER"
        )
    return ""


def input_files(names: Sequence[str]) -> list[Path]:
    """The files named and those in folders, however deep. Raises ValueError where there is none."""
    paths: list[Path] = []
    for path in map(Path, names):
        below = sorted({f for suffix in _SUFFIXES for f in path.rglob(suffix)})
        files = [file for file in below if not file.name.startswith("._")]
        if path.is_dir() and not files:
            raise ValueError(f"{path} holds no .json, .jsonl or .parquet file")
        paths += files if path.is_dir() else [path]
    return paths
