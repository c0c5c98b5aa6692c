"""Several environments, and one table of them: `stepagent eval --suite paper`.

A suite is a YAML file (`eval/suites/`): which environments, which of their tasks, and which figure
of each counts. A run of it is a folder with one evaluation (`eval.evaluate`) per agent and
environment, `AGENT/ENVIRONMENT/results.jsonl` and `summary.json`, so that it can resume; and with
`summary.json` and `table.md` for all of them, which are rewritten after each environment. An
environment that cannot be played at all loses its own figure and no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stepagent import agents, envs
from stepagent.envs.core import SPLITS
from stepagent.eval.results import ResultsError
from stepagent.eval.summary import save
from stepagent.eval.tables import MISSING, Table, markdown
from stepagent.files import is_file, read_text, write_text

FOLDER = Path(__file__).with_name("suites")
FIGURES = {"score": ("reward_mean", "reward_ci95"), "success": ("success_rate", "success_ci95")}
"""Figure → its key in a summary, and the key of its interval."""


@dataclass(frozen=True)
class Entry:
    """An environment of a suite."""

    name: str
    """Its column in the table, and its folder."""
    env: str
    measure: str
    """What its figure is, in words."""
    figure: str = "score"
    """score or success."""
    data: str | None = None
    """Subfolder of the data folder with the benchmark's own files."""
    split: str = "test"
    limit: int | None = None
    env_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    name: str
    entries: tuple[Entry, ...]


def names() -> list[str]:
    """The suites that are included."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Suite:
    """A suite by its name, or from a YAML file. Raises ValueError that says what is wrong."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not is_file(path):
        known = ", ".join(names())
        raise ValueError(f"no suite {name!r}: choose one of {known}, or name a YAML file")
    try:
        content = yaml.safe_load(read_text(path))
        common = {k: v for k, v in content.items() if k != "environments"}
        entries = tuple(
            Entry(name=str(key), **{**common, **values})
            for key, values in content["environments"].items()
        )
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        AttributeError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:
        raise ValueError(f"the suite {path} cannot be read: {error}") from None
    for entry in entries:
        for what, value, allowed in (
            ("figure", entry.figure, (*FIGURES,)),
            ("split", entry.split, SPLITS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"the suite {path}, {entry.name}: unknown {what} {value!r}, choose one of "
                    f"{', '.join(allowed)}"
                )
    if not entries:
        raise ValueError(f"the suite {path} names no environment")
    return Suite(path.stem, entries)


def with_data(entry: Entry, root: Path | None, more: Mapping[str, Any]) -> tuple[dict, str]:
    """The environment's arguments with the available data, and a description of that data.

    The benchmark's own files are used if there are any below `root`; otherwise the bundled data, as
    in `gym.make` without `data`. Raises ValueError for files that cannot be used: a figure on other
    data must not stand in for one on these.
    """
    arguments = {**entry.env_args, **more}
    if "data" in arguments:
        return arguments, f"files in {arguments['data']}"
    if entry.data is None:
        return arguments, "bundled"
    if root is None:
        return arguments, "bundled (no --data, no STEPAGENT_DATA)"
    folder = root / entry.data
    if not folder.exists():
        return arguments, f"bundled (no {folder})"
    if folder.is_dir() and not any(_is_data(file) for file in folder.rglob("*")):
        return arguments, f"bundled ({folder} cannot be used: it is empty)"
    with_files = {**arguments, "data": str(folder)}
    try:
        env = envs.make(entry.env, split=entry.split, **with_files)
        try:
            tasks = len(env.tasks)
        finally:
            env.close()
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0][:300]
        raise ValueError(
            f"{folder} cannot be used: {reason}. Mend it, or take it away to play the bundled data"
        ) from error
    return with_files, f"files in {folder} ({tasks} {entry.split} tasks)"


def _is_data(file: Path) -> bool:
    """Whether it is a file of data: not a hidden one, as systems leave them."""
    return file.is_file() and not file.name.startswith(".")


def folder_of(agent: str) -> str:
    """A folder name for an agent.

    >>> folder_of("openai:gpt-4-0125-preview")
    'openai-gpt-4-0125-preview'
    """
    return re.sub(r"[^\w.\-]+", "-", agent).strip("-.") or "agent"


def accepted_options(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Agent → those of its options that it accepts.

    Raises ValueError for an unknown agent, for no agent, and for an option that none accepts.
    """
    if not options:
        raise ValueError("--agent names no agent")
    accepted = {spec: set(agents.options_of(spec)) for spec in options}
    by_any = set().union(*accepted.values())
    if unknown := sorted({name for of_one in options.values() for name in of_one} - by_any):
        raise ValueError(
            f"none of the agents {', '.join(options)} has an option {', '.join(unknown)}: there "
            f"are {', '.join(sorted(by_any))}"
        )
    return {
        spec: {name: value for name, value in of_one.items() if name in accepted[spec]}
        for spec, of_one in options.items()
    }


Play = Callable[[str, Entry, dict[str, Any], Path], dict[str, Any]]
"""(agent, entry, the environment's arguments, folder) → summary; see `Board.play`."""


@dataclass
class Board:
    """The results of a suite so far: one cell for each agent and environment."""

    suite: Suite
    agents: Sequence[str]
    out: Path
    data: dict[str, str] = field(default_factory=dict)
    """Environment → a description of the data that it used."""
    cells: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Agent → environment → its summary, or `{"error": why there is none}`."""

    def __post_init__(self) -> None:
        folders = {folder_of(agent): agent for agent in self.agents}
        if len(folders) < len(self.agents):
            raise ValueError(f"two of the agents would share a folder: {', '.join(self.agents)}")

    def play(self, root: Path | None, more: Mapping[str, Any], play: Play) -> None:
        """Plays everything; if an agent cannot play an environment at all, its cell says why.

        Raises ResultsError if the table cannot be written, and KeyboardInterrupt.
        """
        arguments: dict[str, dict[str, Any]] = {}
        for agent in self.agents:
            row = self.cells.setdefault(agent, {})
            for entry in self.suite.entries:
                try:
                    if entry.name not in arguments:
                        arguments[entry.name], self.data[entry.name] = with_data(entry, root, more)
                    folder = self.out / folder_of(agent) / entry.name
                    row[entry.name] = play(agent, entry, arguments[entry.name], folder)
                except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
                    row[entry.name] = {"error": f"{type(error).__name__}: {error}"}
                self.save()

    @property
    def complete(self) -> bool:
        """Whether every cell is there and none of its episodes failed."""
        return all(
            self.cells.get(agent, {}).get(entry.name, {}).get("complete")
            for agent in self.agents
            for entry in self.suite.entries
        )

    # Showing ------------------------------------------------------------------------------------

    def table(self) -> Table:
        """Percent, one row per agent; a second row has the 95 % intervals, a third the counts."""
        entries = self.suite.entries
        table = Table(f"suite {self.suite.name}, in percent", ["agent", *(e.name for e in entries)])
        for agent in self.agents:
            if table.rows:
                table.rules.add(len(table.rows))
            row = self.cells.get(agent, {})
            cells = [(entry, row.get(entry.name, {})) for entry in entries]
            table.rows.append([agent, *(_figure(entry, cell) for entry, cell in cells)])
            table.rows.append(["  95 % interval", *(_interval(e, cell) for e, cell in cells)])
            table.rows.append(["  tasks", *(_count(cell) for _, cell in cells)])
        return table

    def notes(self) -> list[str]:
        """What each column is and which data it is from; what went wrong; what it cost."""
        notes = []
        for entry in self.suite.entries:
            settings = ", ".join(f"{k}={v}" for k, v in entry.env_args.items())
            data = self.data.get(entry.name, "not played yet")
            notes.append(
                f"{entry.name}: {entry.measure}, split {entry.split}"
                + (f" ({settings})" if settings else "")
                + f"; data: {data}"
            )
        for agent, row in self.cells.items():
            for name, cell in row.items():
                notes += [f"{agent} on {name}: {note}" for note in cell.get("notes", ())]
                if "error" in cell:
                    notes.append(f"{agent} on {name}: no figure, {cell['error']}")
                elif cell["failed"]:
                    notes.append(
                        f"{agent} on {name}: {cell['failed']} episodes failed (count as 0)"
                    )
            if cost := sum(_statistic(cell, "cost") for cell in row.values()):
                tokens = sum(
                    _statistic(cell, f"tokens_{kind}")
                    for cell in row.values()
                    for kind in ("read", "kept", "generated")
                )
                notes.append(f"{agent}: {cost:.2f} dollars for {tokens:,.0f} tokens")
        return [*notes, *self._data_notes()]

    def _data_notes(self) -> list[str]:
        """What of the data was left out, replaced or cut; once for agents that met the same."""
        agents_by_note: dict[str, list[str]] = {}
        for agent, row in self.cells.items():
            for name, cell in row.items():
                if counts := cell.get("data_notes"):
                    listed = ", ".join(f"{reason}: {count}" for reason, count in counts.items())
                    agents_by_note.setdefault(f"{name}: {listed}", []).append(agent)
        return [f"{note} ({', '.join(who)})" for note, who in agents_by_note.items()]

    def save(self) -> None:
        """Writes `summary.json` and `table.md`. Raises ResultsError if that fails."""
        summary = {
            "suite": self.suite.name,
            "complete": self.complete,
            "environments": {
                e.name: {
                    "env": e.env,
                    "split": e.split,
                    "measure": e.measure,
                    "data": self.data.get(e.name),
                }
                for e in self.suite.entries
            },
            "agents": {
                agent: {
                    entry.name: _short(entry, row[entry.name])
                    for entry in self.suite.entries
                    if entry.name in row
                }
                for agent, row in self.cells.items()
            },
        }
        try:
            save(summary, self.out / "summary.json")
            write_text(self.out / "table.md", markdown([self.table()], self.notes()))
        except OSError as error:
            raise ResultsError(
                f"{error}. The results are kept: make room and run again."
            ) from error


def _figure(entry: Entry, cell: Mapping[str, Any]) -> str:
    if "error" in cell:
        return "failed"
    return f"{100 * cell[FIGURES[entry.figure][0]]:.1f}" if cell else MISSING


def _interval(entry: Entry, cell: Mapping[str, Any]) -> str:
    if not cell or "error" in cell:
        return MISSING
    low, high = cell[FIGURES[entry.figure][1]]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _count(cell: Mapping[str, Any]) -> str:
    return str(cell["episodes"]) if "episodes" in cell else MISSING


def _statistic(cell: Mapping[str, Any], name: str) -> float:
    return float(cell.get("agent_statistics", {}).get(name, 0.0))


def _short(entry: Entry, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell of `summary.json`; everything else is in the summary of its own folder."""
    if "error" in cell:
        return {"error": cell["error"]}
    figure, interval = FIGURES[entry.figure]
    names = ("episodes", "failed", "reward_mean", "success_rate", "metrics", "agent_statistics")
    return {
        "figure": cell[figure],
        "ci95": cell[interval],
        **{name: cell[name] for name in names},
        "data_notes": cell.get("data_notes", {}),
        "data_checksum": cell["fingerprint"].get("data", ""),
    }
