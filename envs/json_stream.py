"""JSON of any size, read item by item in flat memory, with the values that Python's `json` gives.

Why not ijson: it rejects a file with an integer of more than 64 bits or a NaN, which Python writes,
and silently replaces lone surrogates. Here a damaged record stays one damaged record. The decoder
is the standard library's, and as fast on 100 MB files.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 20
"""Characters read at a time; more within a large item."""
_LARGEST = 400_000_000
"""Characters that one item may have."""
_BLANKS = re.compile(r"[ \t\r\n]*")
_UNDECODED = re.compile("[\udc80-\udcff]")
_decode = json.JSONDecoder().raw_decode


class JSONError(ValueError):
    """Text that is truncated or not JSON, with the reason and the number of items before it."""

    def __init__(self, reason: str, count: int):
        super().__init__(f"cut or damaged after {count} items ({reason})")
        self.reason, self.count = reason, count


class NotUTF8(JSONError):
    """An item with bytes that are not UTF-8."""


class JSONStream:
    """The items of a JSON text in UTF-8, with or without a byte order mark, or UTF-16 with one.

    Iterating gives the elements of an array, or else the values that follow one another (JSON
    lines); `members` gives the pairs of one object instead. Both raise JSONError.

    Parameters
    ----------
    file: the text's bytes. (UTF-16 is recognised where the file has a `peek`.)
    strict: an item with bytes that are not UTF-8 raises NotUTF8; otherwise they are replaced.
    limit: characters that one item may have.
    """

    def __init__(self, file: IO[bytes], *, strict: bool = False, limit: int = _LARGEST):
        head = file.peek(2)[:2] if hasattr(file, "peek") else b""
        encoding = "utf-16" if head in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        errors = "surrogateescape" if strict and encoding == "utf-8-sig" else "replace"
        self._file = io.TextIOWrapper(file, encoding, errors=errors)
        self._strict, self._suspect = errors == "surrogateescape", False
        self._text, self._at, self._count, self._limit = "", 0, 0, limit
        self.first = self._peek()
        """The first character that is not blank; "" in an empty file."""

    def __iter__(self) -> Iterator[Any]:
        while following := self._peek():
            if following == self.first == "[":
                yield from self._sequence("]", self._value)
            else:
                yield self._value()
                self._count += 1

    def members(self) -> Iterator[tuple[Any, Any]]:
        """The (key, value) pairs of an object, whose keys are not checked to be strings."""
        yield from self._sequence("}", self._pair)

    def starts_with_more_than(self, limit: int) -> bool:
        """Whether the first item is JSON of more than so many characters. Consumes nothing."""
        while True:
            try:
                return _decode(self._text, self._at)[1] - self._at > limit
            except (ValueError, RecursionError):
                if len(self._text) - self._at > limit or not self._more():
                    return len(self._text) - self._at > limit

    def _sequence(self, end: str, read: Any) -> Iterator[Any]:
        """The items between two brackets, separated by commas."""
        self._at += 1
        if self._peek() == end:
            self._at += 1
            return
        while True:
            yield read()
            self._count += 1
            if self._take("," + end) == end:
                return

    def _pair(self) -> tuple[Any, Any]:
        key = self._value()
        self._take(":")
        return key, self._value()

    def _take(self, expected: str) -> str:
        character = self._peek()
        if not character:
            raise JSONError("cut at its end", self._count)
        if character not in expected:
            raise JSONError(f"{' or '.join(expected)} expected, not {character!r}", self._count)
        self._at += 1
        return character

    def _peek(self) -> str:
        """The next character that is not blank; "" at the end of the file."""
        while True:
            character = self._text[self._at : self._at + 1]
            if character > " ":  # without the search: twice as fast
                return character
            self._at = _BLANKS.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _decode(self._text, self._at)
                length = end - self._at
                if len(self._text) - end < 3 and self._text[end - 1] not in '}]"' and self._more():
                    continue  # a number may not have ended yet: 1, 1. or 1e+
                if self._suspect and (wrong := _UNDECODED.search(self._text, self._at, end)):
                    raise NotUTF8(f"byte 0x{ord(wrong.group()) - 0xDC00:02X}", self._count)
                self._at += length
                return value
            except json.JSONDecodeError as error:
                # If the text is only truncated, the error is at its end or in its last string.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if not cut:
                    raise JSONError(error.msg, self._count) from None
                if len(self._text) - self._at > self._limit:
                    reason = f"an item of more than {self._limit:,} characters"
                    raise JSONError(reason, self._count) from None
                if not self._more():
                    # What a cut leaves at the end is at most as long as "-Infinity".
                    cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 10
                    reason = f"cut at its end: {error.msg}" if cut else error.msg
                    raise JSONError(reason, self._count) from None
            except RecursionError:
                raise JSONError("nested too deeply", self._count) from None
            except JSONError:
                raise
            except ValueError:  # Python converts integers of up to 4,300 digits
                raise JSONError("an integer of too many digits", self._count) from None

    def _more(self) -> bool:
        rest = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._suspect = self._suspect or (self._strict and not _is_text(chunk))
        self._text, self._at = rest + chunk, 0
        return bool(chunk)


def _is_text(text: str) -> bool:
    """Whether all of it was UTF-8. (Encoding is ten times as fast as searching.)"""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
