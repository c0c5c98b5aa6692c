"""Files of questions and pages, read as a stream: a record at a time, however large the file is.

JSON arrays, JSON lines, one JSON object of `title: sentences`, tab-separated passages and MediaWiki
dumps (`wikitext.py`), plain or compressed with gzip or bzip2. A file that is cut off or damaged
raises SourceError with its name, the place, and what to do; nothing is skipped silently.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from stepagent.envs.wikipedia.corpus import Page, page
from stepagent.errors import UsageError

CHUNK = 1 << 20
MAX_RECORD = 64 << 20
"""Characters that one record may have; a longer one is taken for a file that is no such thing."""


class SourceError(UsageError):
    """A data file that cannot be used; the message names it and says what to do."""


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed by the ending of its name."""
    if not path.is_file():
        raise SourceError(f"no file at {path.absolute()}")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def file_checksum(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file; read once a process unless the file changes."""
    if not path.is_file():
        raise SourceError(f"no file at {path.absolute()}")
    found = path.stat()
    return _file_checksum(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# JSON ---------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The records of a JSON array, of JSON lines, or the [key, value] pairs of one JSON object.

    Raises SourceError where the file is empty, cut off or not JSON.
    """
    with open_binary(path) as binary:
        stream = _Stream(path, io.TextIOWrapper(binary, "utf-8-sig", errors="replace"))
        try:
            if stream.peek() == "[":
                yield from stream.array()
            else:
                yield from stream.objects()
        except (EOFError, OSError) as error:  # what gzip and bz2 raise for a cut file
            raise stream.broken(str(error)) from None


class _Stream:
    """JSON values out of a text that is read in chunks."""

    def __init__(self, path: Path, file: IO[str]):
        self.path, self._file, self._decoder = path, file, json.JSONDecoder()
        self._text, self._at, self._count = "", 0, 0

    def broken(self, why: str) -> SourceError:
        return SourceError(
            f"{self.path} is cut off or damaged after {self._count} whole records ({why}): "
            "fetch or make the file again"
        )

    def peek(self) -> str:
        """The next character that is no blank; "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _more(self) -> bool:
        chunk = self._file.read(CHUNK)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def take(self, wanted: str) -> None:
        found = self.peek()
        if found != wanted:
            raise self.broken(f"{wanted!r} was due, not {found or 'the end of the file'!r}")
        self._at += 1

    def value(self) -> Any:
        """The next JSON value (an object, an array or a string: never cut without notice)."""
        if self.peek() not in ("{", "[", '"'):
            raise self.broken(f"a record was due, not {self.peek() or 'the end of the file'!r}")
        while True:
            try:
                found, self._at = self._decoder.raw_decode(self._text, self._at)
                return found
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_RECORD or not self._more():
                    raise self.broken(error.msg) from None
            except RecursionError:
                raise self.broken("brackets within brackets without end") from None

    def array(self) -> Iterator[Any]:
        self.take("[")
        while self.peek() != "]":
            if self._count:
                self.take(",")
            yield self.value()
            self._count += 1
        self.take("]")

    def objects(self) -> Iterator[Any]:
        """JSON lines; or, where there is but one object and it is no record, its members."""
        if not self.peek():
            raise SourceError(f"{self.path} is empty: fetch or make the file again")
        first = self.value()
        if self.peek() or "question" in first or "text" in first:
            yield first
            self._count += 1
            while self.peek():
                yield self.value()
                self._count += 1
        else:
            yield from ([title, value] for title, value in first.items())


# Pages --------------------------------------------------------------------------------------------


def pages(path: Path) -> Iterator[Page]:
    """The pages of a corpus file: JSON of any kind above, or `.tsv` with title and text columns.

    Raises SourceError that names the record without a title or a text.
    """
    names = path.name.removesuffix(".gz").removesuffix(".bz2")
    found = _rows(path) if names.endswith(".tsv") else records(path)
    for number, record in enumerate(found, 1):
        try:
            yield _page(record)
        except (KeyError, TypeError, ValueError):
            raise SourceError(
                f"record {number} of {path} has no title and text: a page is "
                '{"title": "…", "text": "…" or ["sentence", …]} or "title": ["sentence", …]'
            ) from None


def _page(record: Any) -> Page:
    title, text = record if isinstance(record, list) else (record["title"], record["text"])
    if not isinstance(title, str) or not title.strip():
        raise ValueError
    if isinstance(text, str):
        return page(title, [part for part in text.split("\n") if part.strip()])
    if not all(isinstance(part, str | list) for part in text):
        raise ValueError
    # A list of sentences is one paragraph; a list of lists, several.
    return page(title, text if text and isinstance(text[0], list) else [text])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a header, such as DPR's `id, text, title`."""
    with open_binary(path) as binary:
        file = io.TextIOWrapper(binary, "utf-8", errors="replace", newline="")
        yield from csv.DictReader(file, delimiter="\t")
