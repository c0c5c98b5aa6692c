"""The agent behind an OpenAI-compatible chat completions API: OpenAI, vLLM, llama.cpp, …

It is streaming (see `agents.core`): each reply is returned as soon as it arrives, so that a slow
one delays no other. Replies can be cached on disk (`agents.reply_cache`), so that a repeated run
costs nothing; tokens and, where prices are known, dollars are counted (`agents.costs`).
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from stepagent.agents import costs
from stepagent.agents.completions import ApiError, Completions, NoAccess, TooLong
from stepagent.agents.core import Agent, Turn
from stepagent.agents.reply_cache import Completion, ReplyCache
from stepagent.envs.react import STOP, Message, PromptStyle

__all__ = ["ApiError", "OpenAIAgent", "cut_middle"]

OPENAI = "https://api.openai.com/v1"
_MAX_CUTS = 3
"""How often one prompt is shortened after the server has called it too long."""
_POLL_SECONDS = 0.05
"""Seconds that `poll` waits for a reply."""
_COUNTS = (
    "requests",
    "retries",
    "prompts_cut",
    "tokens_read",
    "tokens_kept",
    "tokens_generated",
    "replies_cached",
    "tokens_cached",
    "seconds",
)


class OpenAIAgent(Agent):
    """Requests each reply from a server, several at a time.

    Parameters
    ----------
    model: the model's name at the server.
    base_url: address of the API, including `/v1`; None: `$OPENAI_BASE_URL`, else OpenAI's own.
        The key is `$OPENAI_API_KEY`; it appears in no log, error, file or fingerprint.
    temperature, top_p, max_new_tokens: as the API takes them; temperature 0 is close to greedy.
        With a temperature the request has a `seed` made of the episode's seed and the turn.
    timeout: seconds to wait for a response. retries: further attempts after a time-out, a broken
        connection, an unreadable response, or a status such as 429 or 500.
    backoff: seconds before the first retry; doubled each time (at most 60), with jitter. If the
        server sends Retry-After, all requests wait that long instead.
    concurrency: requests in flight at once; also the batch size.
    requests_per_minute, tokens_per_minute: maximum rates; None: no limit of our own.
    cache: file that stores replies; None: no cache.
    prices: model → dollars per million tokens, or a YAML file of them (`agents.costs.prices`).
        If the model's price is known, the statistics include its `cost`.
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
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        cache: str | Path | None = None,
        prices: str | Path | Mapping[str, Any] | None = None,
        instruction: bool = True,
        example: bool = True,
        thoughts: bool = True,
    ):
        if concurrency < 1 or retries < 0 or timeout <= 0 or max_new_tokens < 1:
            raise ValueError("needs concurrency ≥ 1, retries ≥ 0, timeout > 0, max_new_tokens ≥ 1")
        url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the base URL {url!r} must start with http:// or https://")
        self.model, self.base_url, self.name = model, url.rstrip("/"), f"openai:{model}"
        self.style = PromptStyle(instruction, example, thoughts)
        self.batch_size, self.streaming = concurrency, True
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._parameters: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_new_tokens,
            "stop": list(STOP),
        }
        if top_p < 1:
            self._parameters["top_p"] = top_p
        self._max_new_tokens = max_new_tokens
        self._price = costs.prices(prices).get(model)
        self._client = Completions(
            model,
            self.base_url,
            os.environ.get("OPENAI_API_KEY", ""),
            self._parameters,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            limit=costs.RateLimit(requests_per_minute, tokens_per_minute),
            count=self._count,
        )
        self._cache = ReplyCache(cache) if cache else None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sessions: list[requests.Session] = []  # those that no thread is using
        self._budget: int | None = None  # characters allowed in a prompt; learnt from refusals
        self._todo: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[Hashable, str | Exception]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._counts = dict.fromkeys((*_COUNTS, *(["cost"] if self._price else [])), 0.0)

    # Answering ----------------------------------------------------------------------------------

    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply per turn. Raises ApiError if a server keeps failing."""
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

        # Daemons: a request in flight does not delay Ctrl-C.
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
            stop.set()  # wakes threads that wait for a retry
            self._count(seconds=time.perf_counter() - began)
        if failures:
            raise failures[0]
        return replies

    def submit(self, turns: Sequence[Turn]) -> None:
        """Takes turns; at most `concurrency` of them are requested at once."""
        for turn in turns:
            if len(self._threads) < self.batch_size:
                thread = threading.Thread(target=self._answer_turns, daemon=True, name="openai")
                self._threads.append(thread)
                thread.start()
            self._todo.put(turn)

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        """The replies that have arrived, or why there is none; waits a moment for the first."""
        began = time.perf_counter()
        replies: list[tuple[Hashable, str | Exception]] = []
        try:
            replies.append(self._replies.get(timeout=_POLL_SECONDS))
            while True:
                replies.append(self._replies.get_nowait())
        except queue.Empty:
            self._count(seconds=time.perf_counter() - began)
            return replies

    def _answer_turns(self) -> None:
        with self._borrowed_session() as session:
            while (turn := self._todo.get()) is not None:
                try:
                    reply: str | Exception = self._reply(turn, session, self._closed)
                except Exception as error:
                    reply = error
                self._replies.put((turn.key, reply))

    @contextmanager
    def _borrowed_session(self) -> Iterator[requests.Session]:
        """A session for one thread; its connections stay open for the next one."""
        with self._lock:
            session = self._sessions.pop() if self._sessions else self._client.session()
        yield session
        with self._lock:
            self._sessions.append(session)

    def _reply(self, turn: Turn, session: requests.Session, stop: threading.Event) -> str:
        """The reply to a turn, from the cache or from the server."""
        messages = list(turn.messages)
        number = sum(message["role"] == "assistant" for message in messages)
        body: dict[str, Any] = {}
        if self._sampling["temperature"]:
            body["seed"] = (turn.seed * 1009 + number) % 2**31
        request = {
            "base_url": _without_user(self.base_url),
            "model": self.model,
            **self._parameters,
            **body,
            "messages": messages,
        }
        if self._cache and (cached := self._cache.get(request)):
            self._count(replies_cached=1, tokens_cached=cached.tokens)
            return cached.text
        completion = self._complete(body, messages, session, stop)
        if self._cache:
            self._cache.put(request, completion)
        self._count(
            tokens_read=completion.read,
            tokens_kept=completion.cached,
            tokens_generated=completion.generated,
            **({"cost": costs.cost(completion, self._price)} if self._price else {}),
        )
        return completion.text

    def _complete(
        self,
        body: dict[str, Any],
        messages: list[Message],
        session: requests.Session,
        stop: threading.Event,
    ) -> Completion:
        """The server's reply; a prompt that it calls too long loses its middle."""
        if self.base_url == OPENAI and not os.environ.get("OPENAI_API_KEY"):
            raise NoAccess(
                f"{self.name} needs a key: set OPENAI_API_KEY (for a server of your own, set "
                "OPENAI_BASE_URL to its address)"
            )
        cuts = 0
        while True:
            fitting = messages if self._budget is None else cut_middle(messages, self._budget)
            try:
                completion = self._client.ask({**body, "messages": fitting}, session, stop)
                self._count(prompts_cut=fitting != messages)
                return completion
            except TooLong as error:
                size = sum(len(message["content"]) for message in fitting)
                cuts += 1
                if cuts > _MAX_CUTS:
                    raise ApiError(
                        f"{self.name} at {self.base_url} calls even a prompt of {size} "
                        f"characters too long: {error}"
                    ) from None
                with self._lock:
                    self._budget = min(self._budget or size, size * 2 // 3)

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value

    # Housekeeping -------------------------------------------------------------------------------

    def close(self) -> None:
        self._stop.set()
        self._closed.set()
        for _ in self._threads:
            self._todo.put(None)
        self._threads.clear()
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()
        if self._cache:
            self._cache.close()

    def fingerprint(self) -> dict[str, str]:
        return {
            "model": self.name,
            "base_url": _without_user(self.base_url),
            "decoding": str({**self._sampling, "max_new_tokens": self._max_new_tokens}),
            "style": str(self.style),
        }

    def statistics(self) -> dict[str, float]:
        return dict(self._counts)


def cut_middle(messages: Sequence[Message], budget: int) -> list[Message]:
    """The conversation in about `budget` characters: turns after the first observation are removed.

    If the latest turn alone is still too long, the longest text loses its middle. The system
    message is never shortened.
    """
    cut = [Message(role=m["role"], content=m["content"]) for m in messages]
    first = 2 if cut[0]["role"] == "system" else 1
    head, tail, dropped = cut[:first], cut[first:], 0
    size = sum(len(message["content"]) for message in cut)
    while size > budget and len(tail) > 2:
        size -= len(tail[0]["content"]) + len(tail[1]["content"])
        tail, dropped = tail[2:], dropped + 1
    if dropped:
        head[-1]["content"] += f"\n\n[{dropped} turns left out]"
    cut = head + tail
    texts = [message for message in cut if message["role"] != "system"]
    while size > budget and texts:
        longest = max(texts, key=lambda message: len(message["content"]))
        text = longest["content"]
        keep = max(40, len(text) - (size - budget)) // 2
        if len(text) <= 2 * keep + 5:
            break
        longest["content"] = f"{text[:keep]} […] {text[-keep:]}"
        size -= len(text) - len(longest["content"])
    return cut


def _without_user(url: str) -> str:
    """The URL without a name and password in it."""
    return re.sub(r"//[^/@]*@", "//", url)
