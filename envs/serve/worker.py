"""A thread that owns one environment, so that a slow step delays no other session.

Environments are synchronous, and some (a browser, a connection to Java) need all their calls from
one thread; hence a thread per session and no pool. Tasks come from the event loop and their results
go back to it as futures.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

_Task = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Worker(threading.Thread):
    """Carries out one task after another until it is told to end."""

    def __init__(self, name: str):
        super().__init__(daemon=True, name=name)  # a hanging thread must not block the exit
        self._loop = asyncio.get_running_loop()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self.start()

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """What `function` returns or raises, once the thread gets to it."""
        future = self._loop.create_future()
        self._tasks.put((function, future))
        return future

    def end(self) -> None:
        """Ends the thread after the tasks it has."""
        self._tasks.put(None)

    def run(self) -> None:
        while (task := self._tasks.get()) is not None:
            function, future = task
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has closed: nobody is waiting any more
                return
            del task, function, future, result, error  # keeps no environment alive while idle


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # abandoned meanwhile
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        future.set_exception(error)
