"""A corpus on disk: any number of pages, found by title or by words, shared by all processes.

A folder holds four files, all of them memory-mapped, so that a process loads only what it
uses and workers share the rest:

- `pages.bin`: `title, newline, text` of one page after another, and `offsets.npy`, where each
  starts;
- `keys.npy`, sorted 64-bit hashes of the titles' keys (`corpus.key`; also without a bracketed
  addition, and of redirects), and `rows.npy`, the page of each.

The BM25 index over title and text is `envs.search`'s, kept in the cache by the corpus's checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stepagent.envs.search import Index
from stepagent.envs.wikipedia.corpus import (
    CANDIDATES,
    SIMILAR,
    Corpus,
    Page,
    base_key,
    choose,
    is_slip,
    key,
)
from stepagent.files import build_once, cache_folder, open_file, read_object, write_text

VERSION = 1
_META = "corpus.json"
UNFINISHED = "partial.json"
"""What a corpus folder has until it is complete."""


def _hash(kind: bytes, text: str) -> int:
    digest = hashlib.blake2b(kind + text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Writer:
    """Writes a corpus folder page by page; resumes from the saved state of a stopped one.

    `saved` holds what the caller last gave to `save` (its place in the source, say).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        state = read_object(folder / UNFINISHED)
        self.saved: dict[str, Any] = state.get("saved", {})
        self.count: int = state.get("pages", 0)
        self._files = {name: open_file(folder / name, "ab") for name in _PARTS}
        for name, file in self._files.items():
            file.truncate(state.get(name, 0))  # what was written after the last save is rewritten
            file.seek(0, os.SEEK_END)

    def add(self, page: Page) -> None:
        """Appends a page. `page.title` must not contain a line break."""
        data = f"{page.title}\n{page.text}".encode("utf-8", "replace")
        self._files["pages.bin"].write(data)
        self._files["lengths.part"].write(len(data).to_bytes(4, "little"))
        keys = [(_hash(b"k", key(page.title)), self.count)]
        if base := base_key(page.title):
            keys.append((_hash(b"b", base), self.count))
        for hashed, row in keys:
            self._files["keys.part"].write(hashed.to_bytes(8, "little"))
            self._files["rows.part"].write(row.to_bytes(4, "little"))
        self.count += 1

    def redirect(self, title: str, target: str) -> None:
        """Another title of a page (which may be added later)."""
        for name in (title, target):
            self._files["redirects.part"].write(_hash(b"k", key(name)).to_bytes(8, "little"))

    def save(self, **saved: Any) -> None:
        """Flushes everything so far to disk."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        self.saved = saved
        _write_json(self.folder / UNFINISHED, {**sizes, "pages": self.count, "saved": self.saved})

    def finish(self) -> None:
        """Sorts the titles and completes the folder. Raises ValueError if no page was added."""
        if not self.count:
            raise ValueError("there is no page to make a corpus from")
        for file in self._files.values():
            file.close()
        folder = self.folder
        lengths = np.fromfile(folder / "lengths.part", dtype="<u4")
        offsets = np.zeros(len(lengths) + 1, dtype=np.uint64)
        np.cumsum(lengths, out=offsets[1:])
        keys = np.fromfile(folder / "keys.part", dtype="<u8")
        rows = np.fromfile(folder / "rows.part", dtype="<u4")
        order = np.lexsort((rows, keys))
        keys, rows = keys[order], rows[order]
        names, targets = np.fromfile(folder / "redirects.part", dtype="<u8").reshape(-1, 2).T
        at = np.searchsorted(keys, targets)
        there = (at < len(keys)) & (keys[np.minimum(at, len(keys) - 1)] == targets)
        there &= ~np.isin(names, keys)  # a page of that title comes before a redirect
        keys, rows = np.append(keys, names[there]), np.append(rows, rows[at[there]])
        order = np.lexsort((rows, keys))
        np.save(folder / "offsets.npy", offsets)
        np.save(folder / "keys.npy", keys[order])
        np.save(folder / "rows.npy", rows[order])
        with open_file(folder / "pages.bin", "rb") as pages:
            digest = hashlib.file_digest(pages, "sha256")
        digest.update(rows[order].tobytes())
        meta = {"version": VERSION, "pages": self.count, "checksum": digest.hexdigest()[:16]}
        _write_json(folder / _META, meta)
        for leftover in folder.glob("*.part"):
            leftover.unlink()
        (folder / UNFINISHED).unlink(missing_ok=True)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


_PARTS = ("pages.bin", "lengths.part", "keys.part", "rows.part", "redirects.part")


def is_store(folder: Path) -> bool:
    """Whether the folder holds a complete corpus."""
    return (folder / _META).is_file()


def open_cached(name: str, pages: Iterable[Page]) -> StoredCorpus:
    """The corpus of that name (a checksum of its source) in the cache; built where missing."""

    def build(partial: Path) -> None:
        with contextlib.closing(Writer(partial)) as writer:
            for page in pages:
                writer.add(page)
            writer.finish()

    folder = cache_folder() / "wikipedia" / f"corpus-{name}-{VERSION}"
    build_once(folder, build)
    return StoredCorpus(folder)


class StoredCorpus(Corpus):
    """An open corpus folder. Raises ValueError if it is not one or has another version."""

    def __init__(self, folder: Path):
        meta = read_object(folder / _META)
        if meta.get("version") != VERSION:
            raise ValueError(
                f"{folder} holds no corpus of version {VERSION}: make one with "
                "stepagent wikipedia-corpus SOURCE --out FOLDER"
            )
        self.folder, self._checksum, self._count = folder, meta["checksum"], meta["pages"]
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._rows = np.load(folder / "rows.npy", mmap_mode="r")
        with open_file(folder / "pages.bin", "rb") as file:
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._offsets) != self._count + 1 or self._offsets[-1] != len(self._pages):
            raise ValueError(f"{folder} is damaged: delete it and make it again")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Page:
        title, _, text = self._raw(row).partition("\n")
        return Page(title, text)

    def _raw(self, row: int) -> str:
        begin, end = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._pages[begin:end].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[Page]:
        return (self[row] for row in range(len(self)))

    @cached_property
    def index(self) -> Index:
        """Title and text of every page; built at the first search that needs it."""
        return Index.build(
            lambda: (self._raw(row) for row in range(len(self))), f"wikipedia-{self._checksum}"
        )

    def _with_key(self, kind: bytes, text: str) -> list[int]:
        """Rows of the pages whose key (b"k") or key without its addition (b"b") this is."""
        hashed = np.uint64(_hash(kind, text))
        first, last = np.searchsorted(self._keys, [hashed, hashed + np.uint64(1)])
        return [int(row) for row in self._rows[first : min(last, first + 1000)]]

    def find(self, entity: str) -> Page | list[str]:
        query = key(entity)
        rows = self._with_key(b"k", query)
        if not rows and len(of_base := self._with_key(b"b", query)) == 1:
            rows = of_base
        if rows:
            by_title = {self[row].title: row for row in reversed(rows)}
            return self[by_title[choose(entity, list(by_title))]]
        hits = self.index.search(entity, CANDIDATES)
        similar = list(dict.fromkeys(self[row].title for row, _ in hits))
        for row, _ in hits:
            if is_slip(query, key(self[row].title)):
                return self[row]
        return similar[:SIMILAR]

    def has(self, title: str) -> bool:
        return bool(self._with_key(b"k", key(title)))

    def checksum(self) -> str:
        return self._checksum


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data))
