"""One completion from servers with OpenAI's API: the request, retries, which server it goes to.

What a server cannot take is learnt from its answers and left out from then on: parameters that the
model refuses, the system role, an address without `/v1` (`agents.responses` reads the answers).
"""

from __future__ import annotations

import email.utils
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from stepagent.agents.costs import RateLimit
from stepagent.agents.reply_cache import Completion
from stepagent.agents.responses import (
    FILTER,
    TOKEN_IDS,
    Rejection,
    Unreadable,
    fold_system,
    read_completion,
)
from stepagent.agents.tool_calls import listed, structured, with_list
from stepagent.errors import SetupError, UserError

log = logging.getLogger(__name__)

_RETRYABLE = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""
_UNREACHABLE = {502, 503, 504, 529}
"""Statuses after which another server may do better."""
_RESTING = 30.0
"""Seconds for which a server that could not be reached is passed over if there are others."""
_OPTIONAL = ("max_tokens", "temperature", "top_p", "stop", "seed", *TOKEN_IDS)
"""Parameters that are left out (or renamed) where a model does not take them."""


class ApiError(UserError, RuntimeError):
    """The server cannot be used; the message says which server, why, and what to do."""


class NoAccess(SetupError, ApiError):
    """The server refuses the key, or has no such model: no request can be answered."""


class TooLong(Exception):
    """The server refused the request because prompt and reply exceed the context."""

    def __init__(self, message: str, rejection: Rejection):
        super().__init__(message)
        self.rejection = rejection


class _Key(requests.auth.AuthBase):
    """Sends the key, and keeps requests from using one from ~/.netrc."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Server:
    """One of the addresses that serve the model."""

    def __init__(self, url: str):
        self.url = url
        self.busy = 0
        """Requests under way"""
        self.rests_until = 0.0
        self.is_versioned = bool(re.search(r"/(v\d\w*|openai)(/|$)", urlsplit(url).path))
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return without_user(self.url)

    @property
    def endpoint(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/chat/completions"))

    def add_version(self, asked: str) -> bool:
        """Tries `/v1` from now on; False if the endpoint that was asked has a version already."""
        with self._lock:
            if asked != self.endpoint:
                return True  # another request has added it meanwhile
            if self.is_versioned:
                return False
            parts = urlsplit(self.url)
            self.url = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/v1"))
            self.is_versioned = True
            return True


class Completions:
    """The chat completions of one model at one server or several.

    Parameters
    ----------
    model, urls, key: what and where; `key` goes into the requests and nowhere else. A conversation
        stays at one server (which may keep its prefix); new ones go to the one with the least to
        do.
    parameters: of every request. Those that the model rejects by name are omitted from then on.
    timeout, retries, backoff: as in `agents.openai.OpenAIAgent`.
    limit: of requests and tokens.
    count: called with the number of requests and retries, by name.
    """

    def __init__(
        self,
        model: str,
        urls: Sequence[str],
        key: str,
        parameters: dict[str, Any],
        *,
        timeout: float,
        retries: int,
        backoff: float,
        limit: RateLimit,
        count: Callable[..., None],
    ):
        self.model, self._secret = model, key
        self._servers = [_Server(url) for url in urls]
        self._places: dict[Hashable, _Server] = {}
        self._parameters = dict(parameters)
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._limit, self._count = limit, count
        self._refused: set[str] = set()  # parameters that this model does not take
        self._folds_system = self._lists_tools = False
        self._lock = threading.Lock()

    def session(self) -> requests.Session:
        """A session for one thread; keeps its connections open."""
        session = requests.Session()
        session.auth = _Key(self._secret)
        return session

    def forget(self, key: Hashable) -> None:
        """The conversation has ended."""
        with self._lock:
            self._places.pop(key, None)

    def ask(
        self,
        body: dict[str, Any],
        session: requests.Session,
        stop: threading.Event,
        key: Hashable = None,
    ) -> Completion:
        """One completion, retried if needed; raises TooLong or ApiError.

        `key` is the conversation's, which goes to the same server each time.
        """
        problem, attempt = "", 0
        while not stop.is_set():
            wait = min(60.0, self._backoff * 2**attempt) * random.uniform(0.5, 1.0)
            entry = self._limit.wait(self._estimate(body), stop)
            if stop.is_set():
                break
            request, server = self._request(body), self._place(key)
            endpoint = server.endpoint
            self._count(requests=1)
            try:
                answer = self._post(server, endpoint, request, session)
                text = answer.content.decode("utf-8-sig", "replace")  # JSON, whatever headers say
                if answer.status_code == 200:
                    result = read_completion(text)
                    if isinstance(result, Completion):
                        self._limit.correct(entry, result.tokens)
                        return result
                else:
                    result = Rejection.read(answer.status_code, text)
                if result.filtered:
                    return Completion("", ending=FILTER)
                if result.status in (404, 405) and server.add_version(endpoint):
                    continue
                if self._adapt(result, request):
                    continue
                problem = self._problem(result, server)
                if result.status in _UNREACHABLE and self._rest(server):
                    wait = 0.0
                seconds = _retry_after(answer)
                if seconds is not None:
                    self._limit.pause(wait := seconds)
            except requests.Timeout:
                problem = f"no answer from {server.name} within {self._timeout:g} s"
                wait = 0.0 if self._rest(server) else wait
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                problem = (
                    f"no connection to {server.name} ({self._shown(_innermost(error))}): is the "
                    "server running, and OPENAI_BASE_URL right?"
                )
                wait = 0.0 if self._rest(server) else wait
            except Unreadable as error:
                if server.add_version(endpoint):
                    continue
                body_shown = self._shown(text)
                problem = f"{server.name} answered 200 with {error}: {body_shown!r}"
            except requests.RequestException as error:
                shown = self._shown(str(error))
                raise ApiError(f"no request to {server.name} is possible: {shown}") from None
            if attempt == self._retries:
                raise ApiError(f"{problem} (after {attempt + 1} attempts)")
            attempt += 1
            self._count(retries=1)
            stop.wait(wait)
        raise ApiError(problem or "another request has failed")

    def _post(
        self, server: _Server, endpoint: str, request: dict[str, Any], session: requests.Session
    ) -> requests.Response:
        with self._lock:
            server.busy += 1
        try:
            return session.post(
                endpoint,
                json=request,
                timeout=(min(10.0, self._timeout), self._timeout),
            )
        finally:
            with self._lock:
                server.busy -= 1

    # Which server -------------------------------------------------------------------------------

    def _place(self, key: Hashable) -> _Server:
        """The conversation's server; where it rests, or of a new one, that with the least to do."""
        with self._lock:
            now = time.monotonic()
            server = self._places.get(key)
            if server is None or server.rests_until > now:
                # Of several that rest, the one that has rested longest.
                server = min(self._servers, key=lambda s: (max(0.0, s.rests_until - now), s.busy))
                if key is not None:
                    self._places[key] = server
            return server

    def _rest(self, server: _Server) -> bool:
        """Passes a server over for a while; False if there is no other."""
        server.rests_until = time.monotonic() + _RESTING
        now = time.monotonic()
        return any(other.rests_until <= now for other in self._servers)

    # What it is asked ---------------------------------------------------------------------------

    def _request(self, body: dict[str, Any]) -> dict[str, Any]:
        request = {"model": self.model, **self._parameters, **body}
        limit = request.get("max_tokens")
        request = {name: request[name] for name in request.keys() - self._refused}
        if "max_tokens" in self._refused:
            request["max_completion_tokens"] = limit
        if self._lists_tools and "tools" in request:
            request["messages"] = with_list(request["messages"], listed(request.pop("tools")))
        elif "tools" in request:
            request["messages"] = structured(request["messages"])
        if self._folds_system:
            request["messages"] = fold_system(request["messages"])
        return request

    def _estimate(self, body: dict[str, Any]) -> int:
        """Roughly how many tokens a request will take, including the reply."""
        characters = sum(len(message["content"] or "") for message in body["messages"])
        return characters // 4 + int(self._parameters.get("max_tokens") or 0)

    def _adapt(self, rejection: Rejection, request: dict[str, Any]) -> bool:
        """Whether the next request leaves out what this server does not take."""
        if "tools" in request and rejection.no_tools:
            with self._lock:
                first, self._lists_tools = not self._lists_tools, True
            if first:
                log.warning(
                    "%s takes no functions as it is served, so they are listed in its instruction, "
                    "and calls are text (vLLM: --enable-auto-tool-choice --tool-call-parser …; "
                    "llama.cpp: --jinja). It said: %s",
                    *(self.model, self._shown(rejection.message)),
                )
            return True
        if rejection.status in (400, 422):
            for name in _OPTIONAL:
                if name in request and rejection.refuses(name):
                    with self._lock:
                        self._refused.add(name)
                    return True
        has_system = request["messages"] and request["messages"][0]["role"] == "system"
        if has_system and rejection.no_system_role:
            log.warning("%s has no system role: it is put before the first observation", self.model)
            self._folds_system = True
            return True
        return False

    def _problem(self, rejection: Rejection, server: _Server) -> str:
        """What an error means; raises if a retry cannot help."""
        status, message = rejection.status, self._shown(rejection.text)
        if status in (401, 403):
            # 403 may be about one prompt only.
            raise (NoAccess if status == 401 else ApiError)(
                f"{server.name} refuses the key (status {status}): set OPENAI_API_KEY "
                "to a valid one" + ("" if self._secret else " (it is not set)")
            )
        if status == 404:
            raise NoAccess(
                f"{server.name} knows no /chat/completions or no model "
                f"{self.model!r} (status 404): {message!r}"
            )
        if rejection.too_long:
            raise TooLong(message, rejection)
        problem = f"{server.name} answered with status {status}: {message!r}"
        if status not in _RETRYABLE:
            raise ApiError(problem)
        return problem

    def _shown(self, text: str) -> str:
        """A server's text as people may see it: short, without the key."""
        if self._secret:
            text = re.sub(rf"(?<![\w-]){re.escape(self._secret)}(?![\w-])", "***", text)
        text = without_user(text)
        return text if len(text) <= 300 else text[:300] + " …"


def without_user(url: str) -> str:
    """The URL without a name and password in it."""
    return re.sub(r"//[^/@\s]*@", "//", url)


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds that the server asks to wait (from a number or a date; at most 120), if any."""
    header = answer.headers.get("Retry-After", "").strip()
    try:
        return min(120.0, max(0.0, float(header)))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(header).timestamp()
    except (TypeError, ValueError):
        return None
    return min(120.0, max(0.0, until - time.time()))


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__
