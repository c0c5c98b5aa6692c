"""Where games come from: ALFWorld's own folders, an archive of them, or the generator.

A source lists the ids of a split's playable games and gives a game's content; it writes nothing
next to the data. Splits: train, dev = valid_seen, test = valid_unseen, as in the paper. Playable
means playable by upstream's loader: next to the game is a `traj_data.json` of one of the six task
types, the game is marked solvable, and its path names nothing movable or sliced.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn, Protocol

from stepagent.envs.alfworld import engine
from stepagent.envs.alfworld.generate import GeneratedGames
from stepagent.envs.alfworld.household import TYPES
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.core import SPLITS, checksum
from stepagent.files import build_once, cache_folder

FOLDERS = {"train": "train", "dev": "valid_seen", "test": "valid_unseen"}
"""Our split → upstream's folder."""
ROOT = "json_2.1.1"
GAME, TRAJECTORY = "game.tw-pddl", "traj_data.json"
MAX_GAME = 8_000_000
"""Bytes that one game file may have (the largest known has 150,000)."""
MAX_GAMES = 200_000

_SOLVABLE = re.compile(rb'(?<!\\)"solvable"\s*:\s*(true|false)')
_TASK_TYPE = re.compile(rb'(?<!\\)"task_type"\s*:\s*"([\w-]+)"')


class Source(Protocol):
    """Games of all splits."""

    def tasks(self, split: str) -> tuple[str, ...]:
        """Ids of the split's games, sorted. Raises ValueError if there is none."""

    def load(self, task_id: str) -> dict[str, Any]:
        """The content of a game file. Raises GameError that names the file."""

    def checksum(self) -> str:
        """A checksum of the games, for fingerprints."""


def open_source(data: str | os.PathLike[str] | None) -> Source:
    """The source that `data` names: None generates games.

    Raises FileNotFoundError, or ValueError for anything but a folder or a `.tar.zst`.
    """
    if data is None:
        return GeneratedGames()
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Archive(path)
    except PermissionError as error:
        _unreadable(path, error)
    raise FileNotFoundError(f"no ALFWorld games at {path}: there is no such folder or file")


class Folder:
    """`json_2.1.1/{train,valid_seen,valid_unseen}`, given as that folder or the one above it."""

    def __init__(self, path: Path):
        inner = path / ROOT
        self.path, self.named = inner if inner.is_dir() else path, path

    def tasks(self, split: str) -> tuple[str, ...]:
        folder = self.path / FOLDERS[split]
        try:
            return _playable(folder, split, str(self.named), folder.stat().st_mtime_ns)
        except FileNotFoundError:
            _no_games(split, f"{folder} (from data={str(self.named)!r})", Counter())

    def load(self, task_id: str) -> dict[str, Any]:
        for name in FOLDERS.values():
            path = self.path / name / task_id / GAME
            if path.is_file():
                try:
                    return engine.parse(path.read_bytes())
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
def _playable(folder: Path, split: str, source: str, _changed: int) -> tuple[str, ...]:
    """Ids of a folder's playable games. Cached, as many environments of a process need it."""
    skipped: Counter[str] = Counter()
    ids = []
    try:
        for game in _files(folder):
            where = game.parent.relative_to(folder).as_posix()
            beside = game.with_name(TRAJECTORY)
            trajectory = beside.read_bytes() if beside.is_file() else None
            reason = unplayable(str(game), where, game.read_bytes(), trajectory)
            if reason:
                skipped[reason] += 1
            else:
                ids.append(where)
    except OSError as error:
        _unreadable(folder, error)
    if not ids:
        _no_games(split, f"{folder} (from data={source!r})", skipped)
    return tuple(sorted(ids))


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
        return f"no {TRAJECTORY} beside the game"
    kind = _TASK_TYPE.search(trajectory)
    if not kind or kind[1].decode() not in TYPES:
        return "another type of task"
    solvable = _SOLVABLE.search(game)
    if not solvable:
        return "not checked for being solvable"
    return "" if solvable[1] == b"true" else "not solvable"


def _no_games(split: str, where: str, skipped: Counter[str]) -> NoReturn:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    raise ValueError(
        f"0 playable ALFWorld games for split {split!r} in {where}: "
        + (f"left out were {reasons}" if reasons else f"no {GAME} lies there")
        + ". data= names the folder that holds "
        + f"{ROOT}/{{{','.join(FOLDERS.values())}}}, or a .tar.zst of it."
    )


def _unreadable(path: Path, error: OSError) -> NoReturn:
    raise PermissionError(
        f"cannot read ALFWorld games at {path}: {error.strerror or error}. Check the permissions."
    ) from error


class Archive:
    """A `.tar.zst` (or any tar) of the folders, read once and then from the cache."""

    def __init__(self, path: Path):
        self.path = path
        self._index: dict[str, Any] | None = None

    @property
    def folder(self) -> Path:
        return cache_folder() / "alfworld" / self.checksum()

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        try:
            with self.path.open("rb") as file:
                parts = iter(lambda: file.read(1 << 20), b"")
                return checksum("v1", *parts)
        except OSError as error:
            _unreadable(self.path, error)

    def index(self) -> dict[str, Any]:
        if self._index is None:
            folder = self.folder
            build_once(folder, self._unpack, lambda: (folder / "index.json").is_file())
            self._index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self._games = folder / "games.bin"
        return self._index

    def tasks(self, split: str) -> tuple[str, ...]:
        index = self.index()
        ids = sorted(index["splits"].get(split, {}))
        if not ids:
            _no_games(split, f"{FOLDERS[split]} of {self.path}", Counter(index["skipped"]))
        return tuple(ids)

    def load(self, task_id: str) -> dict[str, Any]:
        splits = self.index()["splits"]
        start, size = next(games[task_id] for games in splits.values() if task_id in games)
        try:
            with self._games.open("rb") as file:
                file.seek(start)
                return engine.parse(zlib.decompress(file.read(size)))
        except (GameError, zlib.error, OSError) as error:
            raise GameError(f"{task_id} of {self.path}: {error}") from None

    def _unpack(self, folder: Path) -> None:
        """Streams the archive; games are compressed one by one, so that reading one is fast."""
        splits: dict[str, dict[str, tuple[int, int]]] = {split: {} for split in SPLITS}
        skipped: Counter[str] = Counter()
        at = 0
        with (folder / "games.bin").open("wb") as out:
            for split, where, game, trajectory in _pairs(self._members()):
                reason = unplayable(f"{where} of {self.path}", where, game, trajectory)
                if reason:
                    skipped[reason] += 1
                    continue
                packed = zlib.compress(game, 3)
                out.write(packed)
                splits[split][where] = (at, len(packed))
                at += len(packed)
        index = {"splits": splits, "skipped": skipped}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def _members(self) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Name and content of every file of interest, in the archive's order."""
        try:
            with (
                self.path.open("rb") as file,
                tarfile.open(fileobj=_plain(file, self.path), mode="r|*") as tar,
            ):
                for member in tar:
                    if member.isfile() and member.name.endswith((GAME, TRAJECTORY)):
                        yield member.name, _reader(tar, member)
        except PermissionError as error:
            _unreadable(self.path, error)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise GameError(f"{self.path} is not a complete tar archive: {error}") from error


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file = tar.extractfile(member)
        if file is None or member.size > MAX_GAME:
            raise GameError(f"{member.name} is larger than {MAX_GAME} bytes")
        return file.read()

    return read


def _plain(file: Any, path: Path) -> Any:
    """The stream without zstandard's compression, if it has any."""
    magic = file.read(4)
    file.seek(0)
    if magic != b"\x28\xb5\x2f\xfd":
        return file
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(file)
    return _Zstandard(reader, path, zstandard.ZstdError)


class _Zstandard:
    """A reader whose errors are OSErrors, as tarfile expects them."""

    def __init__(self, reader: Any, path: Path, error: type[Exception]):
        self._reader, self._path, self._error = reader, path, error

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._error as error:
            raise OSError(f"its compression is broken ({error})") from None


def _pairs(
    members: Iterable[tuple[str, Callable[[], bytes]]],
) -> Iterator[tuple[str, str, bytes, bytes | None]]:
    """(split, id, game, trajectory) of every game, whichever of the two files comes first."""
    names = {folder: split for split, folder in FOLDERS.items()}
    waiting: dict[tuple[str, str], dict[str, bytes]] = {}
    for count, (name, read) in enumerate(members):
        if count > 2 * MAX_GAMES:
            raise GameError(f"the archive holds more than {MAX_GAMES} games")
        parts = name.split("/")
        split = next((i for i, part in enumerate(parts[:-1]) if part in names), None)
        if split is None:
            continue
        key = (names[parts[split]], "/".join(parts[split + 1 : -1]))
        files = waiting.setdefault(key, {})
        files[parts[-1]] = read()
        if len(files) == 2:
            yield *key, files[GAME], files[TRAJECTORY]
            del waiting[key]
    for key, files in waiting.items():
        if GAME in files:
            yield *key, files[GAME], None
