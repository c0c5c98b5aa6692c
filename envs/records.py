"""Records of a data file of unknown origin, one by one and in flat memory.

A record is one JSON value: a line of JSON lines, an element of a JSON list, a row of parquet. A
file of one object or one conversation is one record. UTF-8 with or without a byte order mark,
UTF-16 with one, either kind of line ends, and compressed files are read as they are.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stepagent.envs import tables
from stepagent.envs.containers import TABLES, file_member
from stepagent.files import is_file

CHUNK = 1 << 20
MAX_RECORD = 32 << 20
"""Characters that one record may have."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UNDECODED = re.compile("[\udc80-\udcff]")
_BLANK = re.compile(r"[\s,]*")
_NEAR_END = 20
"""Characters before the end of a buffer in which a JSON error may only be the buffer's cut."""


@dataclass(frozen=True)
class Record:
    """One record of a file, or what keeps it from being read."""

    place: str
    """Such as `line 3` or `record 3`, counted from 1."""
    value: Any = None
    problem: str = ""
    """Why there is no value; "" where there is one."""


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file, those that cannot be read included.

    Raises FileNotFoundError, SourceError for a damaged or cut file and for one that has to be
    unpacked or fetched first, and ValueError that names the file where it holds no text at all.
    """
    if not is_file(path):
        raise FileNotFoundError(f"no file at {path.absolute()}")
    member = file_member(path)
    with member.opened() as (kind, file):
        if kind in TABLES:
            for number, row in enumerate(tables.rows(path, kind), 1):
                yield Record(f"row {number}", row)
        elif kind in ("text", "binary", "empty"):
            yield from text_records(str(path), file)
        else:
            raise member.refused(kind)


def is_message(value: Any) -> bool:
    """Whether it is a turn of a conversation: role and content, or from and value."""
    return isinstance(value, dict) and ({"role", "content"} <= set(value) or _from_value(value))


def _from_value(value: dict[str, Any]) -> bool:
    return {"from", "value"} <= set(value)


def text_records(name: str, file: Any, limit: int = MAX_RECORD) -> Iterator[Record]:
    """The records of a buffered stream of text, those that cannot be read included.

    `limit`: characters that one of them may have. Raises ValueError that names the file where it
    holds no text at all.
    """
    head = file.peek(4096)[:4096]
    encoding, errors = "utf-8-sig", "surrogateescape"
    if head.startswith(_UTF_16):
        encoding, errors = "utf-16", "replace"
    elif b"\0" in head:
        raise ValueError(f"{name} is not text (UTF-16 without a byte order mark, or binary)")
    text = io.TextIOWrapper(file, encoding=encoding, errors=errors)
    start = text.read(CHUNK)
    if not start.strip():
        raise ValueError(f"{name} is empty: fetch or make the file again")
    if _is_lines(start.lstrip()):
        yield from _lines(start, text, limit)
    else:
        yield from _values(start, text, limit)


def _is_lines(start: str) -> bool:
    """Whether each line is a record; else a list of records, or objects over several lines."""
    line, newline, _ = start.partition("\n")
    if line.rstrip() in ("{", "[", "[{"):
        return False
    if not line.startswith("["):
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(newline)


def _lines(start: str, text: IO[str], limit: int) -> Iterator[Record]:
    for number, line in enumerate(_bounded_lines(start, text, limit), 1):
        place = f"line {number}"
        if not line.strip():
            continue
        if len(line) >= limit:
            yield Record(place, problem=f"longer than {limit} characters")
        elif problem := _encoding_problem(line):
            yield Record(place, problem=problem)
        else:
            try:
                yield from _unfold(place, json.loads(line))
            except json.JSONDecodeError as error:
                yield Record(place, problem=_not_json(error, cut=not line.endswith("\n")))
            except RecursionError:
                yield Record(place, problem="its JSON is nested too deeply")
            except ValueError:  # Python converts integers of up to 4,300 digits
                yield Record(place, problem="it has an integer of too many digits")


def _bounded_lines(start: str, text: IO[str], limit: int) -> Iterator[str]:
    """The lines of both together; of one that is too long, `limit` characters or more."""
    *lines, rest = start.split("\n")
    yield from (line + "\n" for line in lines)
    while line := rest + text.readline(limit - len(rest)):
        rest = ""
        yield line
        while len(line) >= limit and not line.endswith("\n"):
            line = text.readline(limit)


def _values(buffer: str, text: IO[str], limit: int) -> Iterator[Record]:
    """Values one after another; of a list its elements, unless these make one conversation."""
    decoder, position, number, opened = json.JSONDecoder(), 0, 0, False
    turns: list[Any] = []
    while True:
        position = _BLANK.match(buffer, position).end()  # type: ignore[union-attr]
        place = f"record {number + 1}"
        if position == len(buffer):
            buffer, position = text.read(CHUNK), 0
            if not buffer:
                break
        elif buffer[position] == "[" and not opened:
            opened, position = True, position + 1
        elif buffer[position] == "]" and opened:
            opened, position = False, position + 1
            if turns:
                number += 1
                yield Record(f"record {number}", turns)
                turns = []
        else:
            try:
                value, end = decoder.raw_decode(buffer, position)
            except RecursionError:
                yield Record(place, problem="its JSON is nested too deeply; what follows is unread")
                return
            except json.JSONDecodeError as error:
                more = _continued(buffer, position, error, text, limit)
                if more:
                    buffer, position = more, 0
                    continue
                cut = error.pos >= len(buffer) - _NEAR_END or "Unterminated" in error.msg
                reason = _not_json(error, cut, position)
                yield Record(place, problem=f"{reason}; what follows is unread")
                return
            except ValueError:
                reason = "it has an integer of too many digits"
                yield Record(place, problem=f"{reason}; what follows is unread")
                return
            problem, position = _encoding_problem(buffer[position:end]), end
            if problem:
                number += 1
                yield Record(place, problem=problem)
            elif opened and is_message(value):
                turns.append(value)
            else:
                number += 1
                yield from _unfold(place, value)
    if opened:
        yield Record("the end", problem="the list is not closed: the file may be cut")


def _continued(
    buffer: str, position: int, error: json.JSONDecodeError, text: IO[str], limit: int
) -> str:
    """The record's text with more of the file; "" where more would not make it JSON."""
    read = len(buffer) - position
    complete = error.pos < len(buffer) - _NEAR_END and not error.msg.startswith("Unterminated")
    if complete or read > limit:
        return ""
    more = text.read(max(CHUNK, read))
    return buffer[position:] + more if more else ""


def _unfold(place: str, value: Any) -> Iterator[Record]:
    """A list of records, or an object of numbered ones, opened; anything else as it is."""
    if isinstance(value, list) and value and not is_message(value[0]):
        for number, item in enumerate(value, 1):
            yield Record(f"{place}, item {number}", item)
    elif (
        isinstance(value, dict)
        and value
        and all(key.isdigit() and isinstance(item, dict) for key, item in value.items())
    ):
        for key, item in value.items():
            yield Record(f"{place}, {key}", {"id": key, **item})
    else:
        yield Record(place, value)


def _encoding_problem(text: str) -> str:
    wrong = _UNDECODED.search(text)
    if not wrong:
        return ""
    byte = ord(wrong.group()) - 0xDC00
    return f"byte 0x{byte:02X} is not UTF-8: re-encode the file (iconv -f latin1 -t utf-8 FILE)"


def _not_json(error: json.JSONDecodeError, cut: bool, start: int = 0) -> str:
    where = f"not JSON ({error.msg} at character {error.pos - start})"
    return f"{where}: the file may be cut here" if cut else where
