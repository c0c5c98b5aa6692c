"""Limits on what a connection may send before the application sees it.

uvicorn reads a request's head without a limit on its size or time, waits for ever until a client
takes its answer, and accepts every connection. Here a head may have 64 kB and must arrive within
`HEAD_SECONDS`, a body within `BODY_SECONDS`, and an answer must be taken within `ANSWER_SECONDS`.
When there are too many connections, one that waits for its client makes room for the new one, and
none of those delays a shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

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
HEAD_SECONDS, BODY_SECONDS, ANSWER_SECONDS = 20.0, 60.0, 60.0
LAST_SECONDS = 1.0
"""Time for the rest of requests, and for taking answers, when the server stops."""
_LOG_SECONDS = 10.0
"""Time between log lines about too many connections."""


class LimitedProtocol(Protocol):
    """HTTP with limits; uvicorn is given it with `functools.partial(…, max_connections=n)`."""

    _last_log = -_LOG_SECONDS

    def __init__(self, *args: Any, max_connections: int, **options: Any):
        super().__init__(*args, **options)
        self._max_connections = max_connections
        self._timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._head: int | None = 0
        """Bytes of a head that is arriving; None: none is."""
        self._refusal: Refusal | None = None
        self.answers = 0
        self.idle_since = time.monotonic()
        """Time of the last answer's end."""

    @property
    def waits_for_client(self) -> bool:
        """For a request, for the rest of one, or until it takes its answer."""
        return (
            self.cycle is None
            or self.cycle.response_complete
            or self.cycle.more_body
            or self.flow.write_paused
            or self.transport.is_closing()
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(HEAD_SECONDS, "head")
        if len(self.connections) > self._max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_answer_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # what came after the refused head
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD:
                self._refuse(_head_too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer_timer = self.loop.call_later(ANSWER_SECONDS, self._answer_not_taken)

    def resume_writing(self) -> None:
        self._stop_answer_timer()
        super().resume_writing()

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(LAST_SECONDS, self._abort_if_waiting)

    # httptools' callbacks -------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._start_timer(HEAD_SECONDS, "head")

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._head = None
        if len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > MAX_HEAD:
            self._refusal = _head_too_large()
            raise ValueError("refused")  # the parser stops, and asks for `send_400_response`
        self._start_timer(BODY_SECONDS, "body")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.answers += 1
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

    def _stop_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _answer_not_taken(self) -> None:
        self.transport.abort()
        why = f"the client did not take its answer within {ANSWER_SECONDS:g} seconds"
        self._log("connection", why=why)

    def _abort_if_waiting(self) -> None:
        if self.waits_for_client:
            self.transport.abort()

    def _log(self, event: str, **fields: Any) -> None:
        client = (self.client or ("",))[0]
        log.warning(event, extra={"fields": {**fields, "client": client}})

    def _too_slow(self, seconds: float, part: str) -> None:
        if self.flow.read_paused:  # the delay is ours: nothing is read at the moment
            self._start_timer(seconds, part)
        else:
            message = f"the request's {part} did not arrive within {seconds:g} seconds"
            self._refuse(Refusal(408, "slow", message))

    def _refuse(self, refusal: Refusal, *, logged: bool = True) -> None:
        """Answers, unless an answer has begun, and closes the connection."""
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = encode({"error": refusal.error})
            self.transport.write(
                b"HTTP/1.1 %d \r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n" % (refusal.status, len(body)) + body
            )
        self.transport.close()
        if logged:
            self._log("request", status=refusal.status, why=str(refusal))

    def _make_room(self) -> None:
        """Ends the connection that waits for its client since longest ago, those that never had an
        answer first."""
        others = [c for c in self.connections if isinstance(c, LimitedProtocol) and c is not self]
        waiting = [c for c in others if c.waits_for_client]
        if waiting:
            last = min(waiting, key=lambda c: (c.answers > 0, c.idle_since))
            last.transport.abort()  # close() would wait until an answer is taken
            self.connections.discard(last)  # now, so that the next one chooses another
        else:
            message = f"the server has {self._max_connections} connections (--max-connections)"
            self._refuse(Refusal(503, "connections", message), logged=False)
        if time.monotonic() - LimitedProtocol._last_log > _LOG_SECONDS:
            LimitedProtocol._last_log = time.monotonic()
            closed = "one that waited" if waiting else "the new one"
            self._log("too many connections", limit=self._max_connections, closed=closed)


class Server(uvicorn.Server):
    """uvicorn's, under a flood of connections.

    uvloop accepts one connection per listening socket and turn of the loop, and a turn takes some
    milliseconds where sessions are busy: a few hundred new connections would keep the next one
    waiting for a second. So it gets the same socket many times.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        if not type(loop).__module__.startswith("uvloop"):  # asyncio's own accepts all in a turn
            return
        protocol: Any = self.config.http_protocol_class
        make_protocol = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for listener in [listener for server in self.servers for listener in server.sockets]:
            for _ in range(_ACCEPTS - 1):
                same = socket.socket(fileno=os.dup(listener.fileno()))
                server = await loop.create_server(
                    make_protocol, sock=same, backlog=self.config.backlog
                )
                self.servers.append(server)


_ACCEPTS = 32
"""Connections that are accepted in a turn of the loop."""


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
