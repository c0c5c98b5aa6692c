"""Open episodes, and the threads that run their environments.

An `EnvWorker` owns one environment and carries out one command after another; the outcome of each
goes into a queue. An environment that raises ends one episode and is recreated for the next one.
`Caller` calls an agent in such a way that one that hangs can be abandoned.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from stepagent.agents.core import Turn
from stepagent.envs import react
from stepagent.envs.core import TextEnv
from stepagent.envs.react import Message, PromptStyle
from stepagent.envs.trajectory import Step, Trajectory, kept


@dataclass(frozen=True)
class Stamp:
    """What all trajectories of a run have in common."""

    env: str
    split: str
    agent: str
    fingerprint: dict[str, str]
    prompt: react.Prompt
    style: PromptStyle


@dataclass(frozen=True)
class Start:
    """Where an episode starts: a task, and replies that are played before the agent is asked."""

    task_id: str
    seed: int = 0
    replies: tuple[str, ...] = ()
    play_on: bool = True
    """Off: the episode ends behind its replies, and the agent is never asked."""
    salt: str = ""
    """The agent draws differently in episodes of one task and seed that differ in it."""


@dataclass
class Episode:
    """An open episode."""

    index: int
    start: Start
    worker: EnvWorker
    started: float = field(default_factory=time.monotonic)
    waiting_since: float = math.inf
    """Since when its environment or the agent has been working on it (monotonic); inf: neither."""
    messages: list[Message] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    pending_step: Step | None = None
    """The step that the environment is working on; its outcome is not known yet."""
    observation: str = ""
    task_type: str = ""
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        return self.start.task_id

    @property
    def seed(self) -> int:
        return self.start.seed

    @property
    def key(self) -> tuple[int, str, int]:
        return self.index, self.task_id, self.seed

    def turn(self) -> Turn:
        salt = f"/{self.start.salt}" if self.start.salt else ""
        agent_seed = zlib.crc32(f"{self.seed}/{self.task_id}{salt}".encode())
        assert self.worker.env is not None
        return Turn(self.key, list(self.messages), self.worker.env, agent_seed)

    def add_reply(self, reply: str, stamp: Stamp) -> str:
        """Appends the agent's reply to the conversation; returns the text for the environment."""
        style, tools = stamp.style, stamp.prompt.tools
        self.pending_step = step = Step.of(self.observation, reply, style, tools)
        self.messages.append({"role": "assistant", "content": step.text(style, tools)})
        return kept(reply)

    def observe(self, observation: str, reward: float, info: dict[str, Any]) -> None:
        assert self.pending_step is not None
        self.steps.append(replace(self.pending_step, reward=reward, valid=bool(info["valid"])))
        self.pending_step, self.observation, self.info = None, observation, info
        self.messages.append({"role": "user", "content": observation})

    def where(self) -> str:
        """The current step, in words."""
        return f"(step {len(self.steps) + 1})" if self.messages else "(reset)"

    def trajectory(self, stamp: Stamp, error: str = "") -> Trajectory:
        return Trajectory(
            env=stamp.env,
            task_id=self.task_id,
            task_type=self.task_type,
            split=stamp.split,
            agent=stamp.agent,
            seed=self.seed,
            steps=tuple(self.steps),
            final_observation=self.observation,
            reward=float(self.info.get("score", 0.0)),
            success=bool(self.info.get("success", False)),
            truncated=self.truncated,
            metrics={name: float(value) for name, value in self.info.get("metrics", {}).items()},
            data_notes=dict(self.info.get("data_notes", {})),
            fingerprint=stamp.fingerprint,
            seconds=round(time.monotonic() - self.started, 3),
            error=error,
        )


Ended = tuple[Episode, bool, Exception | None]
"""A command was carried out: the episode, whether it is over, what its environment raised."""


class EnvWorker(threading.Thread):
    """A thread that owns one environment and carries out one command after another."""

    def __init__(self, make: Callable[[], TextEnv], ended: queue.SimpleQueue[Ended]):
        super().__init__(daemon=True, name="environment")  # one that hangs must not keep us alive
        self.env: TextEnv | None = None
        self._make, self._ended = make, ended
        self._commands: queue.SimpleQueue[Callable[[TextEnv], bool] | None] = queue.SimpleQueue()
        self._episode: Episode | None = None
        self._closing = False

    def begin(self, episode: Episode, opening: Callable[[str], list[Message]]) -> None:
        def reset(env: TextEnv) -> bool:
            options = {"task_id": episode.task_id}
            try:
                episode.observation, episode.info = env.reset(seed=episode.seed, options=options)
            finally:
                if env.task_id == episode.task_id:  # else it failed before it took up the task
                    episode.task_type = env.task_type
            episode.messages = opening(episode.observation)
            return False

        self._episode, episode.waiting_since = episode, time.monotonic()
        self._commands.put(reset)

    def step(self, episode: Episode, reply: str) -> None:
        def step(env: TextEnv) -> bool:
            observation, reward, done, episode.truncated, info = env.step(reply)
            episode.observe(observation, float(reward), info)
            return done or episode.truncated

        episode.waiting_since = time.monotonic()
        self._commands.put(step)

    def close(self) -> None:
        """Ends the thread after the current command; further commands are dropped."""
        self._closing = True
        self._commands.put(None)

    def run(self) -> None:
        while (command := self._commands.get()) is not None and not self._closing:
            assert self._episode is not None
            try:
                if self.env is None:
                    self.env = self._make()
                done, failure = command(self.env), None
            except Exception as error:  # whatever goes wrong in an environment ends one episode
                done, failure = True, error
                self._drop()
            self._ended.put((self._episode, done, failure))
        self._drop()

    def _drop(self) -> None:
        env, self.env = self.env, None
        try:
            if env is not None:
                env.close()
        except Exception:  # it is abandoned anyway; why it failed has been reported already
            pass


class Caller:
    """Calls functions one at a time and waits at most `limit` seconds for each (None: no limit).

    With a limit they run in a separate thread. A function that exceeds it is abandoned there (it
    cannot be stopped), TimeoutError is raised, and the next call gets a new thread.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self._commands: queue.SimpleQueue[Any] | None = None
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns or raises, or TimeoutError."""
        if self.limit is None:
            return function(*args)
        if self._commands is None:
            self._commands, self._results = queue.SimpleQueue(), queue.SimpleQueue()
            queues = self._commands, self._results
            threading.Thread(target=_serve, args=queues, daemon=True, name="agent").start()
        self._commands.put((function, args))
        try:
            result, error = self._results.get(timeout=self.limit)
        except queue.Empty:
            self.close()
            raise TimeoutError(f"no reply within {self.limit:g} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends the thread as soon as it is idle."""
        if self._commands is not None:
            self._commands.put(None)
            self._commands = None


def _serve(commands: queue.SimpleQueue[Any], results: queue.SimpleQueue[Any]) -> None:
    while (command := commands.get()) is not None:
        function, args = command
        try:
            results.put((function(*args), None))
        except BaseException as error:  # also a KeyboardInterrupt that an agent raises
            results.put((None, error))


def raise_interrupt(failure: BaseException) -> None:
    """Raises KeyboardInterrupt where Ctrl-C or SIGTERM came first, and an error of what tidied up
    behind it (a connection that it closed, say) has taken its place."""
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from failure
        cause = cause.__context__


def describe(failure: Exception) -> str:
    """An exception as a short text."""
    return f"{type(failure).__name__}: {failure}"[:2000]
