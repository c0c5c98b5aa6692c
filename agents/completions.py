"""One completion from an OpenAI-compatible server: the request, retries, the response."""

from __future__ import annotations

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import requests

from stepagent.agents.costs import RateLimit
from stepagent.agents.reply_cache import Completion
from stepagent.errors import SetupError, UserError

_RETRYABLE = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""
_TOO_LONG = re.compile(
    r"context.{0,3}length|context window|context size|maximum context|max_model_len|too many tokens"
    r"|prompt is too long|input is too long",
    re.IGNORECASE,
)


class ApiError(UserError, RuntimeError):
    """The server cannot be used; the message says which server, why, and what to do."""


class NoAccess(SetupError, ApiError):
    """The server refuses the key, or has no such model: no request can be answered."""


class TooLong(Exception):
    """The server refused the prompt because it exceeds the context."""


class _Key(requests.auth.AuthBase):
    """Sends the key, and keeps requests from using one from ~/.netrc."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _Unreadable(Exception):
    """A response that is not a chat completion."""


class Completions:
    """The chat completions of one model at one server.

    Parameters
    ----------
    model, base_url, key: what and where; `key` goes into the requests and nowhere else.
    parameters: of every request. Those that the model rejects by name are omitted from then on.
    timeout, retries, backoff: as in `agents.openai.OpenAIAgent`.
    limit: of requests and tokens.
    count: called with the number of requests and retries, by name.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str,
        parameters: dict[str, Any],
        *,
        timeout: float,
        retries: int,
        backoff: float,
        limit: RateLimit,
        count: Callable[..., None],
    ):
        self.model, self.base_url, self._secret = model, base_url, key
        self._parameters = dict(parameters)
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._limit, self._count = limit, count
        self._refused: set[str] = set()  # parameters that this model does not take
        self._lock = threading.Lock()

    def session(self) -> requests.Session:
        """A session for one thread; keeps its connection open."""
        session = requests.Session()
        session.auth = _Key(self._secret)
        return session

    def ask(
        self, body: dict[str, Any], session: requests.Session, stop: threading.Event
    ) -> Completion:
        """One completion, retried if needed; raises TooLong or ApiError."""
        problem, attempt = "", 0
        while not stop.is_set():
            wait = min(60.0, self._backoff * 2**attempt) * random.uniform(0.5, 1.0)
            request = {"model": self.model, **self._parameters, **body}
            request = {name: request[name] for name in request.keys() - self._refused}
            entry = self._limit.wait(self._estimate(body), stop)
            if stop.is_set():
                break
            self._count(requests=1)
            try:
                answer = session.post(
                    f"{self.base_url}/chat/completions",
                    json=request,
                    timeout=(min(10.0, self._timeout), self._timeout),
                )
                if answer.status_code == 200:
                    completion = self._read(answer)
                    self._limit.correct(entry, completion.tokens)
                    return completion
                problem = self._problem(answer)
                if answer.status_code == 400 and self._adapt(problem, request):
                    continue
                if answer.status_code not in _RETRYABLE:
                    raise ApiError(problem)
                seconds = _retry_after(answer)
                if seconds is not None:
                    self._limit.pause(wait := seconds)
            except requests.Timeout:
                problem = f"no answer from {self.base_url} within {self._timeout:g} s"
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                problem = (
                    f"no connection to {self.base_url} ({_innermost(error)}): is the server "
                    "running, and OPENAI_BASE_URL right?"
                )
            except _Unreadable as error:
                problem = str(error)
            except requests.RequestException as error:
                raise ApiError(f"no request to {self.base_url} is possible: {error}") from None
            if attempt == self._retries:
                raise ApiError(f"{problem} (after {attempt + 1} attempts)")
            attempt += 1
            self._count(retries=1)
            stop.wait(wait)
        raise ApiError(problem or "another request has failed")

    def _estimate(self, body: dict[str, Any]) -> int:
        """Roughly how many tokens a request will take, including the reply."""
        characters = sum(len(message["content"]) for message in body["messages"])
        return characters // 4 + int(self._parameters.get("max_tokens") or 0)

    def _read(self, answer: requests.Response) -> Completion:
        where = f"{self.base_url} answered 200 with"
        try:
            body = answer.json()
            choices, usage = body["choices"], body.get("usage") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Unreadable(
                f"{where} something other than a chat completion: {self._short(answer.text)!r}"
            ) from None
        try:
            text = choices[0]["message"]["content"] or ""
            if not isinstance(text, str):
                text = "".join(part.get("text", "") for part in text)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise _Unreadable(f"{where} no choice in it: {self._short(answer.text)!r}") from None
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        cached = _token_count(details, "cached_tokens")
        read = max(0, _token_count(usage, "prompt_tokens") - cached)
        return Completion(text, read, cached, _token_count(usage, "completion_tokens"))

    def _problem(self, answer: requests.Response) -> str:
        """What an error status means; raises if a retry cannot help."""
        status, message = answer.status_code, self._short(answer.text)
        if status in (401, 403):
            # 403 may be about one prompt only.
            raise (NoAccess if status == 401 else ApiError)(
                f"{self.base_url} refuses the key (status {status}): set OPENAI_API_KEY "
                "to a valid one" + ("" if self._secret else " (it is not set)")
            )
        if status == 404:
            raise NoAccess(
                f"{self.base_url} knows no /chat/completions or no model "
                f"{self.model!r} (status 404): {message!r}"
            )
        if status in (400, 413, 422) and (status == 413 or _TOO_LONG.search(answer.text)):
            raise TooLong(message)
        return f"{self.base_url} answered with status {status}: {message!r}"

    def _adapt(self, problem: str, request: dict[str, Any]) -> bool:
        """Some models reject a parameter by name: omit (or rename) it from now on."""
        for name in ("max_tokens", "temperature", "top_p", "stop", "seed"):
            if (
                name in request
                and re.search(rf"\b{name}\b", problem)
                and re.search(
                    "unsupported|not supported|unknown|unrecognized|does not support", problem, re.I
                )
            ):
                with self._lock:
                    self._refused.add(name)
                    if name == "max_tokens":
                        self._parameters["max_completion_tokens"] = request[name]
                return True
        return False

    def _short(self, text: str) -> str:
        if self._secret:
            text = text.replace(self._secret, "***")
        return text if len(text) <= 300 else text[:300] + " …"


def _token_count(usage: Any, name: str) -> int:
    """A count that a server reports; 0 if it reports none, or nonsense."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else 0


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
