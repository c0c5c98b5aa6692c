"""The official files of Mind2Web: JSON, parquet, or password-protected zip archives, of any size.

A folder contains, at any depth, files under (or named after) `train`, `test_task`, `test_website`
and `test_domain`, or `.zip` archives of such files (the published test sets are encrypted to keep
them out of training corpora; Python's zipfile reads that encryption); an archive may also be named
by itself. Each set is packed when it is first needed (`packs.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from stepagent.envs.containers import COMPRESSED, Member, SourceError, kind_of, members
from stepagent.envs.core import checksum
from stepagent.envs.mind2web.packs import Pack, open_pack
from stepagent.envs.mind2web.records import Problems, StepFacts, Task
from stepagent.files import open_file

SETS = ("train", "test_task", "test_website", "test_domain")
_ENDINGS = (".json", ".jsonl", ".parquet", ".zip", *COMPRESSED)


class OfficialFiles:
    """The official files in a folder, or in one zip archive. See the module's docstring."""

    def __init__(
        self, path: Path, test_set: str, html: str, password: str | None, problems: Problems
    ):
        self.path, self.html, self.password, self.problems = path, html, password, problems
        self._sets = {
            "train": "train",
            "dev": "test_website" if test_set == "task" else "test_task",
            "test": f"test_{test_set}",
        }
        self._packs: dict[str, Pack] = {}

    def ids(self, split: str) -> Sequence[str]:
        pack = self._pack(self._sets[split])
        return list(pack.websites())

    def facts(self, split: str) -> Mapping[str, Sequence[StepFacts]]:
        pack = self._pack(self._sets[split])
        return {task: pack.facts(task) for task in pack.websites()}

    def left_out(self, split: str) -> Mapping[str, int]:
        return self._pack(self._sets[split]).left_out

    def task(self, task_id: str) -> Task:
        pack = next(pack for pack in self._packs.values() if task_id in pack)
        return pack.task(task_id, self.problems)

    def checksum(self) -> str:
        return checksum(*(f"{name}{size}" for name, size, _ in self._listing))

    @cached_property
    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        return sorted(
            path
            for path in self.path.rglob("*")
            if path.suffix in _ENDINGS and path.is_file() and not path.name.startswith(".")
        )

    @cached_property
    def _listing(self) -> list[tuple[str, int, int]]:
        stats = [(self._name(path), path.stat()) for path in self._files]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix() if path != self.path else path.name

    def _pack(self, name: str) -> Pack:
        if name not in self._packs:
            files = list(self._members(name))
            if not files:
                listed = ", ".join(self._name(path) for path in self._files[:8])
                raise SourceError(
                    f"{self.path.absolute()} has no file of the set {name!r}: looked for "
                    f"{name}/*.json, {name}*.json or .parquet and zip archives of them; it holds "
                    f"{listed or 'no .json, .parquet or .zip file'}"
                )
            key = str((str(self.path.resolve()), self._listing))
            pack = open_pack(name, key, files, self.html, self.password)
            for kind, places in pack.problems.items():
                for place in places:
                    self.problems.add(kind, place)
            self._packs[name] = pack
        return self._packs[name]

    def _members(self, name: str) -> Iterator[Member]:
        """The set's files; plain ones are preferred to archives."""
        plain = [
            path
            for path in self._files
            if path.suffix != ".zip" and path != self.path and belongs(self._name(path), name)
        ]
        if plain:
            yield from (member for path in plain for member in members(path))
            return
        for path in self._files:
            if path.suffix != ".zip" and path != self.path:
                continue
            with open_file(path, "rb") as file:
                if kind_of(file.read(1024)) != "zip":
                    raise SourceError(f"{path} is not a zip archive: fetch or make the file again")
            for member in members(path, self.password):
                if belongs(member.inside, name) or (
                    belongs(path.name, name) and not names_a_set(member.inside)
                ):
                    yield member


def belongs(path: str, name: str) -> bool:
    """Whether a file's path says that it is of the set.

    >>> belongs("data/train/train_0.json", "train"), belongs("train-00000-of-27.parquet", "train")
    (True, True)
    """
    parts = PurePosixPath(path).parts
    return any(
        part == name or part.startswith((f"{name}_", f"{name}.", f"{name}-")) for part in parts
    )


def names_a_set(path: str) -> bool:
    return any(belongs(path, name) for name in SETS)
