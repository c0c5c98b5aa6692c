"""Limits on what a connection may send before the application sees it.

uvicorn reads a request's head without a limit on its size or time, and takes every connection. Here
a head may have 64 kB and must arrive within `HEAD_SECONDS`, a body within `BODY_SECONDS`; and when
there are too many connections, one that is idle makes room for the new one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from stepagent.envs.serve.limits import Refusal, encode

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol
    except ImportError:  # without httptools (PyPy); h11 limits heads itself
        from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol

log = logging.getLogger("stepagent.serve")
MAX_HEAD = 64 << 10
"""Bytes of a request's line and headers."""
HEAD_SECONDS, BODY_SECONDS = 20.0, 60.0
_LOG_SECONDS = 10.0
"""Time between log lines about too many connections."""


class LimitedProtocol(Protocol):
    """HTTP with limits; uvicorn is given it with `functools.partial(…, max_connections=n)`."""

    _last_log = -_LOG_SECONDS

    def __init__(self, *args: Any, max_connections: int, **options: Any):
        super().__init__(*args, **options)
        self._max_connections = max_connections
        self._timer: asyncio.TimerHandle | None = None
        self._head: int | None = 0
        """Bytes of a head that is arriving; None: none is."""
        self._refusal: Refusal | None = None
        self.requests = 0
        self.idle_since = time.monotonic()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_SECONDS, "head")
        if len(self.connections) > self._max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # what came after the refused head
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(_head_too_large())

    # httptools' callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._start_timer(HEAD_SECONDS, "head")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._head = None
        self.requests += 1
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > MAX_HEAD:
            self._refusal = _head_too_large()
            raise ValueError("refused")  # the parser stops, and asks for `send_400_response`
        self._start_timer(BODY_SECONDS, "body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.idle_since = time.monotonic()
        super().on_response_complete()

    def handle_websocket_upgrade(self, *args: Any) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade(*args)

    def send_400_response(self, msg: str) -> None:
        if self._refusal is not None:
            self._refuse(self._refusal)
        else:
            super().send_400_response(msg)

    # Limits ---------------------------------------------------------------------------------------

    def _start_timer(self, seconds: float, part: str) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._too_slow, seconds, part)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, seconds: float, part: str) -> None:
        if self.flow.read_paused:  # the delay is ours: nothing is read at the moment
            self._start_timer(seconds, part)
        else:
            message = f"the request's {part} did not arrive within {seconds:g} seconds"
            self._refuse(Refusal(408, "slow", message))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers, unless an answer has begun, and closes the connection."""
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = encode({"error": refusal.error})
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n" % (refusal.status, len(body)) + body
            )
        self.transport.close()
        fields = {
            "status": refusal.status,
            "why": str(refusal),
            "client": (self.client or ("",))[0],
        }
        log.warning("request", extra={"fields": fields})

    def _make_room(self) -> None:
        """Closes the connection that is idle for longest, those without any request first."""
        others = [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]
        idle = [c for c in others if c.is_idle and not c.transport.is_closing()]
        if idle:
            min(idle, key=lambda c: (c.requests > 0, c.idle_since)).transport.close()
        else:
            message = f"the server has {self._max_connections} connections (--max-connections)"
            self._refuse(Refusal(503, "connections", message))
        if time.monotonic() - LimitedProtocol._last_log > _LOG_SECONDS:
            LimitedProtocol._last_log = time.monotonic()
            fields = {
                "limit": self._max_connections,
                "closed": "an idle one" if idle else "the new one",
            }
            log.warning("too many connections", extra={"fields": fields})


def _head_too_large() -> Refusal:
    return Refusal(431, "head", f"a request's line and headers may have {MAX_HEAD} bytes")


def available_connections(wanted: int) -> int:
    """As many of them as this process may open files for, after raising its soft limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return max(1, min(wanted, most - _FILES))
    return wanted


_FILES = 256
"""Files that the server and its environments may have open beside the connections."""
