"""The policy as an agent whose replies are drawn by engines."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from stepagent.agents.core import ModelReply, Turn
from stepagent.agents.generation import Counts, Request
from stepagent.agents.transformers import TransformersAgent
from stepagent.training.policy import Policy
from stepagent.training.sampler.engine import Drawn, Prompt
from stepagent.training.trees.sampling import Sampling

if TYPE_CHECKING:
    from stepagent.training.sampler.vllm import VllmSampler

_POLL_SECONDS = 0.05
"""Seconds that `poll` waits for a reply."""


class EngineAgent(TransformersAgent):
    """Writes prompts and reads replies as `TransformersAgent` does, and asks engines for them."""

    def __init__(self, sampler: VllmSampler, policy: Policy, options: Mapping[str, Any]):
        super().__init__(policy.model, policy.tokenizer, **options)
        self.streaming, self._sampler = True, sampler
        self._sampling = Sampling(
            k=1,
            decoding=self.decoding,
            eos_ids=self._ends,
            stopped=self.codec.has_stop,
            stops=self.codec.stops,
        )
        self._generator.counts = self._counts = Counts()
        self._ended: queue.SimpleQueue[tuple[Hashable, Future[Drawn]]] = queue.SimpleQueue()

    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply per turn. Raises what `Fleet.draw` does."""
        began = time.perf_counter()
        futures = [self._ask(request) for request in self._requests(turns)]
        replies: list[str] = [self._read(t.key, f) for t, f in zip(turns, futures, strict=True)]
        self._seconds += time.perf_counter() - began
        return replies

    def submit(self, turns: Sequence[Turn]) -> None:
        for request in self._requests(turns):
            ended = functools.partial(self._put, request.key)
            self._ask(request).add_done_callback(ended)

    def _put(self, key: Hashable, future: Future[Drawn]) -> None:
        self._ended.put((key, future))

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        """The replies that have arrived, or why there is none; waits a moment for the first."""
        began = time.perf_counter()
        ended: list[tuple[Hashable, Future[Drawn]]] = []
        try:
            ended.append(self._ended.get(timeout=_POLL_SECONDS))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            self._seconds += time.perf_counter() - began
        replies: list[tuple[Hashable, str | Exception]] = []
        for key, future in ended:
            if isinstance(error := future.exception(), Exception):
                replies.append((key, error))
            else:
                replies.append((key, self._read(key, future)))
        return replies

    def _ask(self, request: Request) -> Future[Drawn]:
        room = self.context - len(request.ids)
        prompt = Prompt(
            request.ids,
            min(self.decoding.max_new_tokens, room),
            int(request.rng.integers(2**63)) if self.decoding.temperature else 0,
            request.key,
        )
        self._counts.read += len(request.ids)
        return self._sampler.submit(prompt, self._sampling)

    def _read(self, key: Hashable, future: Future[Drawn]) -> ModelReply:
        drawn = future.result()
        ids = drawn.reply(self._sampling)
        self._counts.read -= drawn.cached
        self._counts.cached += drawn.cached
        self._counts.generated += len(ids)
        return self._text(key, ids)

    def forget(self, key: Hashable) -> None:
        self._sampler.forget(key)

    def fingerprint(self) -> dict[str, str]:
        return {**super().fingerprint(), "engine": "vLLM"}
