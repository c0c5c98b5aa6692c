"""Several environments at once, and one table of them: `stepagent eval --suite paper`.

A suite is a YAML file (`eval/suites/`): which environments, which of their tasks, and which figure
of each counts. A run of it is a folder with an evaluation of its own (`eval.run.evaluate`) for each
agent and environment, `AGENT/ENVIRONMENT/results.jsonl` and `summary.json`, so it goes on where it
was left, and with `summary.json` and `table.md` for the whole, which are written anew after each
environment. An environment that fails as a whole costs its own figure and no other.
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
from stepagent.files import write_text

FOLDER = Path(__file__).with_name("suites")
FIGURES = {"score": ("reward_mean", "reward_ci95"), "success": ("success_rate", "success_ci95")}
"""Which figure of a summary, and its interval."""


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
    """Folder of the benchmark's own files, below the one of all data."""
    split: str = "test"
    limit: int | None = None
    env_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    name: str
    entries: tuple[Entry, ...]


def names() -> list[str]:
    """The suites that come with us."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Suite:
    """A suite by its name, or from a YAML file. Raises ValueError that says what is wrong."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(names())
        raise ValueError(f"no suite {name!r}: choose one of {known}, or name a YAML file")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        common = {k: v for k, v in found.items() if k != "environments"}
        entries = tuple(
            Entry(name=str(key), **{**common, **values})
            for key, values in found["environments"].items()
        )
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
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
    """The environment's arguments with the data that is there, and which data that is, in words.

    The benchmark's own files are taken where they lie under `root` and can be read; otherwise what
    comes bundled, as `gym.make` does without `data`.
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
    found = {**arguments, "data": str(folder)}
    try:
        env = envs.make(entry.env, split=entry.split, **found)
        try:
            tasks = len(env.tasks)
        finally:
            env.close()
    except (ValueError, OSError) as error:
        return arguments, f"bundled ({folder} cannot be used: {str(error).splitlines()[0][:200]})"
    return found, f"files in {folder} ({tasks} {entry.split} tasks)"


def folder_of(agent: str) -> str:
    """A folder's name for an agent's.

    >>> folder_of("openai:gpt-4-0125-preview")
    'openai-gpt-4-0125-preview'
    """
    return re.sub(r"[^\w.\-]+", "-", agent).strip("-.") or "agent"


def share(given: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Agent → those of the options meant for it that it takes.

    Raises ValueError for an unknown agent, for no agent, and for an option that none of them takes.
    """
    if not given:
        raise ValueError("--agent names no agent")
    known = {spec: set(agents.options_of(spec)) for spec in given}
    taken = set().union(*known.values())
    if unknown := sorted({name for options in given.values() for name in options} - taken):
        raise ValueError(
            f"none of the agents {', '.join(given)} has an option {', '.join(unknown)}: there are "
            f"{', '.join(sorted(taken))}"
        )
    return {
        spec: {name: value for name, value in options.items() if name in known[spec]}
        for spec, options in given.items()
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
    """Environment → which data it played."""
    cells: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Agent → environment → its summary, or `{"error": why there is none}`."""

    def __post_init__(self) -> None:
        folders = {folder_of(agent): agent for agent in self.agents}
        if len(folders) < len(self.agents):
            raise ValueError(f"two of the agents would share a folder: {', '.join(self.agents)}")

    def play(self, root: Path | None, more: Mapping[str, Any], play: Play) -> None:
        """Plays everything; what an environment or an agent cannot do at all is told in its cell.

        Raises ResultsError where the table cannot be written, and KeyboardInterrupt.
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
        """Percent, one row an agent; a second row has the 95 % intervals, a third the counts."""
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
        """What each column is and which data it comes from; what went wrong; what it cost."""
        told = []
        for entry in self.suite.entries:
            settings = ", ".join(f"{k}={v}" for k, v in entry.env_args.items())
            data = self.data.get(entry.name, "not played yet")
            told.append(
                f"{entry.name}: {entry.measure}, split {entry.split}"
                + (f" ({settings})" if settings else "")
                + f"; data: {data}"
            )
        for agent, row in self.cells.items():
            for name, cell in row.items():
                if "error" in cell:
                    told.append(f"{agent} on {name}: no figure, {cell['error']}")
                elif cell["failed"]:
                    told.append(f"{agent} on {name}: {cell['failed']} episodes failed (count as 0)")
            if cost := sum(_statistic(cell, "cost") for cell in row.values()):
                tokens = sum(
                    _statistic(cell, f"tokens_{kind}")
                    for cell in row.values()
                    for kind in ("read", "kept", "generated")
                )
                told.append(f"{agent}: {cost:.2f} dollars for {tokens:,.0f} tokens")
        return told

    def save(self) -> None:
        """Writes `summary.json` and `table.md`. Raises ResultsError where they cannot be."""
        whole = {
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
            self.out.mkdir(parents=True, exist_ok=True)
            save(whole, self.out / "summary.json")
            write_text(self.out / "table.md", markdown([self.table()], self.notes()))
        except OSError as error:
            raise ResultsError(
                f"cannot write {self.out / 'summary.json'}: {error.strerror}. The results are "
                "kept: make room and run again."
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
    """A cell of `summary.json`; everything else stands in the summary of its own folder."""
    if "error" in cell:
        return {"error": cell["error"]}
    figure, interval = FIGURES[entry.figure]
    kept = ("episodes", "failed", "reward_mean", "success_rate", "metrics", "agent_statistics")
    return {
        "figure": cell[figure],
        "ci95": cell[interval],
        **{name: cell[name] for name in kept},
        "data_checksum": cell["fingerprint"].get("data", ""),
    }
