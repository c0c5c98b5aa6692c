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
_decode = json.JSONDecoder().raw_decode


class JSONError(ValueError):
    """Text that is truncated or not JSON, with the reason and the number of items before it."""

    def __init__(self, reason: str, count: int):
        super().__init__(f"cut or damaged after {count} items ({reason})")
        self.reason, self.count = reason, count


class JSONStream:
    """The items of a JSON text. A byte order mark is skipped, broken UTF-8 is replaced.

    Iterating gives the elements of an array, or else the values that follow one another (JSON
    lines); `members` gives the pairs of one object instead. Both raise JSONError.
    """

    def __init__(self, file: IO[bytes]):
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors="replace")
        self._text, self._at, self._count = "", 0, 0
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
                self._at += length
                return value
            except json.JSONDecodeError as error:
                # If the text is only truncated, the error is at its end or in its last string.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if not cut or len(self._text) - self._at > _LARGEST:
                    raise JSONError(error.msg, self._count) from None
                if not self._more():
                    raise JSONError(f"cut at its end: {error.msg}", self._count) from None
            except RecursionError:
                raise JSONError("nested too deeply", self._count) from None

    def _more(self) -> bool:
        rest = self._text[self._at :]
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._at = rest + chunk, 0
        return bool(chunk)
