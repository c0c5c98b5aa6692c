"""The agent behind an OpenAI-compatible chat completions API: OpenAI, vLLM, llama.cpp, …

What such servers answer is read in `agents.responses`, what they cannot take is learnt in
`agents.completions`, and what fits their context in `agents.fitting`.

It is streaming (see `agents.core`): each reply is returned as soon as it arrives, so that a slow
one delays no other. Replies can be cached on disk (`agents.reply_cache`), so that a repeated run
costs nothing; tokens and, where prices are known, dollars are counted (`agents.costs`).
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import requests

from stepagent.agents import costs
from stepagent.agents.completions import ApiError, Completions, NoAccess, TooLong, without_user
from stepagent.agents.core import Agent, ModelReply, Turn, reply_limit
from stepagent.agents.fitting import Fitting, cut_middle
from stepagent.agents.reply_cache import Completion, ReplyCache
from stepagent.agents.responses import LENGTH, TOKEN_IDS
from stepagent.agents.tool_calls import structured, translated
from stepagent.envs.react import STOP, Message, PromptStyle, split_thinking

__all__ = ["ApiError", "OpenAIAgent", "cut_middle"]

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
HISTORY = ("template", "keep", "drop")
"""What becomes of a reply's thinking in later requests."""
_MAX_CUTS = 3
"""How often one prompt is shortened after the server has called it too long."""
_OWN_FIELDS = {"model", "messages", "stream", "n", "tools"}
"""Fields of a request that are no option."""
_THINKERS = re.compile(
    r"(^|[/:_-])(o[134]($|-)|gpt-5|gpt-oss|qwq|magistral|deepseek-r\d|glm-4\.[5-9]|qwen3)"
    r"|think|reason",
    re.IGNORECASE,
)
_ACTION = re.compile(r"^\W*action\b", re.IGNORECASE | re.MULTILINE)
_INSTRUCT = re.compile(r"instruct|non-?(think|reason)|coder|embed", re.IGNORECASE)
_POLL_SECONDS = 0.05
"""Seconds that `poll` waits for a reply."""
_COUNTS = (
    "requests",
    "retries",
    "prompts_cut",
    "limits_lowered",
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
    base_url: address of the API, with or without `/v1`; several, as a list or separated by
        commas, share the load. None: `$OPENAI_BASE_URL`, else OpenAI's own.
        The key is `$OPENAI_API_KEY`; it appears in no log, error, file or fingerprint.
    temperature, top_p: as the API takes them; temperature 0 is close to greedy.
        With a temperature the request has a `seed` made of the episode's seed and the turn.
    max_new_tokens: tokens of a reply, its thinking included; None: 256, and 4,096 where the options
        below or the model's name say that it thinks.
    enable_thinking: on or off, for the servers' templates that know it; None: as they decide.
    reasoning_effort: such as none, low or high, for the models that know it; None: their own.
    history_thoughts: what becomes of a reply's thinking in later requests: "keep", "drop", or
        "template": what the server returned apart is left out, what stood in the text stays (and
        the server's template decides).
    record_tokens: give the ids of every reply's tokens with it, for trajectories (`Step.tokens`),
        where the server tells them (vLLM, SGLang, llama.cpp), and those of the prompt (vLLM). One
        that refuses to be asked is asked without.
    request: further fields of every request, such as {top_k: 20}.
    timeout: seconds to wait for a response. retries: further attempts after a time-out, a broken
        connection, an unreadable response, or a status such as 429 or 500.
    backoff: seconds before the first retry; doubled each time (at most 60), with jitter. If the
        server sends Retry-After, all requests wait that long instead.
    concurrency: requests in flight at once; also the batch size.
    requests_per_minute, tokens_per_minute: maximum rates; None: no limit of our own.
    cache: file that stores replies; None: no cache.
    prices: model → dollars per million tokens, or a file of them, such as LiteLLM's price list
        (`agents.costs.price_of`). If it has the model, the statistics include its `cost`.
    instruction, example, thoughts: the prompt's style.
    format: "react", or "tools": the environment's actions are functions that the model calls.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | Sequence[str] | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int | None = None,
        enable_thinking: bool | None = None,
        reasoning_effort: str | None = None,
        history_thoughts: str = "template",
        record_tokens: bool = False,
        request: Mapping[str, Any] | None = None,
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
        format: Literal["react", "tools"] = "react",
    ):
        thinks = _thinks(model, enable_thinking, reasoning_effort)
        self._max_new_tokens = reply_limit(max_new_tokens, thinks)
        if concurrency < 1 or retries < 0 or timeout <= 0 or self._max_new_tokens < 1:
            raise ValueError("needs concurrency ≥ 1, retries ≥ 0, timeout > 0, max_new_tokens ≥ 1")
        if history_thoughts not in HISTORY:
            raise ValueError(f"history_thoughts is {history_thoughts!r}: choose {HISTORY}")
        if own := sorted(_OWN_FIELDS & set(request or ())):
            raise ValueError(f"request cannot set {', '.join(own)}: the agent does")
        urls = _urls(base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI)
        self.model, self.base_url, self.name = model, ",".join(urls), f"openai:{model}"
        self.style = PromptStyle(instruction, example, thoughts, format=format)
        self.batch_size, self.streaming = concurrency, True
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._parameters: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": self._max_new_tokens,
            "stop": list(STOP),
        }
        if thinks:
            del self._parameters["stop"]  # thoughts may hold such texts
        if top_p < 1:
            self._parameters["top_p"] = top_p
        self._thinking: dict[str, Any] = {}
        if enable_thinking is not None:
            self._thinking["chat_template_kwargs"] = {"enable_thinking": enable_thinking}
        if reasoning_effort is not None:
            self._thinking["reasoning_effort"] = reasoning_effort
        self._thinking |= request or {}
        self._parameters |= {**(TOKEN_IDS if record_tokens else {}), **self._thinking}
        self._record_tokens = record_tokens
        self._history, self._thinks_apart, self._half_open = history_thoughts, False, False
        self._price = costs.price_of(model, prices)
        self._client = Completions(
            model,
            urls,
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
        self._fitting = Fitting()
        self._warnings: set[str] = set()
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

    def _reply(self, turn: Turn, session: requests.Session, stop: threading.Event) -> ModelReply:
        """The reply to a turn, from the cache or from the server."""
        messages = self._history_sent(turn.messages)
        number = sum(message["role"] == "assistant" for message in messages)
        body: dict[str, Any] = {}
        if self._sampling["temperature"]:
            body["seed"] = (turn.seed * 1009 + number) % 2**31
        if tools := turn.tools(self.style):
            body["tools"] = [tool.schema() for tool in tools]
        request = {
            "base_url": without_user(self.base_url),
            "model": self.model,
            **self._parameters,
            **body,
            "messages": structured(messages) if tools else messages,
        }
        if self._cache and (cached := self._cache.get(request)):
            self._count(replies_cached=1, tokens_cached=cached.tokens)
            return self._text(cached)
        completion = self._complete({**body, "messages": messages}, turn.key, session, stop)
        if self._cache:
            self._cache.put(request, completion)
        self._count(
            tokens_read=completion.read,
            tokens_kept=completion.cached,
            tokens_generated=completion.generated,
            **({"cost": costs.cost(completion, self._price)} if self._price else {}),
        )
        return self._text(completion)

    def _text(self, completion: Completion) -> ModelReply:
        """A completion as a reply: what was thought apart stands before it."""
        text, ids, prompt_ids = completion.text, completion.ids, completion.prompt_ids
        if not self._record_tokens:
            ids = prompt_ids = ()
        if self._record_tokens and completion.generated and not ids:
            self._warn("%s gives no token ids: its replies are recorded without", self.name)
        if self.style.format == "tools":
            text = translated(text)  # of servers that do not read their model's calls
        if completion.thought:
            self._thinks_apart = True
            text = f"<think>\n{completion.thought}\n</think>\n\n{text}"
        elif "</think>" in text and "<think>" not in text:
            self._half_open = True
        elif completion.ending == LENGTH and self._is_thought(text):
            text = f"<think>\n{text}"
        return ModelReply(text, ids, prompt_tokens=prompt_ids, ending=completion.ending)

    def _is_thought(self, text: str) -> bool:
        """Whether a text that was cut is a thought of which the prompt holds the opening tag."""
        thinks = self._half_open or "stop" not in self._parameters
        return thinks and "think>" not in text and not _ACTION.search(text)

    def _history_sent(self, messages: Sequence[Message]) -> list[Any]:
        """The conversation as the server gets it: with or without the thinking in its replies."""
        drops = self._history == "drop" or (self._history == "template" and self._thinks_apart)
        sent: list[Any] = []
        for message in messages:
            if message["role"] == "assistant" and (drops or self._thinks_apart):
                thinking, rest = split_thinking(message["content"])
                field = {"reasoning_content": thinking} if thinking and not drops else {}
                sent.append({**message, "content": rest, **field})
            else:
                sent.append(message)
        return sent

    def _complete(
        self,
        body: dict[str, Any],
        key: Hashable,
        session: requests.Session,
        stop: threading.Event,
    ) -> Completion:
        """The server's reply. Where it is too much for the context, first the reply's limit is
        lowered, then the prompt loses its middle."""
        if self.base_url == OPENAI and not os.environ.get("OPENAI_API_KEY"):
            raise NoAccess(
                f"{self.name} needs a key: set OPENAI_API_KEY (for a server of your own, set "
                "OPENAI_BASE_URL to its address)"
            )
        cuts, limit = 0, self._max_new_tokens
        while True:
            limit = self._fitting.reply_limit(limit)
            lowered = {"max_tokens": limit} if limit < self._max_new_tokens else {}
            messages = self._fitting.prompt(body["messages"])
            try:
                request = {**body, **lowered, "messages": messages}
                completion = self._client.ask(request, session, stop, key)
                self._count(prompts_cut=messages != body["messages"], limits_lowered=bool(lowered))
                return completion
            except TooLong as error:
                size = sum(len(message["content"] or "") for message in messages)
                lower = self._fitting.lower(error.rejection, size, limit)
                if lower is not None:
                    limit = lower
                    self._warn(
                        "%s: replies are limited to %d tokens where prompt and --max-new-tokens %d "
                        "exceed the context (%s)",
                        *(self.name, limit, self._max_new_tokens, error),
                    )
                    continue
                cuts += 1
                if cuts > _MAX_CUTS:
                    raise ApiError(
                        f"{self.name} at {without_user(self.base_url)} calls even a prompt of "
                        f"{size} characters too long: {error}. Serve it with a longer context, "
                        "lower --max-new-tokens, or leave out the example (--no-example)"
                    ) from None
                self._fitting.shorten(error.rejection, size, limit)

    def _warn(self, message: str, *arguments: Any) -> None:
        """Logs each message once."""
        if message not in self._warnings:
            self._warnings.add(message)
            log.warning(message, *arguments)

    def _count(self, **more: float) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value

    # Housekeeping -------------------------------------------------------------------------------

    def forget(self, key: Hashable) -> None:
        self._client.forget(key)

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
            "base_url": without_user(self.base_url),
            "decoding": str({**self._sampling, "max_new_tokens": self._max_new_tokens}),
            "style": str(self.style),
            **({"request": json.dumps(self._thinking, sort_keys=True)} if self._thinking else {}),
        }

    def statistics(self) -> dict[str, float]:
        return dict(self._counts)


def _urls(base_url: str | Sequence[str]) -> list[str]:
    """The addresses in an option. Raises ValueError for one without http."""
    texts = base_url.split(",") if isinstance(base_url, str) else base_url
    urls = [text.strip().rstrip("/").removesuffix("/chat/completions") for text in texts]
    urls = [url for url in urls if url]
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the base URL {url!r} must start with http:// or https://")
    if not urls:
        raise ValueError("base_url names no server")
    return urls


def _thinks(model: str, enable_thinking: bool | None, reasoning_effort: str | None) -> bool:
    """Whether a model thinks before it answers, by the options, else by its name."""
    if enable_thinking is not None:
        return enable_thinking
    if reasoning_effort is not None:
        return reasoning_effort != "none"
    return bool(_THINKERS.search(model)) and not _INSTRUCT.search(model)
