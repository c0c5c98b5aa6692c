"""Mind2Web's tasks: official files, plain files of steps, and the bundled sites, in one format.

| `data`   | contents                                     | splits                               |
|----------|----------------------------------------------|--------------------------------------|
| None     | tasks on the bundled sites (`sites/`)        | by site; other domains in test       |
| a folder | the official files (`official.py`)           | train 1,009; test as `test_set` says |
| a file   | `.jsonl` of steps or tasks, `.json` of tasks | by website: about 70 / 10 / 20 %     |

Of the official test sets, `test_set="domain"` (cross-domain, 912 tasks, the paper's) is the split
test by default; alternatives are "task" (cross-task, 252) and "website" (cross-website, 177). The
benchmark has no development set: dev is cross-task (cross-website if cross-task is test).

Defects of the data are counted per step in a `Problems` and never raise; a file without any task,
or one that cannot be read, raises a ValueError that names it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from stepagent.envs.core import checksum
from stepagent.envs.mind2web.records import Problems, Task, task_from_official, tasks_from_rows

TEST_SETS = ("domain", "task", "website")
HTML_KINDS = ("cleaned", "raw")
MAX_FILE = 256_000_000
"""Bytes of a plain file of tasks, which is kept in memory. Official folders may have any size."""


class Source(Protocol):
    """Where tasks come from."""

    def ids(self, split: str) -> Sequence[str]:
        """Ids of a split ("train", "dev", "test")."""

    def task(self, task_id: str) -> Task:
        """The task, read on demand."""

    def checksum(self) -> str:
        """A checksum of the tasks' source."""


def open_source(
    data: str | Path | None,
    problems: Problems,
    *,
    test_set: str = "domain",
    html: str = "cleaned",
    password: str | None = None,
) -> Source:
    """The tasks of `data` (see the module's docstring).

    Raises ValueError if the path does not exist, cannot be read, or holds no task.
    """
    if test_set not in TEST_SETS:
        raise ValueError(f"unknown test_set {test_set!r}: choose one of {', '.join(TEST_SETS)}")
    if html not in HTML_KINDS:
        raise ValueError(f"unknown html {html!r}: choose one of {', '.join(HTML_KINDS)}")
    if data is None:
        from stepagent.envs.mind2web.sites import BundledSites

        return BundledSites(html, problems)
    path = Path(data).expanduser()
    if path.is_dir() and len(lines := list(path.glob("*.jsonl"))) == 1:
        path = lines[
            0
        ]  # a folder that contains one such file; the official files are .json and .zip
    if path.is_file():
        return PlainFile(path, html, problems)
    if path.is_dir():
        from stepagent.envs.mind2web.official import OfficialFolder

        return OfficialFolder(path, test_set, html, password, problems)
    raise ValueError(
        f"{path.absolute()} does not exist: `data` is the folder of the official files, a .json "
        "or .jsonl file of tasks or steps, or None for the bundled sites"
    )


class PlainFile:
    """Tasks of one file, in memory: official tasks (.json, .jsonl) or rows of steps (.jsonl).

    A row has annotation_id, action_uid, confirmed_task, previous_actions, candidates
    (backend_node_id and the element as text), pos_backend_node_ids, operation and the page; rows
    with the same annotation_id are one task, which consists of those steps.
    """

    def __init__(self, path: Path, html: str, problems: Problems):
        if path.stat().st_size > MAX_FILE:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_FILE:,} of a plain "
                "file: put it into a folder train/ and name the folder above"
            )
        raw = path.read_bytes()
        self._checksum = checksum(raw)
        records = _records(path, raw, problems)
        tasks = [task_from_official(r, html, problems) for r in records if "actions" in r]
        tasks += tasks_from_rows([r for r in records if "actions" not in r], problems)
        self._tasks = {task.id: task for task in tasks if task is not None and task.steps}
        if not self._tasks:
            raise ValueError(
                f"{path} holds no task of Mind2Web ({problems.counts()}): objects with "
                "annotation_id, confirmed_task and actions are due, or rows of single steps"
            )

    def ids(self, split: str) -> Sequence[str]:
        return split_by_website({t.id: t.website for t in self._tasks.values()})[split]

    def task(self, task_id: str) -> Task:
        return self._tasks[task_id]

    def checksum(self) -> str:
        return self._checksum


def split_by_website(websites: Mapping[str, str]) -> dict[str, list[str]]:
    """Task ids by split: a fifth of the websites is test, a tenth dev, in an order of checksums.

    `websites` maps task ids to websites. With fewer than three websites, the tasks are divided;
    with fewer than three tasks, all are train.
    """
    groups: dict[str, list[str]] = {}
    for task_id, website in websites.items():
        groups.setdefault(website, []).append(task_id)
    if len(groups) < 3:
        groups = {task_id: [task_id] for task_id in websites}
    names = sorted(groups, key=lambda name: (zlib.crc32(name.encode("utf-8", "replace")), name))
    n = len(names) if len(names) >= 3 else 0
    test, dev = (max(1, n // 5), max(1, n // 10)) if n else (0, 0)
    parts = {"test": names[:test], "dev": names[test : test + dev], "train": names[test + dev :]}
    return {split: [t for name in part for t in groups[name]] for split, part in parts.items()}


def _records(path: Path, raw: bytes, problems: Problems) -> list[dict[str, Any]]:
    """The JSON objects of a file: one per line, or an array."""
    text = raw.decode("utf-8", "replace")
    if path.suffix != ".jsonl":
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
        records = data if isinstance(data, list) else [data]
    else:
        records = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    records.append(json.loads(line))
                except (ValueError, RecursionError):
                    problems.add("line that is not JSON", f"{path}:{number}")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            problems.add("record that is not an object", f"{path}:{number}")
    return [record for record in records if isinstance(record, dict)]


@lru_cache(maxsize=4)
def read_ranks(path: Path) -> Mapping[str, Sequence[str]]:
    """Candidate ranks: `{annotation_id}_{action_uid}` → node ids, best first.

    The JSON file may also have node id → rank instead of a list (`envs.mind2web.convert` makes one
    of the official pickle). Raises ValueError if it is not such a file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"ranks: {path.absolute()} cannot be read ({error.strerror})") from None
    except ValueError as error:
        pickled = path.suffix in (".pkl", ".pickle")
        hint = f": run `stepagent mind2web-ranks {path} ranks.json`" if pickled else ""
        raise ValueError(f"ranks: {path} is not JSON ({error}){hint}") from None
    if not isinstance(data, dict):
        raise ValueError(f"ranks: {path} must contain an object of lists, by annotation and action")
    ranks = {}
    for name, order in data.items():
        if isinstance(order, dict) and all(isinstance(n, int | float) for n in order.values()):
            order = sorted(order, key=order.__getitem__)
        if not isinstance(order, list):
            raise ValueError(
                f"ranks: {path}: {name!r} must be a list of node ids, best first, or an object of "
                "node id → rank, a number"
            )
        ranks[name] = [str(node) for node in order]
    return ranks
