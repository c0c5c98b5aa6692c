"""Results files of evaluations, read while they are written.

A file is followed by byte offsets: each answer says where the next one begins. The episodes that an
evaluation is playing at the moment lie beside its results (`eval.results.OPEN_EPISODES`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import Trajectory
from stepagent.eval.results import OPEN_EPISODES
from stepagent.eval.summary import score
from stepagent.eval.view.data import episode_text, outcome
from stepagent.files import open_file

_RESULTS = "results.jsonl"
MAX_FILES, MAX_ROWS = 200, 500
"""Results files that are listed, the newest; episodes in one answer."""
MAX_LINE, MAX_READ = 32 << 20, 8 << 20
"""Bytes of an episode's line (a longer one cannot be read), and about those read for an answer."""
_NEWEST = 4 << 20
"""Of a file that is opened for the first time: the bytes at its end that are read."""


class NoSuchResults(LookupError):
    """A results file or an episode that is not there."""


@dataclass(frozen=True)
class Recorded:
    """The results below some folders. Only these can be read, whatever a request names."""

    folders: Sequence[Path]

    def files(self) -> list[dict[str, Any]]:
        """The newest first: name, seconds since the last change, whether it is being played."""
        rows: list[dict[str, Any]] = []
        now = time.time()
        for file in {f for folder in self.folders for f in folder.glob(f"**/{_RESULTS}")}:
            playing = file.with_name(OPEN_EPISODES)
            changed = [_modified(file), _modified(playing)]
            age, is_playing = round(now - max(changed), 1), bool(changed[1])
            rows.append({"name": str(file.parent), "age": age, "playing": is_playing})
        return sorted(rows, key=lambda row: (row["age"], row["name"]))[:MAX_FILES]

    def follow(self, name: str, after: int | None) -> dict[str, Any]:
        """The episodes that were added behind `after`; None: the newest ones.

        `next` is where to go on, `bad` the number of lines that cannot be read, `open` the episodes
        being played. A file that became shorter (`again`) was written anew: it is read from its
        beginning. Raises NoSuchResults.
        """
        file = self._file(name)
        size = file.stat().st_size
        again = after is not None and after > size
        earlier = after is None and size > _NEWEST
        start = _line_after(file, size - _NEWEST) if earlier else 0 if again else after or 0
        rows, bad, place = [], 0, start
        for at, end, line in _lines(file, start):
            trajectory = _parsed(line)
            if trajectory is not None:
                rows.append({"at": at, **facts(trajectory)})
            bad += trajectory is None
            place = end
            if len(rows) + bad >= MAX_ROWS or place - start > MAX_READ:
                break
        return {
            "rows": rows,
            "next": place,
            "more": len(rows) + bad >= MAX_ROWS or place - start > MAX_READ,
            "earlier": earlier,
            "bad": bad,
            "again": again,
            "open": [facts(t) for t in _playing(file)],
        }

    def episode(self, name: str, at: int) -> dict[str, Any]:
        """The episode whose line begins at a byte. Raises NoSuchResults."""
        for _, _, line in _lines(self._file(name), at):
            if trajectory := _parsed(line):
                return _with_text(trajectory)
            break
        raise NoSuchResults(f"{name} has no episode at byte {at}")

    def open_episode(self, name: str, task: str, seed: int) -> dict[str, Any]:
        """An episode that is being played. Raises NoSuchResults, also once it has ended."""
        for trajectory in _playing(self._file(name)):
            if (trajectory.task_id, trajectory.seed) == (task, seed):
                return _with_text(trajectory)
        raise NoSuchResults(f"{task} with seed {seed} is not being played")

    def _file(self, name: str) -> Path:
        """The results file of a name that `files` gave. Raises NoSuchResults for any other."""
        file = Path(name, _RESULTS)
        for folder in self.folders:
            below = file.is_relative_to(folder) and ".." not in file.relative_to(folder).parts
            if below and file.is_file():
                return file
        raise NoSuchResults(f"no results in {name!r}")


def facts(t: Trajectory) -> dict[str, Any]:
    """What a list of episodes shows of one."""
    return {
        "env": t.env,
        "task": t.task_id,
        "type": t.task_type,
        "split": t.split,
        "agent": t.agent,
        "seed": t.seed,
        "steps": len(t.steps),
        "score": score(t),
        "outcome": outcome(t),
    }


def _with_text(t: Trajectory) -> dict[str, Any]:
    return {**facts(t), **episode_text(t)}


def _playing(file: Path) -> list[Trajectory]:
    try:
        lines = [line for _, _, line in _lines(file.with_name(OPEN_EPISODES), 0)]
    except OSError:
        return []
    return [trajectory for line in lines[:MAX_ROWS] if (trajectory := _parsed(line))]


def _lines(file: Path, start: int) -> Iterator[tuple[int, int, bytes]]:
    """(begin, end, line) of the complete lines from a byte on; of a line that is too long, b""."""
    with open_file(file, "rb") as opened:
        opened.seek(start)
        while True:
            begin = opened.tell()
            line = opened.readline(MAX_LINE)
            if line.endswith(b"\n"):
                yield begin, opened.tell(), line
            elif len(line) < MAX_LINE or not _rest_of_line(opened):
                return  # still being written
            else:
                yield begin, opened.tell(), b""


def _line_after(file: Path, place: int) -> int:
    """Where the first line begins that begins behind a byte."""
    with open_file(file, "rb") as opened:
        opened.seek(place)
        _rest_of_line(opened)
        return opened.tell()


def _rest_of_line(opened: Any) -> bool:
    """Skips to the next line; whether there is an end of this one."""
    while part := opened.readline(1 << 20):
        if part.endswith(b"\n"):
            return True
    return False


def _parsed(line: bytes) -> Trajectory | None:
    try:
        return Trajectory.from_json(line.decode("utf-8", "replace"))
    except ValueError:
        return None


def _modified(file: Path) -> float:
    """When the file last changed, in seconds since 1970; 0 if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
