"""Replies from vLLM engines: the policy is published to them, and its states sent as token ids."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from stepagent.files import Lock
from stepagent.training.config import SamplerConfig
from stepagent.training.policy import Policy
from stepagent.training.sampler.agent import EngineAgent
from stepagent.training.sampler.engine import Drawn, Engine, Prompt, session
from stepagent.training.sampler.fleet import Fleet
from stepagent.training.sampler.interface import Job, Sampler
from stepagent.training.sampler.version import (
    PROBE_TOKENS,
    SamplerError,
    prefix_of,
    published,
    remove_others,
    why_not_loadable,
)
from stepagent.training.trees.sampling import Replies, Sampling, draw_seed

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Limits on an adapter's rank that vLLM knows."""


@dataclass(frozen=True)
class States:
    """What a run will ask for, as far as it is known before."""

    longest: int
    """Tokens of the longest state."""
    probe: Sequence[int]
    """A text by which engine and trainer are compared; its first tokens suffice."""


class VllmSampler(Sampler):
    """Draws from the engines at `config.urls`.

    Parameters
    ----------
    output: the run's directory; versions are named after it.
    states: see `States`.
    report: called with a line about each engine that goes out or comes back.
    """

    is_remote = True

    def __init__(
        self, config: SamplerConfig, output: str, states: States, report: Callable[[str], None]
    ):
        self._config, self._states, self._report = config, states, report
        self._prefix = prefix_of(output)
        self._folder = Path(config.shared or Path(output) / "published").expanduser().absolute()
        self._fleet: Fleet | None = None
        self._todo: queue.SimpleQueue[tuple[Future[Drawn], Prompt, Sampling] | None]
        self._todo = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def publish(self, policy: Policy) -> str:
        """Raises SamplerError where no engine can serve the policy as it is configured, NoEngine
        where none answers within `sampler.patience`."""
        if reason := why_not_loadable(policy):
            raise SamplerError(f"vLLM cannot load the policy's adapter: it has {reason}")
        self._policy = policy
        fleet = self._fleet = self._fleet or self._open(policy)
        self._folder.mkdir(parents=True, exist_ok=True)
        with Lock(self._folder / f"{self._prefix}.lock", wait=True):  # one process at a time
            probe = tuple(self._states.probe[:PROBE_TOKENS])
            version = published(policy, self._prefix, self._folder, probe)
            fleet.serve(version)
            remove_others(version, self._prefix)
        return version.name

    def _open(self, policy: Policy) -> Fleet:
        longest = self._states.longest + policy.config.max_new_tokens
        engines = [Engine(url, self._config.timeout) for url in self._config.urls]
        self._report(f"replies come from vLLM; each engine is started with {serve_command(policy)}")
        return Fleet(engines, min(longest, policy.context), self._config.patience, self._report)

    def draw(self, jobs: Sequence[Job], sampling: Sampling) -> Iterator[Replies]:
        pending: deque[tuple[int, list[Future[Drawn]]]] = deque()
        most = 2 * self._most_at_once
        try:
            for number, job in enumerate(job for job in jobs if not job.done):
                prompts = self._prompts(job, sampling, number)
                pending.append((number, [self.submit(prompt, sampling) for prompt in prompts]))
                while sum(len(futures) for _, futures in pending) > most:
                    yield self._collect(*pending.popleft(), sampling)
            while pending:
                yield self._collect(*pending.popleft(), sampling)
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()

    def _prompts(self, job: Job, sampling: Sampling, number: int) -> list[Prompt]:
        """The states of a trajectory, each k times."""
        prompts = []
        for step in range(len(job.encoded.replies)):
            ids = job.encoded.state(step)
            limit = min(sampling.decoding.max_new_tokens, self.policy.context - len(ids))
            if limit < 1:
                raise ValueError(
                    f"a state of {len(ids)} tokens leaves no room for a reply in the model's "
                    f"context of {self.policy.context}"
                )
            for j in range(sampling.k):
                prompts.append(Prompt(ids, limit, draw_seed(job.seed, step, j), number))
        return prompts

    def _collect(
        self, number: int, futures: Sequence[Future[Drawn]], sampling: Sampling
    ) -> Replies:
        replies = [future.result().reply(sampling) for future in futures]
        self.forget(number)
        return [replies[i : i + sampling.k] for i in range(0, len(replies), sampling.k)]

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Drawn]:
        """Asks for a reply; threads send the prompts, so this returns at once."""
        if len(self._threads) < self._most_at_once:
            # Daemons: a request under way does not delay Ctrl-C.
            thread = threading.Thread(target=self._work, daemon=True, name="sampler")
            self._threads.append(thread)
            thread.start()
        future: Future[Drawn] = Future()
        self._todo.put((future, prompt, sampling))
        return future

    @property
    def _most_at_once(self) -> int:
        return self._config.concurrency * len(self._config.urls)

    def _work(self) -> None:
        assert self._fleet
        with session() as own:
            while (item := self._todo.get()) is not None:
                _answer(self._fleet, own, *item)
                del item  # its error, and with it the run, would live until the next one

    def forget(self, key: Any) -> None:
        """There will be no further prompt of this key."""
        if self._fleet:
            self._fleet.forget(key)

    def player(self, **options: Any) -> EngineAgent:
        """Its conversations are no longer than the engines take."""
        assert self._fleet
        return EngineAgent(self, self.policy, {"context": self._fleet.context, **options})

    def close(self) -> None:
        if self._fleet:
            self._fleet.close()
        for _ in self._threads:
            self._todo.put(None)
        self._threads.clear()


def _answer(
    fleet: Fleet,
    own: requests.Session,
    future: Future[Drawn],
    prompt: Prompt,
    sampling: Sampling,
) -> None:
    """Does what was submitted."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(fleet.draw(own, prompt, sampling))
        except BaseException as error:
            future.set_exception(error)


def serve_command(policy: Policy) -> str:
    """The command that starts an engine for this policy.

    Without its port and limits, which depend on the machine.
    """
    settings = policy.model.peft_config["default"] if policy.has_adapter else None
    base = Path(settings.base_model_name_or_path if settings else policy.model.name_or_path)
    serve = f"vllm serve {base.absolute() if base.is_dir() else base} --enable-scale-out"
    if not settings:
        return f"VLLM_SERVER_DEV_MODE=1 {serve}"
    rank = next((rank for rank in RANKS if rank >= settings.r), settings.r)
    return f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {serve} --enable-lora --max-lora-rank {rank}"
