"""Files of questions and pages, read as a stream: one record at a time, however large the file is.

JSON lists, JSON lines, one JSON object of `title: sentences`, tab-separated passages, parquet and
arrow; as they are, compressed, in a folder or in an archive (`envs.containers`). What cannot be
read raises SourceError with the file, the record, and what to do; nothing is skipped silently.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stepagent.envs import tables
from stepagent.envs.containers import TABLES, Member, SourceError, members
from stepagent.envs.core import checksum
from stepagent.envs.json_stream import JSONError, JSONStream, NotUTF8
from stepagent.envs.wikipedia.corpus import Page, page
from stepagent.files import open_file

log = logging.getLogger(__name__)
LARGE_RECORD = 4 << 20
"""Characters from which the first JSON object is taken for `title: sentences`, not for a record."""
_RECORD = {"question", "text", "content", "contents", "golden_answers", "wikipedia_title"}
"""Keys by which the only object of a file is a record."""
_LINK = re.compile(r"</?a\b[^<>]*>")
_PAGE_COLUMNS = ("id", "title", "text", "content", "contents", "wikipedia_title", "paragraph_text")
_NO_DATA = re.compile(
    r"(LICENSE|README|SOURCES|_SUCCESS|dataset_infos?\.json|dataset_dict\.json|state\.json"
    r"|.*\.(md|txt|rst|html|pdf|py|ipynb|sh|ya?ml|toml|cfg|lock|log|metadata|md5|sha\d+|crc"
    r"|png|jpg|svg))",
    re.IGNORECASE,
)
"""What datasets' repositories and `save_to_disk` put beside the data."""


def file_checksum(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file, or of all files in a folder.

    Read once per process unless a file changes.
    """
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return checksum(*(f"{file.relative_to(path)} {file_checksum(file)}" for file in files))
    if not path.is_file():
        raise SourceError(f"no file at {path.absolute()}")
    status = path.stat()
    return _file_checksum(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _file_checksum(path: Path, size: int, changed: int) -> str:
    with open_file(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_data(name: str) -> bool:
    """Whether a file of that name in a folder or archive may hold data, not a description of it."""
    return not _NO_DATA.fullmatch(PurePosixPath(name).name)


def opened_data(path: Path) -> Iterator[tuple[Member, str, IO[bytes]]]:
    """The files of data in a folder or archive, or the file itself, each with its kind and bytes.

    Empty ones are left out with a warning. Raises SourceError where there is no file at all, or
    the one that was named is empty.
    """
    count = 0
    for member in members(path):
        named = member.path == path and not member.inside
        if not named and not is_data(member.name):
            continue
        with member.opened() as (kind, file):
            if kind == "empty" and not named:
                log.warning("%s is empty and left out", member)
                continue
            count += 1
            yield member, kind, file
    if not count:
        raise SourceError(f"{path.absolute()} holds no file of data")


# Records ------------------------------------------------------------------------------------------


def records(source: Path | Member) -> Iterator[Any]:
    """The records of a file (see `records_in`); of a folder or an archive, those of all its files.

    Raises SourceError for a file that is empty, cut off, not UTF-8 or of no kind that is read.
    """
    if isinstance(source, Path):
        for member, kind, file in opened_data(source):
            yield from records_in(member, kind, file)
        return
    with source.opened() as (kind, file):
        yield from records_in(source, kind, file)


def records_in(
    source: Member, kind: str, file: IO[bytes], columns: Collection[str] = ()
) -> Iterator[Any]:
    """The records of a JSON list, of JSON lines, of a table (with a header, or parquet or arrow),
    or the [key, value] pairs of one JSON object.

    Parameters
    ----------
    source, kind, file: the file, and what its `opened` gives.
    columns: all that is needed of parquet and arrow; () for everything.
    """
    if kind in TABLES and not source.inside:
        yield from tables.rows(source.path, kind, columns)
    elif kind != "text":
        raise source.refused(kind)
    elif _is_table(file):
        yield from _rows(source, file)
    else:
        yield from _json(source, file)


def _json(source: Member, file: IO[bytes]) -> Iterator[Any]:
    try:
        stream = JSONStream(file, strict=True)
        if not stream.first:
            raise source.refused("empty")
        for count, record in enumerate(_values(stream)):
            if not isinstance(record, dict | list | str):
                raise JSONError(f"{record!r} is no record", count)
            yield record
    except NotUTF8 as error:
        raise _not_utf8(source, error.count + 1, error.reason) from None
    except JSONError as error:
        if error.reason.startswith(("nested", "an integer")):
            raise SourceError(
                f"record {error.count + 1} of {source} cannot be read ({error.reason}): take it out"
            ) from None
        if error.count or error.reason.startswith("cut at its end"):
            raise SourceError(
                f"{source} is cut off or damaged after {error.count} whole records "
                f"({error.reason}): fetch or make the file again"
            ) from None
        raise SourceError(
            f"{source} is not JSON ({error.reason}): a JSON list, JSON lines, a JSON object, a "
            "table of tab-separated columns, parquet or arrow can be read"
        ) from None


def _not_utf8(source: Member, number: int, reason: str) -> SourceError:
    return SourceError(
        f"record {number} of {source} is not UTF-8 ({reason}): re-encode the file, with iconv -f "
        "latin1 -t utf-8 FILE > NEW if it is Latin-1"
    )


def _values(source: JSONStream) -> Iterator[Any]:
    if source.first == "{" and source.starts_with_more_than(LARGE_RECORD):
        yield from ([key, value] for key, value in source.members())
        return
    values = iter(source)
    if source.first != "[":
        first, *second = islice(values, 2)
        if not second and isinstance(first, dict) and not _RECORD & first.keys():
            yield from ([title, value] for title, value in first.items())
            return
        yield from (first, *second)
    yield from values


def _is_table(file: Any) -> bool:
    """Whether its first line is no JSON and has columns separated by tabs."""
    line = file.peek(1024).lstrip(b"\xef\xbb\xbf").partition(b"\n")[0]
    return b"\t" in line.strip() and line.lstrip()[:1] not in (b"{", b"[", b'"')


def _rows(source: Member, binary: IO[bytes]) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a header, such as DPR's `id, text, title`."""
    file = io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="")
    number = 0
    try:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t"), 1):
            try:
                "".join(value for value in row.values() if isinstance(value, str)).encode()
            except UnicodeEncodeError as error:
                byte = ord(error.object[error.start]) - 0xDC00
                raise _not_utf8(source, number, f"byte 0x{byte:02X}") from None
            yield row
    except csv.Error as error:
        raise SourceError(
            f"{source} is damaged after {number} whole rows ({error}): make the file again"
        ) from None


# Pages --------------------------------------------------------------------------------------------


def pages(path: Path) -> Iterator[Page]:
    """The pages of a corpus: of a file, or of all files in a folder or an archive."""
    for member, kind, file in opened_data(path):
        yield from pages_in(member, kind, file)


def pages_in(source: Member, kind: str, file: IO[bytes]) -> Iterator[Page]:
    """The pages of a file, given what its `opened` gives.

    Raises SourceError that names the record without a title or a text.
    """
    for number, record in enumerate(records_in(source, kind, file, _PAGE_COLUMNS), 1):
        try:
            yield _page(record)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SourceError(
                f"record {number} of {source} has no title and text{named_fields(record)}: a page "
                'is {"title": "…", "text": "…" or ["sentence", …]} or "title": ["sentence", …]'
            ) from None


def named_fields(record: Any) -> str:
    """What an object has instead of what it lacks, for messages."""
    return f" but {', '.join(map(str, list(record)[:12]))}" if isinstance(record, dict) else ""


def _page(record: Any) -> Page:
    if isinstance(record, dict) and "wikipedia_title" in record:
        return _kilt_page(record["wikipedia_title"], record["text"])
    title, text = record if isinstance(record, list) else _title_and_text(record)
    if not isinstance(title, str) or not title.strip():
        raise ValueError
    if isinstance(text, str):
        return page(title, [part for part in text.split("\n") if part.strip()])
    if not all(isinstance(part, str | list) for part in text):
        raise ValueError
    # A list of sentences is one paragraph; a list of lists, several.
    return page(title, text if text and isinstance(text[0], list) else [text])


def _title_and_text(record: dict[str, Any]) -> tuple[Any, Any]:
    for name in ("text", "content", "paragraph_text"):
        if "title" in record and name in record:
            title, text = record["title"], record[name]
            if "charoffset" in record and text and isinstance(text[0], list):
                text = _without_links(title, text)
            return title, text
    # Pyserini's, FlashRAG's and Search-R1's passages: the title, in quotes or not, then the text.
    line, newline, text = record["contents"].partition("\n")
    title = line.strip().removeprefix('"').removesuffix('"')
    if record.get("title") not in (None, title) or not newline:
        return record["title"], record["contents"]
    return title, text


def _without_links(title: str, paragraphs: list[list[str]]) -> list[list[str]]:
    """HotpotQA's whole pages: their first paragraph is the title, and links are HTML."""
    return [
        [_LINK.sub("", s) for s in sentences] for sentences in paragraphs if sentences != [title]
    ]


def _kilt_page(title: str, text: Any) -> Page:
    """A page of KILT's knowledge source up to its first section, as `wikitext` reads a dump.

    Its text is a list of paragraphs, of which the first is the title.
    """
    paragraphs = text["paragraph"] if isinstance(text, dict) else text
    if not isinstance(title, str) or not title.strip():
        raise ValueError
    lead = []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("Section::::"):
            break
        if number or paragraph.strip() != title.strip():
            lead.append(paragraph.removeprefix("BULLET::::").strip().removeprefix("- "))
    return page(title, [paragraph for paragraph in lead if paragraph])
