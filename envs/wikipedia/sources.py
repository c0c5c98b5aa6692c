"""Files of questions and pages, read as a stream: one record at a time, however large the file is.

JSON arrays, JSON lines, one JSON object of `title: sentences`, tab-separated passages and MediaWiki
dumps (`wikitext.py`), plain or compressed with gzip or bzip2. A file that is truncated or
damaged raises SourceError with its name, the position, and what to do; nothing is skipped silently.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from stepagent.envs.json_stream import JSONError, JSONStream
from stepagent.envs.wikipedia.corpus import Page, page
from stepagent.errors import UsageError


class SourceError(UsageError):
    """A data file that cannot be used; the message names it and says what to do."""


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed according to its extension."""
    if not path.is_file():
        raise SourceError(f"no file at {path.absolute()}")
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".bz2":
        return bz2.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def file_checksum(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file; read once per process unless the file changes."""
    if not path.is_file():
        raise SourceError(f"no file at {path.absolute()}")
    status = path.stat()
    return _file_checksum(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_checksum(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# JSON ---------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Any]:
    """The records of a JSON array, of JSON lines, or the [key, value] pairs of one JSON object.

    Raises SourceError if the file is empty, cut off or not JSON.
    """
    try:
        with open_binary(path) as file:
            source = JSONStream(file)
            if not source.first:
                raise SourceError(f"{path} is empty: fetch or make the file again")
            for count, record in enumerate(_records(source)):
                if not isinstance(record, dict | list | str):
                    raise JSONError(f"{record!r} is no record", count)
                yield record
    except JSONError as error:
        raise SourceError(
            f"{path} is cut off or damaged after {error.count} whole records ({error.reason}): "
            "fetch or make the file again"
        ) from None
    except (EOFError, OSError) as error:  # what gzip and bz2 raise for a cut file
        raise SourceError(
            f"{path} is cut off or damaged ({error}): fetch or make the file again"
        ) from None


def _records(source: JSONStream) -> Iterator[Any]:
    values = iter(source)
    if source.first != "[":
        first, *second = islice(values, 2)
        if not second and isinstance(first, dict) and not {"question", "text"} & first.keys():
            yield from ([title, value] for title, value in first.items())
            return
        yield from (first, *second)
    yield from values


# Pages --------------------------------------------------------------------------------------------


def pages(path: Path) -> Iterator[Page]:
    """The pages of a corpus file: JSON of any kind above, or `.tsv` with title and text columns.

    Raises SourceError that names the record without a title or a text.
    """
    names = path.name.removesuffix(".gz").removesuffix(".bz2")
    rows = _rows(path) if names.endswith(".tsv") else records(path)
    for number, record in enumerate(rows, 1):
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
