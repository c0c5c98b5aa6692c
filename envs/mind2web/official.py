"""The official files of Mind2Web: plain JSON or password-protected zip archives, of any size.

A folder contains, at any depth, files `*.json` under (or named after) `train`, `test_task`,
`test_website` and `test_domain`, or `.zip` archives of such files (the published test sets are
encrypted to keep them out of training corpora; Python's zipfile reads that encryption). Files have
some hundred megabytes each and contain every page twice. So each set is read once, as a stream, and
packed into `$STEPAGENT_CACHE`: an index, and a compressed file per task with one of the two pages.
What was encrypted is there in plain text.
"""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from stepagent.envs.core import checksum
from stepagent.envs.json_stream import JSONError, JSONStream
from stepagent.envs.mind2web.records import Problems, Task, task_from_official
from stepagent.files import build_once, cache_folder

log = logging.getLogger(__name__)

SETS = ("train", "test_task", "test_website", "test_domain")
_FORMAT = "1"


class OfficialFolder:
    """The official files of a folder as tasks. See the module's docstring."""

    def __init__(
        self, folder: Path, test_set: str, html: str, password: str | None, problems: Problems
    ):
        self.folder, self.html, self.password, self.problems = folder, html, password, problems
        self._sets = {
            "train": "train",
            "dev": "test_website" if test_set == "task" else "test_task",
            "test": f"test_{test_set}",
        }
        self._where: dict[str, Path] = {}

    def ids(self, split: str) -> Sequence[str]:
        packed = self._packed(self._sets[split])
        index = json.loads((packed / "index.json").read_text(encoding="utf-8"))
        for kind, places in index["problems"].items():
            for place in places:
                self.problems.add(kind, place)
        self._where.update({name: packed / f"{i}.json.gz" for i, name in enumerate(index["ids"])})
        return index["ids"]

    def task(self, task_id: str) -> Task:
        with gzip.open(self._where[task_id], "rt", encoding="utf-8") as file:
            task = task_from_official(json.load(file), self.html, self.problems)
        assert task is not None  # only readable tasks are packed
        return task

    def checksum(self) -> str:
        return checksum(*(f"{name}{size}" for name, size, _ in self._listing))

    @cached_property
    def _listing(self) -> list[tuple[str, int, int]]:
        paths = [p for p in self.folder.rglob("*") if p.suffix in (".json", ".zip") and p.is_file()]
        stats = [(str(p.relative_to(self.folder)), p.stat()) for p in sorted(paths)]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def _packed(self, name: str) -> Path:
        """The folder with a set's tasks; built if it is missing."""
        key = checksum(_FORMAT, self.html, name, str(self.folder.resolve()), str(self._listing))
        target = cache_folder() / "mind2web" / f"{name}-{key}"
        build_once(target, lambda folder: self._pack(name, folder))
        return target

    def _pack(self, name: str, folder: Path) -> None:
        """Reads a set and writes its tasks into the folder."""
        files = [file for file, _, _ in self._listing]
        members = list(_members(self.folder, files, name, self.password))
        if not members:
            raise ValueError(
                f"{self.folder.absolute()} has no file of the set {name!r}: looked for "
                f"{name}/*.json, {name}*.json and zip archives of them; it holds "
                f"{', '.join(files[:8]) or 'no .json or .zip file'}"
            )
        log.warning("packing Mind2Web's %s once (minutes for the whole set)", name)
        problems = Problems()
        ids: dict[str, str] = {}
        other = "raw_html" if self.html == "cleaned" else "cleaned_html"
        for member in members:
            with member.open() as file:
                for record in objects(file, str(member)):
                    task = task_from_official(record, self.html, problems)
                    if task is None or task.id in ids:
                        continue
                    for action in record["actions"]:
                        if isinstance(action, dict):
                            action.pop(other, None)
                    path = folder / f"{len(ids)}.json.gz"
                    with gzip.open(path, "wt", encoding="utf-8", compresslevel=4) as packed:
                        json.dump(record, packed)
                    ids[task.id] = path.name
        if not ids:
            raise ValueError(
                f"no task of Mind2Web in {', '.join(map(str, members))}: {problems.counts()}"
            )
        problem_places = {kind: sorted(places) for kind, places in problems.items()}
        text = json.dumps({"ids": list(ids), "problems": problem_places})
        (folder / "index.json").write_text(text, encoding="utf-8")


class _Member:
    """A file of tasks: on disk, or inside an archive."""

    def __init__(self, path: Path, inside: str | None, password: str | None):
        self.path, self.inside, self.password = path, inside, password

    def __str__(self) -> str:
        return f"{self.path}" + (f"[{self.inside}]" if self.inside else "")

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file. Raises ValueError if the password is missing or wrong."""
        if self.inside is None:
            with self.path.open("rb") as file:
                yield file
            return
        password = self.password.encode() if self.password else None
        try:
            with (
                zipfile.ZipFile(self.path) as archive,
                archive.open(self.inside, pwd=password) as file,
            ):
                yield file
        except NotImplementedError as error:
            raise ValueError(
                f"{self}: {error}: unpack the archive by hand (7z, unzip) and name the folder"
            ) from None
        except (RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            # The check of this old encryption is one byte: a wrong password may also show later,
            # as data that cannot be unpacked.
            advice = "the password given is wrong" if self.password else "give its password"
            raise ValueError(
                f"{self} cannot be unpacked ({error}). If it is encrypted: {advice} "
                "(argument `password`; the benchmark's authors publish it next to the file)"
            ) from None


def _members(
    folder: Path, files: Sequence[str], name: str, password: str | None
) -> Iterator[_Member]:
    """The set's files; plain ones are preferred to archives."""
    plain = [file for file in files if file.endswith(".json") and _belongs(Path(file), name)]
    if plain:
        yield from (_Member(folder / file, None, password) for file in plain)
        return
    for file in files:
        if not file.endswith(".zip"):
            continue
        try:
            with zipfile.ZipFile(folder / file) as archive:
                inside = sorted(n for n in archive.namelist() if n.endswith(".json"))
        except zipfile.BadZipFile as error:
            raise ValueError(f"{folder / file} is not a zip archive ({error})") from None
        for path in inside:
            if _belongs(Path(path), name) or (
                _belongs(Path(file), name) and not _names_a_set(path)
            ):
                yield _Member(folder / file, path, password)


def _belongs(path: Path, name: str) -> bool:
    return any(part == name or part.startswith((f"{name}_", f"{name}.")) for part in path.parts)


def _names_a_set(path: str) -> bool:
    return any(_belongs(Path(path), name) for name in SETS)


def objects(file: IO[bytes], name: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array (or one after another), read one by one.

    Raises ValueError if the text is not JSON.
    """
    try:
        yield from (item for item in JSONStream(file) if isinstance(item, dict))
    except JSONError as error:
        raise ValueError(f"{name} is not JSON of Mind2Web: {error}") from None
