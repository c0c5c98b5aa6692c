"""`python -m training.convert FILE … --out FILE`: trajectories of other projects, and for them.

Reads every layout of `envs.layouts`, recognised by its contents, and writes our trajectories or one
of the layouts of `training.convert.exports`. What comes from others is played again where its task
can be found. Beside the output, `OUT.report.json` says of every record that could not be
understood which it was and why, and where replays differ.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent import command_line
from stepagent.envs import PromptStyle, Trajectory
from stepagent.envs.layouts import CONVERTIBLE, LAYOUTS, layout_of
from stepagent.envs.records import Record, read_records
from stepagent.eval.replay import Difference
from stepagent.eval.tables import tell
from stepagent.files import write_text
from stepagent.training.convert import tasks
from stepagent.training.convert.conversations import Conversation, conversation_of
from stepagent.training.convert.exports import EXPORTS, Conversations, write_rows
from stepagent.training.convert.replaying import replay
from stepagent.training.convert.step_pairs import step_pairs

_SUFFIXES = ("*.json", "*.jsonl", "*.parquet", "*.json.gz", "*.jsonl.gz")
_LISTED = 10_000
"""Entries of each list in the report; all are counted."""
_SHOWN = 5
_EXPERT = ("eto", "agentgym", "alfworld")
"""Layouts whose records are expert demonstrations where they do not say how they scored."""


@dataclass
class Config:
    """Converts trajectories of other projects into StepAgent's, and StepAgent's into theirs."""

    files: list[str] = field(default_factory=list)
    """Files, or folders of .json, .jsonl and .parquet files; training runs for step-pairs."""
    out: Path | None = None
    """File to write: .jsonl, or .parquet where `to` is not trajectories."""
    to: Literal[
        "trajectories", "messages", "sharegpt", "prompt-completion", "preference", "step-pairs"
    ] = "trajectories"
    """Layout of the output. step-pairs reads folders of training runs (implicit, inverse)."""
    format: (
        Literal[
            "trajectories",
            "eto",
            "agentgym",
            "fireact",
            "alfworld",
            "messages",
            "sharegpt",
            "prompt-completion",
        ]
        | None
    ) = None
    """Layout of the input. null: recognised record by record."""
    env: str | None = None
    """Environment of all records. null: recognised record by record."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, such as --env-args.data FOLDER."""
    replay: bool = True
    """Play the actions again where the task can be found. Scores then come from the environment."""
    observations: Literal["file", "replay"] = "file"
    """What a trajectory holds whose replay differs: the file's observations or the replay's."""
    reward: float | None = None
    """Score of records that do not say theirs and were not replayed, 0 to 1. null: 1 for expert
    demonstrations (ETO, AgentGym, ALFWorld), else 0."""
    limit: int | None = None
    """Records of each file at most. null: all."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    """What conversations begin with, where `to` is not trajectories."""
    report: Path | None = None
    """Where the report goes. null: OUT.report.json."""


@dataclass
class Report:
    """What became of the records."""

    records: int = 0
    converted: int = 0
    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    envs: Counter[str] = field(default_factory=Counter)
    tasks_unknown: int = 0
    rewards_assumed: Counter[str] = field(default_factory=Counter)
    """Score → records that were given it, because neither they nor a replay say theirs."""
    replays: Counter[str] = field(default_factory=Counter)
    """equal, differing, over_limit, and reasons why others were not replayed."""
    differing_steps: Counter[str] = field(default_factory=Counter)
    not_understood: Counter[str] = field(default_factory=Counter)
    """Reason → records."""
    problems: list[dict[str, str]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)

    def problem(self, path: Path, place: str, reason: str) -> None:
        self.not_understood[reason] += 1
        if len(self.problems) < _LISTED:
            self.problems.append({"file": str(path), "record": place, "reason": reason})

    def difference(self, path: Path, place: str, difference: Difference) -> None:
        self.differing_steps[f"{difference.what}, step {difference.step}"] += 1
        if len(self.differences) < _LISTED:
            texts = {
                "recorded": str(difference.recorded)[:300],
                "replayed": str(difference.replayed)[:300],
            }
            about = {**asdict(difference), **texts}
            self.differences.append({"file": str(path), "record": place, **about})


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


class SetupError(RuntimeError):
    """The environment that was asked for cannot be made."""


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
            "; play the game's expert: python -m training.collect --env stepagent/ALFWorld-v0 "
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


def convert(config: Config) -> Report:
    """Converts; returns the report, which is also written.

    Raises ValueError for what cannot be read or converted at all (nothing is written then).
    """
    out, converter = _checked_out(config), Converter(config)
    trajectories = converter.trajectories(config.files)
    rows: Iterator[dict[str, Any]]
    try:
        if config.to == "step-pairs":
            rows = (row for folder in config.files for row in step_pairs(Path(folder)))
        elif config.to == "trajectories":
            rows = (asdict(t) for t in trajectories)
        else:
            conversations = Conversations(config.prompt, config.env_args)
            rows = EXPORTS[config.to](trajectories, conversations)
        converter.report.rows = write_rows(out, _at_least_one(rows, converter.report))
    finally:
        converter.close()
    path = config.report or out.with_name(out.name + ".report.json")
    text = json.dumps(vars(converter.report), indent=2, ensure_ascii=False)
    write_text(path, text + "\n")
    return converter.report


def _checked_out(config: Config) -> Path:
    if not config.files or config.out is None:
        raise ValueError("name the files to read and the one to write: FILE … --out FILE.jsonl")
    suffixes = (".jsonl",) if config.to == "trajectories" else (".jsonl", ".parquet")
    if config.out.suffix not in suffixes:
        raise ValueError(f"out is {config.out}: it must end in {' or '.join(suffixes)}")
    if config.out.resolve() in (Path(name).resolve() for name in config.files):
        raise ValueError(f"{config.out} is to be read and written: choose another --out")
    if config.reward is not None and not 0 <= config.reward <= 1:
        raise ValueError(f"reward is {config.reward}: it must be from 0 to 1")
    return config.out


def _at_least_one(rows: Iterator[dict[str, Any]], report: Report) -> Iterator[dict[str, Any]]:
    """The rows. Raises ValueError where there is none, with the reasons."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty and not report.records:
        raise ValueError("the runs hold no pair: the agent acts as the expert everywhere")
    if empty:
        reasons = "; ".join(f"{n}× {reason}" for reason, n in report.not_understood.most_common(3))
        raise ValueError(f"none of {report.records} records could be converted: {reasons}")


def _show(report: Report, out: Path, console: Console) -> None:
    layouts = ", ".join(f"{n} of {LAYOUTS[name]}" for name, n in report.layouts.items())
    if report.records:
        tell(console, f"{report.converted} of {report.records} records converted ({layouts})")
    for env, count in report.envs.items():
        tell(console, f"  {env}: {count}")
    if report.tasks_unknown:
        tell(console, f"the environment has no task for {report.tasks_unknown}: kept, not replayed")
    for reason, count in report.replays.items():
        if reason not in ("over_limit", "differing", "equal"):
            tell(console, f"{count} {reason}")
    if compared := report.replays["equal"] + report.replays["differing"]:
        tell(console, f"{report.replays['equal']} of {compared} replay equal")
    if report.replays["over_limit"]:
        tell(console, f"{report.replays['over_limit']} are longer than the environment allows")
    for score, count in report.rewards_assumed.items():
        tell(console, f"{count} say no score: taken as {score} (--reward changes that)")
    for where, count in report.differing_steps.most_common(_SHOWN):
        tell(console, f"  {count} differ first in: {where}")
    for entry in report.differences[:1]:
        tell(console, str(Difference(**{k: entry[k] for k in Difference.__dataclass_fields__})))
    for entry in report.problems[:_SHOWN]:
        tell(console, f"{entry['file']}, {entry['record']}: {entry['reason']}")
    if (more := sum(report.not_understood.values()) - _SHOWN) > 0:
        tell(console, f"… and {more} more records that cannot be read")
    tell(console, f"{report.rows} rows in {out}; details in its report")


def main(argv: Sequence[str] | None = None) -> int:
    config = command_line.parse(Config, argv, prog="python -m training.convert", positional="files")
    try:
        report = convert(config)
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, ImportError, SetupError) as error:
        print(f"training.convert: {error}", file=sys.stderr)
        return 2
    _show(report, Path(str(config.out)), Console())
    return 1 if report.not_understood else 0
