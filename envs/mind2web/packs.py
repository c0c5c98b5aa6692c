"""Files of Mind2Web's tasks, of any size: each read once, as a stream, and packed into the cache.

A file holds tasks in the official format (objects with `actions`) or rows of single steps, as a
JSON array, as JSON lines, or as parquet; plain, compressed or inside a zip archive
(`envs.containers`). Official files have some hundred megabytes each and contain every page twice;
a pack in `$STEPAGENT_CACHE` is an index, and a compressed file per task with one of the two pages.
What was encrypted is there in plain text.
"""

from __future__ import annotations

import gzip
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stepagent.envs import tables
from stepagent.envs.containers import TABLES, Member, SourceError
from stepagent.envs.core import checksum
from stepagent.envs.mind2web.records import (
    Problems,
    StepFacts,
    Task,
    page_fields,
    task_from_official,
    tasks_from_rows,
)
from stepagent.envs.records import Record, text_records
from stepagent.files import build_once, cache_folder, read_text

log = logging.getLogger(__name__)

_FORMAT = "2"
_LARGE = 100_000_000
"""Bytes of files from which on packing them is announced."""
_LARGEST = 400_000_000
"""Characters that one task may have (the largest known have some ten millions)."""
_ROW_FIELDS = (
    *("annotation_id", "action_uid", "website", "domain", "subdomain", "confirmed_task"),
    *("actions", "action_reprs", "action_idx", "target_action_index", "previous_actions"),
    *("operation", "candidates", "pos_backend_node_ids", "pos_candidates", "neg_candidates"),
)
"""Columns that are read of a table, besides the page: not the screenshots, nearly all its space."""


def records(member: Member, password: str | None, problems: Problems) -> Iterator[dict[str, Any]]:
    """The objects of a file; lines and values that are none are counted.

    Raises SourceError that names the file, and the record where the rest cannot be read.
    """
    with _password_named(member, password), member.opened() as (kind, file):
        if kind in TABLES and not member.inside:
            names = [*_ROW_FIELDS, *page_fields("cleaned"), *page_fields("raw")]
            yield from tables.rows(member.path, kind, names)
        elif kind == "text":
            yield from objects(file, str(member), problems)
        else:
            raise member.refused(kind)


@contextmanager
def _password_named(member: Member, password: str | None) -> Iterator[None]:
    """Says of an encrypted file that cannot be read what is wrong with the password.

    The check of zip's old encryption is one byte: a wrong password may also show later, as data
    that cannot be unpacked.
    """
    try:
        yield
    except SourceError as error:
        if not member.inside or not _is_encrypted(member):
            raise
        given = "the password given is wrong, or the file is damaged"
        advice = given if password else "give its password"
        raise SourceError(
            f"{member} is encrypted and cannot be unpacked: {advice} (argument `password`; the "
            f"benchmark's authors publish it next to the file). {error}"
        ) from None


def _is_encrypted(member: Member) -> bool:
    try:
        with zipfile.ZipFile(member.path) as archive:
            return bool(archive.getinfo(member.inside).flag_bits & 1)
    except (zipfile.BadZipFile, KeyError):
        return False


def objects(
    file: IO[bytes], name: str, problems: Problems | None = None
) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, of JSON lines, or one after another, read one by one.

    Lines and values that are no objects are counted. Raises SourceError if the text is not JSON.
    """
    problems = problems or Problems()
    for record in _text_records(name, file):
        if record.problem and not record.place.startswith("line"):
            raise SourceError(
                f"{name} is not JSON of Mind2Web: {record.place}: {record.problem}: fetch or make "
                "the file again"
            )
        if record.problem:
            problems.add("line that is not JSON", f"{name}, {record.place}: {record.problem}")
        elif not isinstance(record.value, dict):
            problems.add("record that is not an object", f"{name}, {record.place}")
        else:
            yield record.value


def _text_records(name: str, file: IO[bytes]) -> Iterator[Record]:
    try:
        yield from text_records(name, file, _LARGEST)
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{name}: {error}" if name not in str(error) else str(error)) from None


LEFT_OUT = (
    "line that is not JSON",
    "record that is not an object",
    "row without annotation_id or confirmed_task",
    "task without id, instruction or actions",
    "task whose id was there before",
)
"""Problems of records that are in no task."""


@dataclass(frozen=True)
class _Entry:
    file: str
    website: str
    steps: tuple[StepFacts, ...]


class Pack:
    """Packed tasks, in the order of their files; `open_pack` makes one."""

    def __init__(self, folder: Path, html: str):
        index = json.loads(read_text(folder / "index.json"))
        self._folder, self._html = folder, html
        self.problems: dict[str, list[str]] = index["problems"]
        self._entries = {
            task: _Entry(file, website, tuple(StepFacts(*step) for step in steps))
            for task, file, website, steps in index["tasks"]
        }

    def websites(self) -> dict[str, str]:
        """Task id → website."""
        return {task: entry.website for task, entry in self._entries.items()}

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    def facts(self, task_id: str) -> tuple[StepFacts, ...]:
        """What each of the task's steps has."""
        return self._entries[task_id].steps

    @property
    def left_out(self) -> dict[str, int]:
        """Why records of the files are in no task: reason → count."""
        return {kind: len(self.problems[kind]) for kind in LEFT_OUT if kind in self.problems}

    def task(self, task_id: str, problems: Problems) -> Task:
        """The task, read from its file; its defects are counted."""
        task = _task(_lines(self._folder / self._entries[task_id].file), self._html, problems)
        assert task is not None  # only readable tasks are packed
        return task


def open_pack(
    name: str, key: str, members: Sequence[Member], html: str, password: str | None
) -> Pack:
    """The pack of these files; made if it is missing. `key`: changes when the files do.

    Raises SourceError where they hold no task, naming them.
    """

    def build(folder: Path) -> None:
        if sum(member.size for member in members) > _LARGE:
            log.warning("packing Mind2Web's %s once (minutes for the whole set)", name)
        writer = _Writer(folder, html)
        for member in members:
            for number, record in enumerate(records(member, password, writer.problems), 1):
                writer.add(f"{member}, record {number}", record)
        writer.close(", ".join(map(str, members)))

    target = cache_folder() / "mind2web" / f"{name}-{checksum(_FORMAT, html, name, key)}"
    build_once(target, build)
    return Pack(target, html)


class _Writer:
    """Writes tasks into a folder: a compressed file per task, of its record or its rows."""

    def __init__(self, folder: Path, html: str):
        self.folder, self.html, self.problems = folder, html, Problems()
        self.files: dict[str, str] = {}
        self.facts: dict[str, tuple[str, list[tuple[Any, ...]]]] = {}
        self._unused = page_fields("raw" if html == "cleaned" else "cleaned")

    def add(self, place: str, record: dict[str, Any]) -> None:
        """Adds a task, or a row of one."""
        if "actions" in record:
            task = task_from_official(record, self.html, self.problems)
            if task is not None and self._is_new(task.id, place):
                for action in record["actions"]:
                    for field in self._unused if isinstance(action, dict) else ():
                        action.pop(field, None)
                self._store(task.id, record)
                self.facts[task.id] = _facts(task)
            return
        task_id = str(record.get("annotation_id") or "")
        if not task_id or not str(record.get("confirmed_task") or "").strip():
            self.problems.add("row without annotation_id or confirmed_task", place)
        elif task_id in self.facts:
            self._is_new(task_id, place)
        else:
            self._store(task_id, {k: v for k, v in record.items() if k not in self._unused})

    def _is_new(self, task_id: str, place: str) -> bool:
        if task_id in self.files:
            self.problems.add("task whose id was there before", place)
        return task_id not in self.files

    def _store(self, task_id: str, record: dict[str, Any]) -> None:
        path = self.folder / self.files.setdefault(task_id, f"{len(self.files)}.json.gz")
        with gzip.open(path, "at", encoding="utf-8", compresslevel=4) as packed:
            packed.write(json.dumps(record, default=str) + "\n")

    def close(self, source: str) -> None:
        """Writes the index. Raises SourceError where there is no task."""
        if not self.files:
            raise SourceError(
                f"no task of Mind2Web in {source} ({self.problems.first() or 'it holds no record'}"
                "): objects with annotation_id, confirmed_task and actions are due, or rows of "
                "single steps"
            )
        for task_id, file in self.files.items():
            if task_id not in self.facts:
                task = _task(_lines(self.folder / file), self.html, self.problems)
                assert task is not None
                self.facts[task_id] = _facts(task)
        tasks = [(task, self.files[task], *self.facts[task]) for task in self.files]
        problems = {kind: sorted(places) for kind, places in self.problems.items()}
        text = json.dumps({"tasks": tasks, "problems": problems})
        (self.folder / "index.json").write_text(text, encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as packed:
        return [json.loads(line) for line in packed]


def _task(records: list[dict[str, Any]], html: str, problems: Problems) -> Task | None:
    if "actions" in records[0]:
        return task_from_official(records[0], html, problems)
    return next(iter(tasks_from_rows(records, problems, html)), None)


def _facts(task: Task) -> tuple[str, list[tuple[Any, ...]]]:
    steps = [
        (step.uid, bool(step.html.strip()), bool(step.candidates), bool(step.positives))
        for step in task.steps
    ]
    return task.website, steps
