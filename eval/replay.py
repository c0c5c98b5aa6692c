"""Plays recorded actions again and checks the outcome: `stepagent replay RUN …`.

A results file records each episode's environment with all arguments, its task and seed, and the
agent's replies. That is enough to play it again without the agent: every observation, reward and
`valid`, the end, the score and the metrics must be identical, and `summary.json` must agree with
the results. The exit code is 0 if all of that holds, 1 if something differs (the first difference
is shown), 2 if nothing can be replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import UsageError, check_range
from stepagent.eval.load_runs import EvaluationRun, load_runs
from stepagent.eval.recorded_env import import_modules, recorded_env
from stepagent.eval.results import ResultsError
from stepagent.eval.summary import summarise
from stepagent.eval.tables import tell
from stepagent.files import parse_json, read_text

_CONTEXT, _WIDTH = 24, 60
"""Letters shown before the first one that differs, and in total."""
_NOT_REPLAYED = ("stepagent", "prompt", "format", "arguments")
"""Parts of a fingerprint that do not affect the environment, or that are passed to it."""


@dataclass
class Config:
    """Replays the recorded actions of runs and checks every observation and score."""

    runs: list[str] = field(default_factory=list)
    """Results files, or folders of `stepagent eval` (one run, or a suite) or `stepagent train`."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment that replace the recorded ones, such as --env-args.data FOLDER
    if the data have moved."""
    modules: list[str] = field(default_factory=list)
    """Modules to import, which register the runs' custom environments. A results file alone cannot
    have a module imported."""
    limit: int | None = None
    """Maximum number of episodes of each run. null: all."""


@dataclass(frozen=True)
class Difference:
    """The first place where a replay differs from the record."""

    task_id: str
    seed: int
    step: int
    """Steps before it"""
    what: str
    """Such as observation, reward, success"""
    recorded: object
    replayed: object

    def __str__(self) -> str:
        where = f"{self.task_id} (seed {self.seed}), after {self.step} steps: {self.what} differs"
        return f"{where}{_side_by_side(str(self.recorded), str(self.replayed))}"


@dataclass(frozen=True)
class Replay:
    """What replaying a run's episodes showed."""

    episodes: int
    differences: list[Difference]
    """One for each episode that differs"""
    changes: list[str]
    """Versions and data that differ from the record's"""


def replay(trajectory: Trajectory, env: TextEnv) -> Difference | None:
    """Plays the trajectory's actions in an environment of its kind; None if nothing differs.

    An episode that failed is replayed as far as it was recorded. Raises what the environment raises
    (ValueError for a task that it does not have, say).
    """
    for step, what, recorded, replayed in compare(trajectory, env):
        if recorded != replayed:
            seed = trajectory.seed
            return Difference(trajectory.task_id, seed, step, what, recorded, replayed)
    return None


def compare(trajectory: Trajectory, env: TextEnv) -> Iterator[tuple[int, str, object, object]]:
    """(steps so far, name, recorded, replayed) of everything that must be the same."""
    t = trajectory
    if t.error and not t.steps and not t.final_observation:
        return  # it failed before its first observation
    observation, info = env.reset(seed=t.seed, options={"task_id": t.task_id})
    ended = truncated = False
    for number, step in enumerate(t.steps):
        yield number, "observation", step.observation, observation
        yield number, "end of the episode", False, ended
        # Whatever the style was, `react.parse` reads the same from it.
        observation, reward, done, truncated, info = env.step(step.text())
        ended = done or truncated
        yield number + 1, "reward", float(step.reward), float(reward)
        yield number + 1, "validity", step.valid, bool(info["valid"])
    n = len(t.steps)
    yield n, "last observation", t.final_observation, observation
    yield n, "score", float(t.reward), float(info["score"])
    yield n, "success", t.success, bool(info["success"])
    yield n, "truncation", t.truncated, truncated
    yield n, "metrics", t.metrics, {name: float(v) for name, v in info["metrics"].items()}
    if not t.error:
        yield n, "end of the episode", True, ended


def replay_run(run: EvaluationRun, config: Config) -> Replay:
    """Replays a run's episodes.

    Raises ValueError if the environment cannot be made as recorded, UsageError if it may not be
    (see `recorded_env`).
    """
    env_id, env_args = recorded_env(run, config.env_args)
    env = envs.make(env_id, **env_args)
    try:
        now = env.fingerprint()
        changes = [
            f"{name}: {then} → {now.get(name, '(none)')}"
            for name, then in run.fingerprint.items()
            if not name.startswith("agent.") and name not in _NOT_REPLAYED
            if now.get(name) != then
        ]
        trajectories = run.trajectories[: config.limit]
        differences = [replay(trajectory, env) for trajectory in trajectories]
    finally:
        env.close()
    return Replay(len(trajectories), [d for d in differences if d], changes)


def summary_errors(run: EvaluationRun) -> list[str]:
    """Figures of `summary.json` that do not agree with the results beside it, one text each.

    None if there is no such file, or if it is about another number of episodes (the results may
    hold more tasks than the last command played).
    """
    try:
        summary = parse_json(read_text(run.path.with_name("summary.json")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"it cannot be read ({error})"]
    if not isinstance(summary, dict):
        return ["it is not a JSON object"]
    if summary.get("episodes") != len(run.trajectories):
        return []
    recomputed = summarise(run.trajectories)
    names = ("failed", "reward_mean", "success_rate", "valid_rate", "steps_mean", "metrics")
    return [
        f"{name} {summary.get(name)}, where the results give {recomputed[name]}"
        for name in names
        if summary.get(name) != recomputed[name]
    ]


def _side_by_side(recorded: str, replayed: str) -> str:
    """Both texts from shortly before the first letter that differs, with differences marked.

    >>> print("differs" + _side_by_side("The door is open.", "The door is shut."))
    differs at letter 13
      recorded: The door is open.
      replayed: The door is shut.
                            ^^^^
    """
    pairs = range(max(len(recorded), len(replayed)))
    first = next((i for i in pairs if recorded[i : i + 1] != replayed[i : i + 1]), 0)
    start = max(0, first - _CONTEXT)
    one, two = recorded[start : start + _WIDTH], replayed[start : start + _WIDTH]
    size = max(len(one), len(two))
    marks = "".join(" ^"[one[i : i + 1] != two[i : i + 1]] for i in range(size)).rstrip()
    dots = "…" if start else ""
    lines = [f"  recorded: {dots}{_line(one)}", f"  replayed: {dots}{_line(two)}"]
    marks = " " * (len("  recorded: ") + len(dots)) + marks
    return "\n".join([f" at letter {first + 1}", *lines, marks])


def _line(text: str) -> str:
    """The text on one line, each letter with its width unchanged."""
    return "".join({"\n": "⏎", "\t": "→"}.get(c, c if c.isprintable() else "�") for c in text)


def _show(run: EvaluationRun, result: Replay, errors: list[str], console: Console) -> None:
    if result.differences:
        differing = f"{len(result.differences)} of {result.episodes} episodes differ"
        tell(console, f"{run.path}: {differing}, the first here:")
        tell(console, str(result.differences[0]))
    if result.changes:
        changes = "; ".join(result.changes)
        tell(console, f"note: {run.path}: recorded with other versions or data: {changes}")
    if errors:
        tell(console, f"{run.path.with_name('summary.json')}: {'; '.join(errors)}")
    if not result.differences:
        tell(Console(), f"{run.path}: {result.episodes} episodes are as recorded")


def check(config: Config) -> int:
    console, notes = Console(stderr=True), list[str]()
    episodes = differing = summaries = 0
    try:
        if not config.runs:
            raise UsageError("name at least one run: stepagent replay DIR …")
        check_range(1, limit=config.limit)
        import_modules(config.modules)
        runs = load_runs(config.runs, notes, everything=True)
        for note in notes:
            tell(console, f"note: {note}")
        if not runs:
            raise UsageError(f"there are no results in {', '.join(config.runs)}")
        for run in runs:
            result = replay_run(run, config)
            errors = summary_errors(run)
            _show(run, result, errors, console)
            episodes, differing = episodes + result.episodes, differing + len(result.differences)
            summaries += bool(errors)
    except (ResultsError, OSError) as error:  # 1 means that something differs
        raise UsageError(str(error)) from error
    also = f", and {summaries} summaries do not agree with their results" if summaries else ""
    tell(Console(), f"{episodes} episodes replayed, {differing} differ{also}")
    return 1 if differing or summaries else 0


main = Command("replay", Config, check, positional="runs")


if __name__ == "__main__":
    sys.exit(main())
