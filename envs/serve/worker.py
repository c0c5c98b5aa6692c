"""A thread that owns one environment, so that a slow step holds up nobody else.

Environments are synchronous, and some (a browser, a connection to Java) want all their calls from
one thread; hence a thread a session, not a pool. Orders come from the event loop and their results
go back to it as futures.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

_Order = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class Worker(threading.Thread):
    """Carries out one order after another until it is told to end."""

    def __init__(self, name: str):
        super().__init__(daemon=True, name=name)  # one that hangs must not hold up the exit
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self.start()

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """What `function` returns or raises, once the thread has come to it."""
        future = self._loop.create_future()
        self._orders.put((function, future))
        return future

    def end(self) -> None:
        """The thread ends after the orders it has."""
        self._orders.put(None)

    def run(self) -> None:
        while (order := self._orders.get()) is not None:
            function, future = order
            result: Any = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has closed: nobody waits any more
                return
            del order, function, future, result, error  # keeps no environment alive while idle


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # given up meanwhile
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError(f"StopIteration: {error}"))
    else:
        future.set_exception(error)
