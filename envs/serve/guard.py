"""Checks before every request (token, size), counters and log lines."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import logging
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepagent.envs.loopback import is_foreign
from stepagent.envs.remote.client import PROTOCOL, PROTOCOL_HEADER, TOKEN_VARIABLE
from stepagent.envs.serve.limits import Refusal, encode
from stepagent.envs.serve.metrics import Metrics

log = logging.getLogger("stepagent.serve")
OPEN = ("/healthz", "/readyz", "/health")
"""Paths that need no token: monitoring has none."""
_SLOW = 10.0
"""Seconds after which a request is logged even if it succeeded."""
_DRAINED = 256 << 20
"""Bytes of an oversized request that are read and discarded before the answer, so that a client
that sends before it reads can see the answer. Beyond that, the connection is cut."""
_VERSION = PROTOCOL_HEADER.lower().encode()


class Guard:
    """ASGI middleware; without a `token` everybody is let in."""

    def __init__(self, app: ASGIApp, token: str | None, max_body: int, metrics: Metrics):
        self.app, self.max_body, self.metrics = app, max_body, metrics
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        refusal = self._refusal(scope["path"], headers)
        if scope["type"] == "websocket":
            if refusal is not None:
                await receive()
                return await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)})
            return await self.app(scope, receive, send)
        start, status, size = time.perf_counter(), 0, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if refusal is not None:
                raise refusal
            await self.app(scope, counted, noted)
        except Refusal as refused:
            if refused.status == 413:
                await self._drain(receive)
            await answer_refusal(refused, noted)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._token is not None and path not in OPEN and not self._knows(headers):
            message = "the token is wrong" if b"authorization" in headers else "a token is needed"
            return Refusal(
                401,
                "unauthorized",
                f"{message}: send the server's (set {TOKEN_VARIABLE}, or token=…)",
            )
        if b"origin" in headers and self._is_foreign(headers):
            message = "web pages may not use this server, but for its own (/docs)"
            return Refusal(403, "origin", message)
        client = headers.get(_VERSION)
        if client is not None and client != str(PROTOCOL).encode():
            return Refusal(
                400,
                "version",
                f"this server speaks protocol {PROTOCOL}, the client {client.decode('latin-1')!r}: "
                "install the same version of StepAgent on both sides",
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            return self._too_large()
        return None

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        """Bearer, or Basic with the token as the password, which a URL can contain."""
        assert self._token is not None
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"basic":
            try:
                value = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(value.strip(), self._token)

    def _is_foreign(self, headers: dict[bytes, bytes]) -> bool:
        """Whether the web page that a browser's request comes from is another site's. Without a
        token, not even a host name can be trusted, as it may point anywhere."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        return is_foreign(host, origin, any_name=self._token is not None)

    def _too_large(self) -> Refusal:
        return Refusal(
            413, "too_large", f"a request may have {self.max_body} bytes (--max-body-mb)"
        )

    async def _drain(self, receive: Receive) -> None:
        drained = 0
        while drained < _DRAINED:
            message = await receive()
            drained += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        self.metrics.requests.labels(str(status)).inc()
        bad = status >= 400 or status == 0
        if bad or seconds > _SLOW or log.isEnabledFor(logging.DEBUG):
            fields = {
                "method": scope["method"],
                "path": _without_secret(scope["path"]),
                "status": status,
                "ms": round(1000 * seconds, 2),
                "client": (scope.get("client") or ("",))[0],
            }
            log.log(
                logging.WARNING if bad else logging.DEBUG if seconds <= _SLOW else logging.INFO,
                "request",
                extra={"fields": fields},
            )


def _without_secret(path: str) -> str:
    """A path for the log: session ids are cut to the part that is not secret."""
    return _SESSION.sub(r"\1", path)[:200]


_SESSION = re.compile(r"(?<![\w-])([0-9a-f]{8})[\w-]{22}(?![\w-])")
"""A session's id, wherever it is in a path."""


async def answer_refusal(refusal: Refusal, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    if refusal.retry_after:
        headers.append((b"retry-after", str(refusal.retry_after).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 413:
        headers.append((b"connection", b"close"))
    body = encode({"error": refusal.error})
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MAX_FIELD, _MAX_TRACEBACK = 1000, 10_000
"""Characters of a log line's field."""


def _short(value: Any) -> Any:
    """The value, or the beginning of its text where that is too long for a log."""
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return value if len(text) <= _MAX_FIELD else f"{text[:_MAX_FIELD]}… ({len(text)} characters)"


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, event and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage()[:_MAX_FIELD],
            **{name: _short(value) for name, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK:]
        return json.dumps(line, ensure_ascii=False, default=str)
