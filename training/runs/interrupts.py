"""Ctrl-C and SIGTERM while a policy is trained: a checkpoint is written before it ends, but for the
last update of a TRL trainer, which would not know when it goes on that it has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stepagent.training.runs import processes

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTE = b"\nstopping at the end of this update; once more to stop at once\n"


class CheckpointClock:
    """When a checkpoint is due: some time after the one before, and when the training is
    interrupted. `checkpoint_clock` makes one."""

    def __init__(self, seconds: float, came: Callable[[], bool]):
        self._seconds, self._came = seconds, came
        self._written = time.monotonic()
        self.interrupted = False
        """Whether the checkpoint that is due is the last one."""

    def due(self) -> bool:
        """Whether to write one now. All processes get the same answer: they write it together."""
        late = time.monotonic() - self._written > self._seconds
        answers = processes.gather((late, self._came()))
        self.interrupted = any(came for _, came in answers)
        return self.interrupted or any(late for late, _ in answers)

    def written(self) -> None:
        """To be called after one was written. Raises KeyboardInterrupt where it is the last."""
        self._written = time.monotonic()
        if self.interrupted:
            processes.wait()  # the main one may still be writing
            raise KeyboardInterrupt


@contextmanager
def checkpoint_clock(seconds: float) -> Iterator[CheckpointClock]:
    """A clock for the updates that the body makes, at least `seconds` between two checkpoints."""
    with held(_NOTE) as came:
        yield CheckpointClock(seconds, came)


@contextmanager
def held(note: bytes = b"") -> Iterator[Callable[[], bool]]:
    """Within the body Ctrl-C and SIGTERM wait; the function that it gets says whether one came.

    What waits becomes KeyboardInterrupt when the body ends. The second signal of a kind raises it
    at once; Ctrl-C and SIGTERM together count as one, since a launcher that is interrupted sends
    the one after the other. `note` is written to stderr when the first one comes. A signal that the
    process ignores stays ignored. Outside the main thread, which alone gets signals, the body just
    runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: set[int] = set()

    def hold(number: int, frame: FrameType | None) -> None:
        if number in came:
            raise KeyboardInterrupt
        if not came:
            os.write(2, note)  # print may be what the signal has interrupted
        came.add(number)

    before = {n: signal.getsignal(n) for n in _SIGNALS}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
