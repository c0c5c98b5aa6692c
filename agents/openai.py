"""The agent behind an OpenAI-compatible chat completions API: OpenAI, vLLM, llama.cpp, …"""

from __future__ import annotations

import email.utils
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import requests

from agents.core import Agent, Turn
from envs.react import STOP, Message, PromptStyle

OPENAI = "https://api.openai.com/v1"
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses after which the same request may succeed."""
_TOO_LONG = re.compile(
    r"context.{0,3}length|context window|context size|maximum context|max_model_len|too many tokens"
    r"|prompt is too long|input is too long",
    re.IGNORECASE,
)
_CUTS = 3
"""How often one prompt is cut down after the server has called it too long."""


class ApiError(RuntimeError):
    """The server cannot be used so; the message says which server, why, and what to do."""


class _TooLong(Exception):
    """The server refused the prompt as longer than its context."""


class _Key(requests.auth.AuthBase):
    """Sends the key, and keeps requests from taking another one out of ~/.netrc."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class OpenAIAgent(Agent):
    """Asks a server for each reply, several at a time.

    Parameters
    ----------
    model: the model's name at the server.
    base_url: where the API is, `/v1` included; None: `$OPENAI_BASE_URL`, else OpenAI's own.
        The key is `$OPENAI_API_KEY`; it appears in no log, error or fingerprint.
    temperature, top_p, max_new_tokens: as the API takes them; temperature 0 is as good as greedy.
        With a temperature the request carries a `seed` made of the episode's seed and the turn.
    timeout: seconds to wait for an answer. retries: further attempts after a time-out, a broken
        connection, an unreadable answer, or a status such as 429 or 500.
    backoff: seconds before the first further attempt; doubled each time (60 at most), with jitter,
        or what the server's Retry-After says.
    concurrency: requests under way at once; also the batch size.
    instruction, example, thoughts: the prompt's style.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        concurrency: int = 8,
        instruction: bool = True,
        example: bool = True,
        thoughts: bool = True,
    ):
        if concurrency < 1 or retries < 0 or timeout <= 0 or max_new_tokens < 1:
            raise ValueError("wants concurrency ≥ 1, retries ≥ 0, timeout > 0, max_new_tokens ≥ 1")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the base URL {url!r} must start with http:// or https://")
        self.model, self.base_url, self.name = model, url.rstrip("/"), f"openai:{model}"
        self.style = PromptStyle(instruction, example, thoughts)
        self.batch_size = concurrency
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._parameters: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "stop": list(STOP),
        }
        if top_p < 1:
            self._parameters["top_p"] = top_p
        self._max_new_tokens = max_new_tokens
        self._timeout, self._retries, self._backoff = timeout, retries, backoff
        self._secret = os.environ.get("OPENAI_API_KEY", "")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sessions: list[requests.Session] = []  # those that no thread uses just now
        self._refused: set[str] = set()  # parameters that this model does not take
        self._budget: int | None = None  # characters that a prompt may have; learnt from refusals
        self._counts = dict.fromkeys(
            (
                "requests",
                "retries",
                "prompts_cut",
                "tokens_read",
                "tokens_kept",
                "tokens_generated",
                "seconds",
            ),
            0.0,
        )

    # Answering ----------------------------------------------------------------------------------

    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply a turn. Raises ApiError where a server keeps failing."""
        began = time.perf_counter()
        todo, replies = list(enumerate(turns))[::-1], [""] * len(turns)
        failures: list[BaseException] = []
        self._stop = stop = threading.Event()

        def work() -> None:
            with self._borrowed_session() as session:
                while not stop.is_set():
                    with self._lock:
                        if not todo:
                            return
                        i, turn = todo.pop()
                    try:
                        replies[i] = self._reply(turn, session, stop)
                    except BaseException as error:
                        failures.append(error)
                        stop.set()

        # Daemons: a request under way does not hold up Ctrl-C.
        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self.batch_size, len(turns)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            stop.set()  # wakes those that wait for another attempt
            self._count(seconds=time.perf_counter() - began)
        if failures:
            raise failures[0]
        return replies

    @contextmanager
    def _borrowed_session(self) -> Iterator[requests.Session]:
        """A session for one thread; its connections are kept for the next one."""
        with self._lock:
            session = self._sessions.pop() if self._sessions else requests.Session()
        session.auth = _Key(self._secret)
        yield session
        with self._lock:
            self._sessions.append(session)

    def _reply(self, turn: Turn, session: requests.Session, stop: threading.Event) -> str:
        """The server's reply; a prompt that it calls too long loses its middle."""
        messages, cuts = list(turn.messages), 0
        number = sum(message["role"] == "assistant" for message in messages)
        body: dict[str, Any] = {}
        if self._sampling["temperature"]:
            body["seed"] = (turn.seed * 1009 + number) % 2**31
        while True:
            fitting = messages if self._budget is None else cut_middle(messages, self._budget)
            try:
                text = self._ask({**body, "messages": fitting}, session, stop)
                self._count(prompts_cut=fitting != messages)
                return text
            except _TooLong as error:
                size = sum(len(message["content"]) for message in fitting)
                cuts += 1
                if cuts > _CUTS:
                    raise ApiError(
                        f"{self.name} at {self.base_url} calls even a prompt of {size} "
                        f"characters too long: {error}"
                    ) from None
                with self._lock:
                    self._budget = min(self._budget or size, size * 2 // 3)

    def _ask(self, body: dict[str, Any], session: requests.Session, stop: threading.Event) -> str:
        """One completion, with further attempts; raises _TooLong or ApiError."""
        problem, attempt = "", 0
        while not stop.is_set():
            wait = min(60.0, self._backoff * 2**attempt) * random.uniform(0.5, 1.0)
            self._count(requests=1)
            try:
                sent = {"model": self.model, **self._parameters, **body}
                sent = {name: sent[name] for name in sent.keys() - self._refused}
                answer = session.post(
                    f"{self.base_url}/chat/completions",
                    json=sent,
                    timeout=(min(10.0, self._timeout), self._timeout),
                )
                if answer.status_code == 200:
                    return self._read(answer)
                problem = self._problem(answer)
                if answer.status_code == 400 and self._adapt(problem, sent):
                    continue
                if answer.status_code not in _AGAIN:
                    raise ApiError(problem)
                wait = _retry_after(answer, wait)
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

    def _read(self, answer: requests.Response) -> str:
        where = f"{self.base_url} answered 200 with"
        try:
            body = answer.json()
            choices, usage = body["choices"], body.get("usage") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _Unreadable(
                f"{where} something else than a chat completion: {self._short(answer.text)!r}"
            ) from None
        try:
            text = choices[0]["message"]["content"] or ""
            if not isinstance(text, str):
                text = "".join(part.get("text", "") for part in text)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise _Unreadable(f"{where} no choice in it: {self._short(answer.text)!r}") from None
        details = usage.get("prompt_tokens_details") or {}
        kept = details.get("cached_tokens") or 0
        self._count(
            tokens_read=(usage.get("prompt_tokens") or 0) - kept,
            tokens_kept=kept,
            tokens_generated=usage.get("completion_tokens") or 0,
        )
        return text

    def _problem(self, answer: requests.Response) -> str:
        """What an error status means; raises where no other attempt can help."""
        status, said = answer.status_code, self._short(answer.text)
        if status in (401, 403):
            raise ApiError(
                f"{self.base_url} refuses the key (status {status}): set OPENAI_API_KEY "
                "to a valid one" + ("" if self._secret else " (it is not set)")
            )
        if status == 404:
            raise ApiError(
                f"{self.base_url} knows no /chat/completions or no model "
                f"{self.model!r} (status 404): {said!r}"
            )
        if status in (400, 413, 422) and (status == 413 or _TOO_LONG.search(answer.text)):
            raise _TooLong(said)
        return f"{self.base_url} answered with status {status}: {said!r}"

    def _adapt(self, problem: str, sent: dict[str, Any]) -> bool:
        """Some models refuse a parameter by name: leave it out (or rename it) from now on."""
        for name in ("max_tokens", "temperature", "top_p", "stop", "seed"):
            if (
                name in sent
                and re.search(rf"\b{name}\b", problem)
                and re.search(
                    "unsupported|not supported|unknown|unrecognized|does not support", problem, re.I
                )
            ):
                with self._lock:
                    self._refused.add(name)
                    if name == "max_tokens":
                        self._parameters["max_completion_tokens"] = self._max_new_tokens
                return True
        return False

    def _short(self, text: str) -> str:
        if self._secret:
            text = text.replace(self._secret, "***")
        return text if len(text) <= 300 else text[:300] + " …"

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value

    # Housekeeping -------------------------------------------------------------------------------

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    def fingerprint(self) -> dict[str, str]:
        return {
            "model": self.name,
            "base_url": _without_user(self.base_url),
            "decoding": str({**self._sampling, "max_new_tokens": self._max_new_tokens}),
            "style": str(self.style),
        }

    def statistics(self) -> dict[str, float]:
        return dict(self._counts)


class _Unreadable(Exception):
    """An answer that is no chat completion."""


def cut_middle(messages: Sequence[Message], budget: int) -> list[Message]:
    """The conversation in about `budget` characters: turns leave after the first observation.

    Where the latest turn alone is too long still, the longest text loses its middle. The system
    message is never cut.
    """
    found = [Message(role=m["role"], content=m["content"]) for m in messages]
    first = 2 if found[0]["role"] == "system" else 1
    head, tail, dropped = found[:first], found[first:], 0
    size = sum(len(message["content"]) for message in found)
    while size > budget and len(tail) > 2:
        size -= len(tail[0]["content"]) + len(tail[1]["content"])
        tail, dropped = tail[2:], dropped + 1
    if dropped:
        head[-1]["content"] += f"\n\n[{dropped} turns left out]"
    found = head + tail
    texts = [message for message in found if message["role"] != "system"]
    while size > budget and texts:
        longest = max(texts, key=lambda message: len(message["content"]))
        text = longest["content"]
        keep = max(40, len(text) - (size - budget)) // 2
        if len(text) <= 2 * keep + 5:
            break
        longest["content"] = f"{text[:keep]} […] {text[-keep:]}"
        size -= len(text) - len(longest["content"])
    return found


def _retry_after(answer: requests.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait (a number or a date; 120 at most)."""
    said = answer.headers.get("Retry-After", "").strip()
    try:
        return min(120.0, max(0.0, float(said)))
    except ValueError:
        pass
    try:
        until = email.utils.parsedate_to_datetime(said).timestamp()
    except (TypeError, ValueError):
        return otherwise
    return min(120.0, max(0.0, until - time.time()))


def _innermost(error: BaseException) -> str:
    while error.__context__ is not None:
        error = error.__context__
    return str(error) or type(error).__name__


def _without_user(url: str) -> str:
    """The URL without a name and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)
