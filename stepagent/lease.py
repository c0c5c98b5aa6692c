"""A lease: the right to work on something, for one process of all machines that share a folder.

A file lock does not suffice there: some shared file systems free the lock of a dead machine late or
never, others let each machine lock for itself. A lease needs nothing but the folder: no clock that
machines agree on, and nobody to free it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from stepagent.files import read_text

_OVER = "over"


class Lease:
    """Held by one process until it releases it, or does not renew it for `seconds`.

    Parameters
    ----------
    folder: on the shared file system, for this lease alone. Holder after holder has a file in it,
        `1`, `2`, …, and the newest counts.
    seconds: how long a holder counts as alive without a sign of life.

    A holder keeps changing its file, which names its `seconds`. Whoever sees it unchanged for those
    and for its own creates the next one, exclusively, so that one process gets it. A holder that
    cannot renew in time, since it was stopped or cut off from the folder, gives up after two thirds
    of `seconds`; if it could not even notice, it learns from the next one's file that it has lost
    the lease.
    """

    def __init__(self, folder: Path, seconds: float):
        self._folder, self._seconds = folder, seconds
        self._number = 0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Takes the lease, watching its holder for as long as it takes to tell whether it lives;
        False where it does. Raises OSError where the folder cannot be used."""
        self._folder.mkdir(parents=True, exist_ok=True)
        newest = max((int(name) for name in os.listdir(self._folder) if name.isdigit()), default=0)
        if newest and not self._is_over(newest):
            return False
        try:
            with self._file(newest + 1).open("x") as file:
                file.write(self._sign())
        except FileExistsError:  # another process was faster
            return False
        self._number = newest + 1
        return True

    def keep(self, lost: Callable[[], None]) -> None:
        """Renews the lease in a thread of its own, which calls `lost` where that fails: from then
        on another process may work."""
        self._thread = threading.Thread(target=self._renew, args=(lost,), daemon=True, name="lease")
        self._thread.start()

    def release(self) -> None:
        """Lets the next process take it at once."""
        self._done.set()
        if self._thread:
            self._thread.join()
        self._file(self._number).write_text(_OVER)

    def _is_over(self, number: int) -> bool:
        """Whether a holder has released it, or dies while we watch."""
        first = self._read(number)
        end = time.monotonic() + max(self._seconds, _seconds(first))
        while (now := self._read(number)) == first != _OVER and time.monotonic() < end:
            time.sleep(min(1.0, self._seconds / 20))
        return now in (first, _OVER)

    def _renew(self, lost: Callable[[], None]) -> None:
        renewed = time.monotonic()
        while not self._done.wait(self._seconds / 6):
            now, is_ours = time.monotonic(), True
            try:
                is_ours = not self._file(self._number + 1).exists()
                self._file(self._number).write_text(self._sign())
            except OSError:  # a network that is down for a moment
                pass
            else:
                renewed = now
            # Measured after writing: it may have taken long.
            if not is_ours or time.monotonic() - renewed > self._seconds * 2 / 3:
                lost()
                return

    def _sign(self) -> str:
        """A sign of life, unlike any other."""
        return f"{uuid4().hex} {self._seconds}"

    def _file(self, number: int) -> Path:
        return self._folder / str(number)

    def _read(self, number: int) -> str:
        # Opened anew: network file systems then ask the server, and not their cache.
        return read_text(self._file(number), errors="replace")


def _seconds(sign: str) -> float:
    """How long its holder counts as alive without another; 0 where it does not say so."""
    with contextlib.suppress(ValueError):
        return float(sign.partition(" ")[2])
    return 0.0
