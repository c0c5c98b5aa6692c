"""Mind2Web's tasks: official files, plain files of steps, and the bundled sites, in one format.

| `data`         | contents                               | splits                               |
|----------------|----------------------------------------|--------------------------------------|
| None           | tasks on the bundled sites (`sites/`)  | by site; other domains in test       |
| a folder, .zip | the official files (`official.py`)     | train 1,009; test as `test_set` says |
| a file         | tasks or single steps (`packs.py`)     | by website: about 70 / 10 / 20 %     |

Of the official test sets, `test_set="domain"` (cross-domain, 912 tasks, the paper's) is the split
test by default; alternatives are "task" (cross-task, 252) and "website" (cross-website, 177). The
benchmark has no development set: dev is cross-task (cross-website if cross-task is test).

Defects of the data are counted per step in a `Problems`; a file without any task, or one that
cannot be read, raises a ValueError that names it, and so do tasks none of whose steps has what it
needs (`library.py`).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from stepagent.envs.containers import SourceError, members
from stepagent.envs.mind2web.packs import open_pack
from stepagent.envs.mind2web.records import Problems, StepFacts, Task
from stepagent.files import open_file

TEST_SETS = ("domain", "task", "website")
HTML_KINDS = ("cleaned", "raw")


class Source(Protocol):
    """Where tasks come from."""

    def ids(self, split: str) -> Sequence[str]:
        """Ids of a split ("train", "dev", "test")."""

    def facts(self, split: str) -> Mapping[str, Sequence[StepFacts]]:
        """Task id of the split → what each of its steps has, without reading the tasks."""

    def left_out(self, split: str) -> Mapping[str, int]:
        """Why records of the split's files are in no task: reason → count."""

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
    from stepagent.envs.mind2web.official import OfficialFiles, names_a_set

    path = Path(data).expanduser()
    if not path.exists():
        raise SourceError(
            f"{path.absolute()} does not exist: `data` is the folder of the official files (or a "
            ".zip of them), a file of tasks or steps (JSON, JSON lines, parquet), or None for the "
            "bundled sites"
        )
    if path.is_dir():
        lines = [p for p in path.glob("*.jsonl") if not p.name.startswith(".")]
        if len(lines) != 1:
            return OfficialFiles(path, test_set, html, password, problems)
        path = lines[0]  # a folder that contains one such file; the official files are not .jsonl
    if any(names_a_set(file.inside) for file in members(path, password)):
        return OfficialFiles(path, test_set, html, password, problems)
    return PlainFile(path, html, problems, password)


class PlainFile:
    """Tasks of one file, or of an archive that names no set: official tasks or rows of steps."""

    def __init__(self, path: Path, html: str, problems: Problems, password: str | None = None):
        self._problems, self._checksum = problems, _checksum(path)
        files = list(members(path, password))
        self._pack = open_pack(path.name[:40], self._checksum, files, html, password)
        for kind, places in self._pack.problems.items():
            for place in places:
                problems.add(kind, place)

    def ids(self, split: str) -> Sequence[str]:
        return split_by_website(self._pack.websites())[split]

    def facts(self, split: str) -> Mapping[str, Sequence[StepFacts]]:
        """Of all tasks: a split may have only a few."""
        return {task: self._pack.facts(task) for task in self._pack.websites()}

    def left_out(self, split: str) -> Mapping[str, int]:
        return self._pack.left_out

    def task(self, task_id: str) -> Task:
        return self._pack.task(task_id, self._problems)

    def checksum(self) -> str:
        return self._checksum


def _checksum(path: Path) -> str:
    """`core.checksum` of the file's bytes, read piece by piece."""
    digest = hashlib.sha256()
    with open_file(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    digest.update(b"\0")
    return digest.hexdigest()[:16]


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


def read_ranks(path: Path) -> Mapping[str, Sequence[str]]:
    """Candidate ranks: `{annotation_id}_{action_uid}` → node ids, best first.

    The JSON file may also have node id → rank instead of a list (`envs.mind2web.convert` makes one
    of the official pickle). Raises ValueError if it is not such a file.
    """
    if not path.is_file():
        raise SourceError(f"ranks: {path.absolute()} cannot be read (no such file)")
    (file,) = members(path)
    with file.opened() as (kind, content):
        pickled = kind == "pickle" or path.suffix in (".pkl", ".pickle")
        hint = f": run `stepagent mind2web-ranks {path} ranks.json`" if pickled else ""
        if kind not in ("text", "pickle", "binary"):
            raise SourceError(f"ranks: {file.refused(kind)}")
        try:
            data = json.loads(content.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise SourceError(f"ranks: {path} is not JSON ({error}){hint}") from None
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
