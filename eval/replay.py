"""Plays recorded actions again and checks what comes of them: `python -m eval.replay RUN …`.

A results file says of every episode its environment with all arguments, its task and its seed, and
what the agent answered. That is enough to play it again without the agent: every observation has to
be the same letter for letter, and every reward, every `valid`, the end, the score and the metrics
the same number; and `summary.json` must say what the results do. The exit status is 0 where all is
so, 1 where something differs (the first difference is shown), 2 where nothing can be replayed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent import command_line, envs
from stepagent.envs import react
from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Trajectory
from stepagent.eval import runs
from stepagent.eval.results import ResultsError
from stepagent.eval.runs import Run
from stepagent.eval.summary import summarise
from stepagent.eval.tables import tell

_BEFORE, _SHOWN = 24, 60
"""Letters shown before the first one that differs, and in all."""
_NOT_THE_WORLD = ("stepagent", "prompt", "arguments")
"""Parts of a fingerprint that the environment's answers do not depend on, or that are handed on."""


@dataclass
class Config:
    """Replays the recorded actions of runs and checks every observation and score."""

    runs: list[str] = field(default_factory=list)
    """Results files, folders of eval.run (one run, or a whole suite) or of training.run."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment in place of the recorded ones, such as --env-args.data FOLDER
    where the data has moved."""
    limit: int | None = None
    """Episodes of each run at most. null: all."""


@dataclass(frozen=True)
class Difference:
    """Where a replay first left the record."""

    task_id: str
    seed: int
    step: int
    """Steps made before it"""
    what: str
    """Such as observation, reward, success"""
    recorded: object
    replayed: object

    def __str__(self) -> str:
        where = f"{self.task_id} (seed {self.seed}), after {self.step} steps: {self.what} differs"
        return f"{where}{_marked(str(self.recorded), str(self.replayed))}"


def replay(trajectory: Trajectory, env: TextEnv) -> Difference | None:
    """Plays the trajectory's actions in an environment of its kind; None where nothing differs.

    An episode that failed is followed as far as it was recorded. Raises what the environment
    raises (ValueError for a task that it does not have, say).
    """
    for step, what, recorded, replayed in compare(trajectory, env):
        if recorded != replayed:
            seed = trajectory.seed
            return Difference(trajectory.task_id, seed, step, what, recorded, replayed)
    return None


def compare(trajectory: Trajectory, env: TextEnv) -> Iterator[tuple[int, str, object, object]]:
    """(steps made, name, recorded, replayed) of all that has to be the same."""
    t = trajectory
    if t.error and not t.steps and not t.final_observation:
        return  # it failed before there was anything to see
    observation, info = env.reset(seed=t.seed, options={"task_id": t.task_id})
    ended = truncated = False
    for number, step in enumerate(t.steps):
        yield number, "observation", step.observation, observation
        yield number, "end of the episode", False, ended
        reply = step.reply or react.render(step.thought, step.action)  # the same to `react.parse`
        observation, reward, done, truncated, info = env.step(reply)
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


def replay_run(
    run: Run, *, env_args: Mapping[str, Any] | None = None, limit: int | None = None
) -> tuple[int, list[Difference], list[str]]:
    """Replays a run's episodes; returns (how many, what differs, versions and data that changed).

    Raises ValueError where the environment cannot be made as recorded.
    """
    env = make(run, env_args)
    try:
        now = env.fingerprint()
        changed = [
            f"{name}: {then} → {now.get(name, '(none)')}"
            for name, then in run.fingerprint.items()
            if not name.startswith("agent.") and name not in _NOT_THE_WORLD
            if now.get(name) != then
        ]
        todo = run.trajectories[:limit]
        found = [replay(trajectory, env) for trajectory in todo]
    finally:
        env.close()
    return len(todo), [difference for difference in found if difference], changed


def wrong_in_summary(run: Run) -> list[str]:
    """What `summary.json` beside the results says otherwise than they do, one text a figure.

    Nothing where there is no such file, or where it sums up another number of episodes (the file
    may hold more tasks than the last command asked for).
    """
    try:
        told = json.loads(run.path.with_name("summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"it cannot be read ({error})"]
    if not isinstance(told, dict):
        return ["it is no JSON object"]
    if told.get("episodes") != len(run.trajectories):
        return []
    again = summarise(run.trajectories)
    names = ("failed", "reward_mean", "success_rate", "valid_rate", "steps_mean", "metrics")
    return [
        f"{name} {told.get(name)}, where the results give {again[name]}"
        for name in names
        if told.get(name) != again[name]
    ]


def make(run: Run, env_args: Mapping[str, Any] | None = None) -> TextEnv:
    """The environment of a run, with the arguments that its fingerprint holds."""
    try:
        recorded = json.loads(run.fingerprint.get("arguments", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{run.path}: its fingerprint's arguments are not JSON: {error}") from None
    return envs.make(run.env, **{**recorded, **(env_args or {}), "split": run.split})


def _marked(recorded: str, replayed: str) -> str:
    """Both texts from shortly before the first letter that differs, and marks under such letters.

    >>> print("differs" + _marked("The door is open.", "The door is shut."))
    differs at letter 13
      recorded: The door is open.
      replayed: The door is shut.
                            ^^^^
    """
    pairs = range(max(len(recorded), len(replayed)))
    first = next((i for i in pairs if recorded[i : i + 1] != replayed[i : i + 1]), 0)
    start = max(0, first - _BEFORE)
    one, two = recorded[start : start + _SHOWN], replayed[start : start + _SHOWN]
    size = max(len(one), len(two))
    marks = "".join(" ^"[one[i : i + 1] != two[i : i + 1]] for i in range(size)).rstrip()
    dots = "…" if start else ""
    lines = [f"  recorded: {dots}{_line(one)}", f"  replayed: {dots}{_line(two)}"]
    marked = " " * (len("  recorded: ") + len(dots)) + marks
    return "\n".join([f" at letter {first + 1}", *lines, marked])


def _line(text: str) -> str:
    """The text on one line, each letter as wide as it was."""
    return "".join({"\n": "⏎", "\t": "→"}.get(c, c if c.isprintable() else "�") for c in text)


def results_files(path: Path) -> list[Path]:
    """The results files of a run, or of all runs below a folder, however deep (`training.run`'s
    folder holds the expert's episodes, too)."""
    below = sorted(path.glob("**/results.jsonl")) if path.is_dir() else []
    return [file for file in below if file.stat().st_size] or runs.results_files(path)


def main(argv: Sequence[str] | None = None) -> int:
    config = command_line.parse(Config, argv, prog="python -m eval.replay", positional="runs")
    console, notes = Console(stderr=True), list[str]()
    episodes = differing = summaries = 0
    try:
        if not config.runs:
            raise ResultsError("name at least one run: python -m eval.replay DIR …")
        if config.limit is not None and config.limit < 1:
            raise ResultsError(f"limit is {config.limit}: it must be at least 1")
        todo = runs.read([f for path in config.runs for f in results_files(Path(path))], notes)
        for note in notes:
            tell(console, f"note: {note}")
        if not todo:
            raise ResultsError(f"there is no result in {', '.join(config.runs)}")
        for run in todo:
            n, found, changed = replay_run(run, env_args=config.env_args, limit=config.limit)
            episodes, differing = episodes + n, differing + len(found)
            if found:
                tell(console, f"{run.path}: {len(found)} of {n} episodes differ, the first here:")
                tell(console, str(found[0]))
            if changed:
                now = "; ".join(changed)
                tell(console, f"note: {run.path}: recorded with other versions or data: {now}")
            if wrong := wrong_in_summary(run):
                summaries += 1
                tell(console, f"{run.path.with_name('summary.json')}: {'; '.join(wrong)}")
            if not found:
                tell(Console(), f"{run.path}: {n} episodes are as recorded")
    except KeyboardInterrupt:
        return 130
    except (ResultsError, ValueError, TypeError, OSError, ImportError) as error:
        tell(console, f"error: {error}")
        return 2
    also = f", and {summaries} summaries are not of their results" if summaries else ""
    tell(Console(), f"{episodes} episodes replayed, {differing} differ{also}")
    return 1 if differing or summaries else 0


if __name__ == "__main__":
    sys.exit(main())
