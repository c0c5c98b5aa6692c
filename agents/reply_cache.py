"""Replies of a server, cached on disk, so that repeating a request costs nothing.

One SQLite file that several processes may use at once. A reply is stored under the checksum of its
request: the server's address (without a user's name), model, messages and parameters (including the
seed, if any). The file contains neither the request's text nor any key or address. A model that
changes behind the same address and name cannot be noticed: use another file for it, or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepagent.files import check_files

log = logging.getLogger(__name__)
_WAIT = 30.0
"""Seconds to wait while another process is writing."""


@dataclass(frozen=True)
class Completion:
    """A server's reply and the tokens that it took."""

    text: str
    read: int = 0
    """Prompt tokens at the full price."""
    cached: int = 0
    """Prompt tokens that the server had cached itself."""
    generated: int = 0
    ending: str = ""
    """How it ended, if not by itself (`agents.responses`)."""
    thought: str = ""
    """What the server returns as thinking, apart from the text."""
    ids: tuple[int, ...] = ()
    """The reply's tokens, its thinking included, where the server gives them."""
    prompt_ids: tuple[int, ...] = ()
    """Those of the prompt as the server wrote it, where it gives them."""

    @property
    def tokens(self) -> int:
        return self.read + self.cached + self.generated


class ReplyCache:
    """Completions by request. Raises ValueError if the file cannot be opened or is not a cache.

    Later failures (a full disk, say) lose only the replies that could not be stored, and are logged
    once.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self._lock, self._warned = threading.Lock(), False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            check_files(self.path)
            self.path.touch(mode=0o600)  # conversations may be private
            self._file = sqlite3.connect(
                self.path, timeout=_WAIT, check_same_thread=False, isolation_level=None
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, text TEXT NOT NULL,"
                " read INTEGER NOT NULL, kept INTEGER NOT NULL, generated INTEGER NOT NULL)"
            )
            self._add_columns("ending", "thought", "ids", "prompt_ids")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"the reply cache {self.path} cannot be used ({error}): delete it, name another "
                "file, or use none (--no-cache)"
            ) from None

    def _add_columns(self, *names: str) -> None:
        """Files of earlier versions lack them."""
        existing = {row[1] for row in self._file.execute("PRAGMA table_info(replies)")}
        for name in names:
            if name not in existing:
                try:
                    add = f"ALTER TABLE replies ADD COLUMN {name} TEXT NOT NULL DEFAULT ''"
                    self._file.execute(add)
                except sqlite3.OperationalError as error:  # another process was faster
                    if "duplicate" not in str(error):
                        raise

    def get(self, request: Mapping[str, Any]) -> Completion | None:
        """The stored completion of this request, if any."""
        columns = "text, read, kept, generated, ending, thought, ids, prompt_ids"
        select = f"SELECT {columns} FROM replies WHERE request = ?"
        try:
            with self._lock:
                row = self._file.execute(select, (_key(request),)).fetchone()
        except sqlite3.Error as error:
            self._warn(error)
            return None
        if row is None:
            return None
        try:
            plain = Completion(*row[:6])
            return replace(plain, ids=_read_ids(row[6]), prompt_ids=_read_ids(row[7]))
        except ValueError as error:
            self._warn(error)
            return None

    def put(self, request: Mapping[str, Any], completion: Completion) -> None:
        """Stores a completion; the first one of a request stays."""
        c = completion
        counts = (c.read, c.cached, c.generated)
        ids = (" ".join(map(str, ids)) for ids in (c.ids, c.prompt_ids))
        row = (_key(request), c.text, *counts, c.ending, c.thought, *ids)
        columns = "request, text, read, kept, generated, ending, thought, ids, prompt_ids"
        insert = f"INSERT OR IGNORE INTO replies ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        try:
            with self._lock:
                self._file.execute(insert, row)
        except (sqlite3.Error, UnicodeEncodeError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning("the reply cache %s fails (%s): continuing without it", self.path, error)
        self._warned = True

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _read_ids(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _key(request: Mapping[str, Any]) -> str:
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
