"""A local HTTP server for tests: answers as told, fails as told, and remembers what it saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

FOREIGN_PAGES = [
    {"Origin": "https://evil.test"},
    {"Origin": "null"},
    {"Host": "evil.test"},
    {"Host": "evil.test:80", "Origin": "http://evil.test:80"},
]
"""Headers of requests that a browser sends for pages of other sites, to a server on loopback."""


class Scripted(ThreadingHTTPServer):
    """Answers by a script of (status, body, headers, seconds to wait); then as `answer` says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.script: list[tuple[int, bytes, dict[str, str], float]] = []
        self.seen: list[Any] = []
        """What `read` made of each request."""
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        """Requests under way: just now, and at most."""
        self.lock = threading.Lock()
        self.delay = 0.0

    def plan(self, status: int, body: bytes | str = b"", wait: float = 0, **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.script.append((status, data, named, wait))

    def read(self, path: str, body: bytes) -> Any:
        """What the request asks for."""
        raise NotImplementedError

    def answer(self, request: Any) -> bytes | tuple[int, bytes]:
        """The body of a good answer, or the status and body of another."""
        raise NotImplementedError

    def answer_headers(self, request: Any) -> dict[str, str]:
        """The headers of a good answer."""
        return {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up waiting are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_GET(self) -> None:
        self.respond(b"")

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers["Content-Length"])))

    def respond(self, body: bytes) -> None:
        server = self.server
        request = server.read(self.path, body)
        with server.lock:
            server.seen.append(request)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers.items()))
            server.now += 1
            server.most = max(server.most, server.now)
            plan = server.script.pop(0) if server.script else None
        if plan is None:
            answer = server.answer(request)
            status, data = answer if isinstance(answer, tuple) else (200, answer)
            plan = status, data, server.answer_headers(request), server.delay
        status, data, headers, wait = plan
        time.sleep(wait)
        with server.lock:
            server.now -= 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def running(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server answers meanwhile, and no proxy stands between."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
