"""Where games come from: ALFWorld's own folders, archives of them, or the generator.

A source lists the ids of a split's playable games and gives a game's content; it writes nothing
next to the data. An archive is a `.zip` or a tar, compressed or not; the official downloads come as
two, one with the games and one with the trajectories: their folder is named. Splits: train, dev =
valid_seen, test = valid_unseen, as in the paper. Playable means playable by upstream's loader: next
to the game is a `traj_data.json` of one of the six task types, the game is marked solvable, and its
path names nothing movable or sliced.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from stepagent.envs.alfworld import engine
from stepagent.envs.alfworld.generate import GeneratedGames
from stepagent.envs.alfworld.household import TYPES
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.containers import Member, members
from stepagent.envs.core import SPLITS, checksum
from stepagent.files import build_once, cache_folder, open_file, read_bytes, read_text

log = logging.getLogger(__name__)

FOLDERS = {"train": "train", "dev": "valid_seen", "test": "valid_unseen"}
"""Our split → upstream's folder."""
ROOT = "json_2.1.1"
GAME, TRAJECTORY = "game.tw-pddl", "traj_data.json"
MAX_GAME = 8_000_000
"""Bytes that one game file may have (the largest known has 150,000)."""
MAX_GAMES = 200_000
_FEW = 64
"""Games that wait for their trajectories as they are."""
NO_TRAJECTORY = f"no {TRAJECTORY} beside the game"
NOT_CHECKED = "not checked for being solvable"

_SOLVABLE = re.compile(rb'(?<!\\)"solvable"\s*:\s*(true|false)')
_TASK_TYPE = re.compile(rb'(?<!\\)"task_type"\s*:\s*"([\w-]+)"')


class Source(Protocol):
    """Games of all splits."""

    def tasks(self, split: str) -> tuple[str, ...]:
        """Ids of the split's games, sorted. Raises ValueError if there is none."""

    def load(self, task_id: str) -> dict[str, Any]:
        """The content of a game file. Raises GameError that names the file."""

    def left_out(self, split: str) -> dict[str, int]:
        """Why games of the split are not played: reason → count."""

    def checksum(self) -> str:
        """A checksum of the games, for fingerprints."""


def open_source(data: str | os.PathLike[str] | None, sizes: Sequence[int] | None = None) -> Source:
    """The source that `data` names: None generates games, as many of each type as `sizes` says.

    Raises FileNotFoundError, or ValueError for anything but a folder or an archive, or for sizes of
    games that are not generated.
    """
    if data is None:
        return GeneratedGames() if sizes is None else GeneratedGames(sizes)
    if sizes is not None:
        raise ValueError("sizes is for generated games: it cannot be given with data")
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            folder = Folder(path)
            archives = [] if folder.exists() else _archives(path)
            return Archives(path, archives) if archives else folder
        if path.is_file():
            return Archives(path, [path])
    except PermissionError as error:
        _unreadable(path, error)
    raise FileNotFoundError(f"no ALFWorld games at {path}: there is no such folder or file")


class Folder:
    """`json_2.1.1/{train,valid_seen,valid_unseen}`, given as that folder or the one above it."""

    def __init__(self, path: Path):
        inner = path / ROOT
        self.path, self.named = inner if inner.is_dir() else path, path

    def exists(self) -> bool:
        """Whether the folder has the layout."""
        return any((self.path / name).is_dir() for name in FOLDERS.values())

    def tasks(self, split: str) -> tuple[str, ...]:
        ids, skipped = self._listed(split)
        if not ids:
            folder = self.path / FOLDERS[split]
            _no_games(split, f"{folder} (from data={str(self.named)!r})", skipped)
        return ids

    def left_out(self, split: str) -> dict[str, int]:
        return dict(self._listed(split)[1])

    def _listed(self, split: str) -> tuple[tuple[str, ...], Counter[str]]:
        folder = self.path / FOLDERS[split]
        if not folder.is_dir():
            return (), Counter()
        return _playable(folder, folder.stat().st_mtime_ns)

    def load(self, task_id: str) -> dict[str, Any]:
        for name in FOLDERS.values():
            path = self.path / name / task_id / GAME
            if path.is_file():
                try:
                    return engine.parse(read_bytes(path))
                except GameError as error:
                    raise GameError(f"{path}: {error}") from None
                except OSError as error:
                    _unreadable(path, error)
        raise FileNotFoundError(f"no game {task_id} in {self.path}: it was there a moment ago")

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        sizes = []
        for name in FOLDERS.values():
            folder = self.path / name
            if folder.is_dir():
                games = _files(folder)
                sizes += [
                    f"{g.relative_to(self.path).as_posix()} {g.stat().st_size}" for g in games
                ]
        return checksum(*sorted(sizes))


@lru_cache(maxsize=64)
def _playable(folder: Path, _changed: int) -> tuple[tuple[str, ...], Counter[str]]:
    """(ids of a folder's playable games, why others are not). Cached, as many environments of a
    process need it."""
    skipped: Counter[str] = Counter()
    ids = []
    try:
        for game in _files(folder):
            where = game.parent.relative_to(folder).as_posix()
            beside = game.with_name(TRAJECTORY)
            trajectory = read_bytes(beside) if beside.is_file() else None
            reason = unplayable(str(game), where, read_bytes(game), trajectory)
            if reason:
                skipped[reason] += 1
            else:
                ids.append(where)
    except OSError as error:
        _unreadable(folder, error)
    _warn(folder, skipped)
    return tuple(sorted(ids)), skipped


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return

    def stop(error: OSError) -> None:
        raise error

    for root, _, files in os.walk(folder, onerror=stop):
        if GAME in files:
            yield Path(root) / GAME


def unplayable(path: str, where: str, game: bytes, trajectory: bytes | None) -> str:
    """Why a game is not played; "" if it is. Raises GameError for a broken file."""
    if len(game) > MAX_GAME or not game.rstrip().endswith(b"}"):
        raise GameError(f"{path}: truncated or not a game file; fetch it again or remove it")
    if "movable" in where or "Sliced" in where:
        return "movable or sliced things"
    if trajectory is None:
        return NO_TRAJECTORY
    kind = _TASK_TYPE.search(trajectory)
    if not kind or kind[1].decode() not in TYPES:
        return "another type of task"
    solvable = _SOLVABLE.search(game)
    if not solvable:
        return NOT_CHECKED
    return "" if solvable[1] == b"true" else "not solvable"


def _warn(source: Path, skipped: Counter[str]) -> None:
    """Warns of games that lack something. (What upstream does not play either is only counted.)"""
    for reason in (NO_TRAJECTORY, NOT_CHECKED):
        if skipped[reason]:
            log.warning("%s: %d games are left out: %s", source, skipped[reason], reason)


def _no_games(split: str, where: str, skipped: Counter[str]) -> NoReturn:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    raise ValueError(
        f"0 playable ALFWorld games for split {split!r} in {where}: "
        + (f"left out were {reasons}" if reasons else f"no {GAME} lies there")
        + ". data= names the folder that holds "
        + f"{ROOT}/{{{','.join(FOLDERS.values())}}}, or a .zip or .tar.zst of it; of the official "
        + "downloads, the folder with both json_2.1.1_json.zip and json_2.1.3_tw-pddl.zip."
    )


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise PermissionError(
        f"cannot read ALFWorld games at {path}: {error.strerror or error}. Check the permissions."
    ) from error


def _archives(folder: Path) -> list[Path]:
    """The archives in a folder, sorted, so that json_2.1.1_json.zip comes before the games."""
    endings = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
    files = sorted(path for path in folder.iterdir() if path.name.endswith(endings))
    return [path for path in files if not path.name.startswith(".")]


class Archives:
    """One or several archives of the folders, read once and then from the cache."""

    def __init__(self, given: Path, paths: Sequence[Path]):
        self.given, self.paths = given, list(paths)
        self._index: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        return cache_folder() / "alfworld" / f"{self.checksum()}-2"

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        sums = []
        for path in self.paths:
            try:
                with open_file(path, "rb") as file:
                    parts = iter(lambda file=file: file.read(1 << 20), b"")  # type: ignore[misc]
                    sums.append(checksum("v1", *parts))
            except OSError as error:
                _unreadable(path, error)
        return sums[0] if len(sums) == 1 else checksum(*sums)

    def index(self) -> dict[str, Any]:
        if self._index is None:
            folder = self.folder
            build_once(folder, self._unpack)
            self._index = json.loads(read_text(folder / "index.json"))
            self._games = folder / "games.bin"
        return self._index

    def tasks(self, split: str) -> tuple[str, ...]:
        ids = sorted(self.index()["splits"][split])
        if not ids:
            _no_games(split, f"{FOLDERS[split]} of {self.given}", Counter(self.left_out(split)))
        return tuple(ids)

    def left_out(self, split: str) -> dict[str, int]:
        return dict(self.index()["skipped"][split])

    def load(self, task_id: str) -> dict[str, Any]:
        splits = self.index()["splits"]
        start, size = next(games[task_id] for games in splits.values() if task_id in games)
        try:
            with open_file(self._games, "rb") as file:
                file.seek(start)
                return engine.parse(zlib.decompress(file.read(size)))
        except (GameError, zlib.error, OSError) as error:
            raise GameError(f"{task_id} of {self.given}: {error}") from None

    def _unpack(self, folder: Path) -> None:
        """Streams the archives; games are compressed one by one, so that reading one is fast."""
        splits: dict[str, dict[str, tuple[int, int]]] = {split: {} for split in SPLITS}
        skipped: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        at = 0
        with (folder / "games.bin").open("wb") as out:
            for split, where, game, trajectory in _pairs(self._members()):
                reason = unplayable(f"{where} of {self.given}", where, game, trajectory)
                if reason:
                    skipped[split][reason] += 1
                    continue
                packed = zlib.compress(game, 3)
                out.write(packed)
                splits[split][where] = (at, len(packed))
                at += len(packed)
        _warn(self.given, sum(skipped.values(), Counter()))
        index = {"splits": splits, "skipped": skipped}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def _members(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Name and content of every file of interest, in the archives' order."""
        for path in self.paths:
            try:
                for member in members(path):
                    if member.name.endswith((f"/{GAME}", f"/{TRAJECTORY}")):
                        yield member.name, partial(_read, member)
                    elif not member.inside:
                        with member.opened() as (kind, _):
                            if kind != "text":
                                raise member.refused(kind)
            except PermissionError as error:
                _unreadable(path, error)


def _read(member: Member) -> bytes:
    with member.opened() as (_, file):
        content = file.read(MAX_GAME + 1)
    if len(content) > MAX_GAME:
        raise GameError(f"{member} is larger than {MAX_GAME} bytes")
    return content


def _pairs(
    files: Iterable[tuple[str, Callable[[], bytes]]],
) -> Iterator[tuple[str, str, bytes, bytes | None]]:
    """(split, id, game, trajectory) of every game, whichever of the two files comes first.

    Of a trajectory only the part with the task's type is given, so that thousands may wait; games
    wait in compressed form where many do.
    """
    names = {folder: split for split, folder in FOLDERS.items()}
    games: dict[tuple[str, str], Callable[[], bytes]] = {}
    trajectories: dict[tuple[str, str], bytes] = {}
    for count, (name, read) in enumerate(files):
        if count > 4 * MAX_GAMES:
            raise GameError(f"the archive holds more than {MAX_GAMES} games")
        parts = name.split("/")
        split = next((i for i, part in enumerate(parts[:-1]) if part in names), None)
        if split is None:
            continue
        key = (names[parts[split]], "/".join(parts[split + 1 : -1]))
        if parts[-1] == GAME:
            games[key] = _held(read(), compressed=len(games) >= _FEW)
        else:
            kind = _TASK_TYPE.search(read())
            trajectories[key] = kind[0] if kind else b""
        if key in games and key in trajectories:
            yield *key, games.pop(key)(), trajectories.pop(key)
    for key, game in games.items():
        yield *key, game(), None


def _held(content: bytes, compressed: bool) -> Callable[[], bytes]:
    """Function that gives the content back."""
    if not compressed:
        return lambda: content
    packed = zlib.compress(content, 3)
    return lambda: zlib.decompress(packed)
