"""How a client talks to an environment server: one connection pool per server, retries, errors.

Every request can safely be sent twice: a session is opened under a key that the client chooses,
calls in a session are numbered, and the server repeats its answer to a repeated key or number. So
whatever happens to a connection, a request is sent again until `patience` runs out.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import time
from functools import lru_cache
from typing import Any, NoReturn

import gymnasium as gym
import urllib3

from stepagent.errors import UserError

PROTOCOL = 1
"""Version of the protocol. Both sides must have the same."""
PROTOCOL_HEADER = "X-StepAgent-Protocol"
TOKEN_VARIABLE = "STEPAGENT_TOKEN"
"""Environment variable from which both sides read the token."""
_CONNECT = 5.0
"""Seconds to wait for a connection."""
_SLACK = 15.0
"""Seconds beyond the server's own limits after which the client gives up."""
_GOODBYE = 5.0
"""Seconds to wait for the answer when a session is closed, which waits for no environment."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two attempts: doubled from the first to the longest."""


class RemoteError(UserError, ConnectionError):
    """Something between this process and the environment failed; the message says what."""


class ServerGone(RemoteError):
    """The server (or the one behind a gateway) cannot be reached or is shutting down."""


class ServerFull(RemoteError):
    """The server has no room for another session."""


class WrongVersion(RemoteError):
    """The server speaks another protocol, runs another StepAgent, or is something else."""


class WrongToken(RemoteError):
    """The server requires a token, or another one."""


class SessionLost(RemoteError):
    """The server does not know the session (any more): expired, closed, or it was restarted.

    The current episode is lost; `reset()` opens a new session by itself.
    """


class StepTimeout(RemoteError):
    """The environment took longer than the server allows; the server has closed the session."""


class EnvironmentFailed(UserError, RuntimeError):
    """The environment raised, on the server, an exception with no equivalent here."""


_KINDS: dict[str, type[RemoteError]] = {
    "closing": ServerGone,
    "full": ServerFull,
    "version": WrongVersion,
    "unauthorized": WrongToken,
    "unknown_session": SessionLost,
    "expired": SessionLost,
    "timeout": StepTimeout,
}
"""Code of a server's refusal → exception raised for it."""
LOST = tuple(code for code, kind in _KINDS.items() if kind is SessionLost)
"""Codes of a session that is over."""
_GATEWAY = (502, 503, 504)
"""Statuses of a gateway that got no answer from the server behind it."""
_BUILTIN = ("ValueError", "TypeError", "KeyError", "RuntimeError", "NotImplementedError", "OSError")


def raise_refusal(error: dict[str, Any], url: str) -> NoReturn:
    """Raises what a server's refusal (`{"code", "message", "type"}`) stands for."""
    code, message = str(error.get("code")), str(error.get("message"))
    if code != "environment":
        raise _KINDS.get(code, RemoteError)(f"{url}: {message}")
    kind = str(error.get("type"))
    if kind == "ResetNeeded":
        raise gym.error.ResetNeeded(message)
    if kind in _BUILTIN:
        raise getattr(builtins, kind)(message)
    raise EnvironmentFailed(f"{kind}: {message}")


def checked_token(token: str | None) -> str:
    """The token, "" for none. Raises ValueError for one that HTTP's headers cannot carry."""
    if token and not re.fullmatch("[!-~]+", token):
        raise ValueError(
            f"the token (argument `token`, or {TOKEN_VARIABLE}) may have visible ASCII characters "
            "only, and no blanks or line ends"
        )
    return token or ""


class Server:
    """One server, as this process's clients see it; threads share it and its connections.

    Parameters
    ----------
    url: such as http://127.0.0.1:8001, with a path if a proxy needs one.
    token: what the server was started with; None: the variable STEPAGENT_TOKEN, if set.

    Raises ValueError for an invalid URL or token.
    """

    def __init__(self, url: str, token: str | None = None):
        parsed = urllib3.util.parse_url(url) if isinstance(url, str) else None
        if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"url is {url!r}: it must look like http://127.0.0.1:8001")
        self.url = url.rstrip("/")
        self._path = (parsed.path or "").rstrip("/")
        self.read_timeout = 300.0 + _SLACK
        """Seconds that an answer may take; replaced by the server's own limit."""
        self.max_body = 1 << 20
        """Bytes that a request may have; replaced by the server's own limit."""
        self._headers = {"Content-Type": "application/json", PROTOCOL_HEADER: str(PROTOCOL)}
        if token := checked_token(token or os.environ.get(TOKEN_VARIABLE)):
            self._headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.connection_from_url(self.url, maxsize=256, block=False, retries=False)

    def adopt_limits(self, limits: dict[str, Any]) -> None:
        """Adopts the limits that the server states when it opens a session."""
        longest = max(float(limits["step_seconds"]), float(limits["start_seconds"]))
        self.read_timeout, self.max_body = longest + _SLACK, int(limits["max_body"])

    def call(self, method: str, path: str, body: Any = None, *, patience: float = 0.0) -> Any:
        """The answer to a request, decoded from JSON.

        Sends it again for up to `patience` seconds (once if 0), while the server cannot be
        reached, is shutting down or is full. Raises a `RemoteError`, or what the environment
        raised; see `raise_refusal`.
        """
        text = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        deadline, pause = time.monotonic() + patience, _FIRST_PAUSE
        while True:
            try:
                return self._once(method, path, text)
            except (ServerGone, ServerFull):
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, method: str, path: str, body: bytes | None) -> Any:
        within = _GOODBYE if method == "DELETE" else self.read_timeout
        timeout = urllib3.Timeout(connect=_CONNECT, read=within)
        try:
            answer = self._pool.urlopen(
                method,
                self._path + path,
                body=body,
                headers=self._headers,
                timeout=timeout,
                retries=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ServerGone(
                f"no answer from {self.url} ({type(error).__name__}: {error}). Is the server "
                "running (stepagent serve), and is this its address?"
            ) from None
        try:
            content = json.loads(answer.data)
            refused = content["error"] if answer.status >= 400 else None
            is_ours = refused is None or isinstance(refused["code"], str)
        except (ValueError, KeyError, TypeError):
            is_ours = False
        if not is_ours and answer.status in _GATEWAY:
            raise ServerGone(
                f"{self.url} answered {method} {path} with status {answer.status} and "
                f"{answer.data[:80]!r}, as a gateway does. Is the server behind it running?"
            )
        if not is_ours:
            raise WrongVersion(
                f"{self.url} is no StepAgent server that speaks protocol {PROTOCOL}: it answered "
                f"{method} {path} with status {answer.status} and {answer.data[:80]!r}"
            )
        if refused is None:
            return content
        return raise_refusal(refused, self.url)


@lru_cache(maxsize=256)
def _server(process: int, url: str, token: str | None) -> Server:
    return Server(url, token)


def servers(url: str | list[str] | tuple[str, ...], token: str | None = None) -> list[Server]:
    """The servers that `url` names: a URL, several separated by commas, or a list of them.

    Raises ValueError if there is none, or one of them is not a URL.
    """
    urls = url.split(",") if isinstance(url, str) else list(url)
    urls = [one.strip() if isinstance(one, str) else one for one in urls]
    if not urls:
        raise ValueError("url names no server")
    token = token or os.environ.get(TOKEN_VARIABLE)
    return [_server(os.getpid(), one, token) for one in urls]  # a forked child makes its own pool
