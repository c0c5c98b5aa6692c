"""The directory of an evaluation: `results.jsonl`, `summary.json`, and a lock.

Results are appended episode by episode, so a run may be killed at any moment and started again:
finished episodes are skipped, failed ones are tried again. One directory holds the results of one
agent on one environment, split, seed and prompt; anything else is refused, naming what differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.envs import trajectory as files
from stepagent.envs.trajectory import BadLine, Trajectory
from stepagent.errors import UserError
from stepagent.eval.summary import save
from stepagent.files import Lock, Locked, open_file, read_bytes

REGRETS = "regret.jsonl"
"""Beside the results: what was in reach in the states of each episode (`eval.regret`)."""
OPEN_EPISODES = "playing.jsonl"
"""Beside the results while an evaluation runs: the episodes that it is playing, for onlookers."""


class ResultsError(UserError, RuntimeError):
    """A results directory cannot be used; the message says why and what to do."""


class NoResults(ResultsError):
    """What was named holds no results."""

    exit_code = 2


@dataclass(frozen=True)
class Identity:
    """What all results in one directory have in common."""

    env: str
    agent: str
    split: str
    seed: int
    fingerprint: dict[str, str]

    @staticmethod
    def of(trajectory: Trajectory) -> Identity:
        t = trajectory
        return Identity(t.env, t.agent, t.split, t.seed, t.fingerprint)

    def differences(self, other: Identity) -> list[str]:
        """`name: own value → other's value`, one entry per difference."""
        own, others = self._flat(), other._flat()
        return [
            f"{name}: {own.get(name, '(none)')} → {others.get(name, '(none)')}"
            for name in sorted({*own, *others})
            if own.get(name) != others.get(name)
        ]

    def _flat(self) -> dict[str, object]:
        parts = {f"fingerprint {k}": v for k, v in self.fingerprint.items()}
        return {
            "env": self.env,
            "agent": self.agent,
            "split": self.split,
            "seed": self.seed,
            **parts,
        }


class ResultsDir:
    """A results directory, opened by this process alone; a context manager.

    Raises ResultsError if another process has it open or its results are of another run.
    """

    def __init__(self, path: Path, identity: Identity, *, overwrite: bool = False):
        self.path, self.results = path, path / "results.jsonl"
        self.summary = path / "summary.json"
        self.notes: list[str] = []
        """Oddities noticed on opening, for people to read."""
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(path / ".lock")
        except Locked as error:
            raise ResultsError(f"{error.strerror}: wait for it, or choose another --out") from None
        try:
            if overwrite:
                self.results.unlink(missing_ok=True)
                self.summary.unlink(missing_ok=True)
                self.results.with_name(REGRETS).unlink(missing_ok=True)
            self.done = self._resume(identity)
            self._writer = files.Writer(self.results)
        except BaseException:
            self._lock.release()
            raise

    def _resume(self, identity: Identity) -> dict[str, Trajectory]:
        """Finished episodes by task id; removes failed ones and unreadable lines from the file."""
        if not self.results.exists():
            return {}
        bad: list[BadLine] = []
        trajectories = files.read(self.results, bad)
        for trajectory in trajectories:
            if different := Identity.of(trajectory).differences(identity):
                listed = "\n  ".join(different)
                raise ResultsError(
                    f"{self.results} holds results of another run; there → now:\n  "
                    f"{listed}\nChoose another --out, or start over with --overwrite."
                )
        done = {t.task_id: t for t in trajectories if not t.error}
        if bad:
            self._put_aside(bad)
        if repeated := len(trajectories) - len({t.task_id for t in trajectories}):
            self.notes.append(
                f"{repeated} results are of tasks that the file holds already: of each task the "
                "last result that did not fail counts"
            )
        if failed := sum(bool(t.error) for t in trajectories):
            self.notes.append(f"{failed} episodes failed last time and are tried again")
        if len(done) < len(trajectories) or bad:
            try:
                files.write(self.results, done.values())
            except OSError as error:
                raise ResultsError(
                    f"{error.strerror}. The file is as it was: make room and run again."
                ) from error
        return done

    def _put_aside(self, bad: list[BadLine]) -> None:
        """Moves unreadable lines to a separate file, so that nothing is lost."""
        lines, numbers = read_bytes(self.results).split(b"\n"), {b.number for b in bad}
        aside = self.results.with_name("results.bad.jsonl")
        try:
            with open_file(aside, "ab") as file:
                file.writelines(lines[number - 1] + b"\n" for number in sorted(numbers))
        except OSError as error:
            raise ResultsError(
                f"cannot write {aside}: {error.strerror}. {self.results} is as it was: make room "
                "and run again."
            ) from error
        self.notes += [f"{b}; moved to {aside.name}, its episode is played again" for b in bad]

    def append(self, trajectory: Trajectory) -> None:
        """Raises ResultsError if the line cannot be written (a full disk, say)."""
        try:
            self._writer.write(trajectory)
        except OSError as error:
            raise ResultsError(
                f"{error.strerror}. Earlier results are kept: make room and run again to continue."
            ) from error
        self.done[trajectory.task_id] = trajectory

    def show(self, episodes: Iterable[Trajectory]) -> None:
        """Replaces the file of the episodes being played. It is for onlookers only: one that cannot
        be written stops nothing."""
        with contextlib.suppress(OSError):
            files.write(self.path / OPEN_EPISODES, episodes)

    def save(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`; raises ResultsError if it cannot be written."""
        try:
            save(summary, self.summary)
        except OSError as error:
            raise ResultsError(
                f"{error.strerror}. The results are kept: make room and run again."
            ) from error

    def chosen(self, tasks: Iterable[str]) -> list[Trajectory]:
        """The results for these tasks, in their order, as far as there are any."""
        return [self.done[task] for task in tasks if task in self.done]

    def __enter__(self) -> ResultsDir:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._writer.close()
        except OSError:
            pass  # `append` has reported what could not be written
        with contextlib.suppress(OSError):
            (self.path / OPEN_EPISODES).unlink(missing_ok=True)
        self._lock.release()
