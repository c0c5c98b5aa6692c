"""Episodes on their way, and the threads in which their environments live.

A `World` owns one environment and does what it is told, one order after another; what came of each
order goes into a queue. An environment that raises ends one episode and is made anew for the next
one. `Caller` calls an agent so that one that hangs can be left behind.
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
from stepagent.envs.core import TextEnv, clip
from stepagent.envs.react import Message, PromptStyle
from stepagent.envs.trajectory import Step, Trajectory


@dataclass(frozen=True)
class Stamp:
    """What all trajectories of a run have in common."""

    env: str
    split: str
    agent: str
    fingerprint: dict[str, str]
    prompt: react.Prompt
    style: PromptStyle


@dataclass
class Episode:
    """One episode on its way."""

    index: int
    task_id: str
    seed: int
    world: World
    begun: float = field(default_factory=time.monotonic)
    handed: float = math.inf
    """Since when it is with its environment or with the agent (monotonic); inf: with neither."""
    messages: list[Message] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    answer: Step | None = None
    """The step that the environment is working on; its outcome is not known yet."""
    observation: str = ""
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, str, int]:
        return self.index, self.task_id, self.seed

    def turn(self) -> Turn:
        agent_seed = zlib.crc32(f"{self.seed}/{self.task_id}".encode())
        assert self.world.env is not None
        return Turn(self.key, list(self.messages), self.world.env, agent_seed)

    def take(self, reply: str, style: PromptStyle) -> str:
        """Writes the agent's reply into the conversation; returns what the environment gets."""
        self.answer = Step.of(self.observation, reply, style)
        self.messages.append({"role": "assistant", "content": self.answer.text(style)})
        return clip(react.cut(reply))

    def observe(self, observation: str, reward: float, info: dict[str, Any]) -> None:
        assert self.answer is not None
        self.steps.append(replace(self.answer, reward=reward, valid=bool(info["valid"])))
        self.answer, self.observation, self.info = None, observation, info
        self.messages.append({"role": "user", "content": observation})

    def where(self) -> str:
        """The step that is being made, in words."""
        return f"(step {len(self.steps) + 1})" if self.messages else "(reset)"

    def trajectory(self, stamp: Stamp, error: str = "") -> Trajectory:
        return Trajectory(
            env=stamp.env,
            task_id=self.task_id,
            split=stamp.split,
            agent=stamp.agent,
            seed=self.seed,
            steps=tuple(self.steps),
            final_observation=self.observation,
            reward=float(self.info.get("score", 0.0)),
            success=bool(self.info.get("success", False)),
            truncated=self.truncated,
            metrics={name: float(value) for name, value in self.info.get("metrics", {}).items()},
            fingerprint=stamp.fingerprint,
            seconds=round(time.monotonic() - self.begun, 3),
            error=error,
        )


Ended = tuple[Episode, bool, str]
"""An order was carried out: the episode, whether it is over, what went wrong (or "")."""


class World(threading.Thread):
    """A thread that owns one environment and does what it is told, one order after another."""

    def __init__(self, make: Callable[[], TextEnv], ended: queue.SimpleQueue[Ended]):
        super().__init__(daemon=True, name="environment")  # a world that hangs must not hold us
        self.env: TextEnv | None = None
        self._make, self._ended = make, ended
        self._orders: queue.SimpleQueue[Callable[[TextEnv], bool] | None] = queue.SimpleQueue()
        self._episode: Episode | None = None
        self._closing = False

    def begin(self, episode: Episode, opening: Callable[[str], list[Message]]) -> None:
        def reset(env: TextEnv) -> bool:
            options = {"task_id": episode.task_id}
            episode.observation, episode.info = env.reset(seed=episode.seed, options=options)
            episode.messages = opening(episode.observation)
            return False

        self._episode, episode.handed = episode, time.monotonic()
        self._orders.put(reset)

    def step(self, episode: Episode, reply: str) -> None:
        def step(env: TextEnv) -> bool:
            observation, reward, done, episode.truncated, info = env.step(reply)
            episode.observe(observation, float(reward), info)
            return done or episode.truncated

        episode.handed = time.monotonic()
        self._orders.put(step)

    def close(self) -> None:
        """Ends the thread after the order in hand; orders behind it are left undone."""
        self._closing = True
        self._orders.put(None)

    def run(self) -> None:
        while (order := self._orders.get()) is not None and not self._closing:
            assert self._episode is not None
            try:
                if self.env is None:
                    self.env = self._make()
                done, error = order(self.env), ""
            except Exception as failure:  # anything an environment can do wrong ends one episode
                done, error = True, f"environment: {describe(failure)}"
                self._drop()
            self._ended.put((self._episode, done, error))
        self._drop()

    def _drop(self) -> None:
        env, self.env = self.env, None
        try:
            if env is not None:
                env.close()
        except Exception:  # it is given up; why it failed has been told already
            pass


class Caller:
    """Calls functions one at a time and waits `limit` seconds at most for each (None: for ever).

    With a limit they run in a thread of their own. One that exceeds it is left behind there (there
    is no way to stop it), TimeoutError is raised, and the next call gets a new thread.
    """

    def __init__(self, limit: float | None):
        self.limit = limit
        self._orders: queue.SimpleQueue[Any] | None = None
        self._results: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns or raises, or TimeoutError."""
        if self.limit is None:
            return function(*args)
        if self._orders is None:
            self._orders, self._results = queue.SimpleQueue(), queue.SimpleQueue()
            queues = self._orders, self._results
            threading.Thread(target=_serve, args=queues, daemon=True, name="agent").start()
        self._orders.put((function, args))
        try:
            result, error = self._results.get(timeout=self.limit)
        except queue.Empty:
            self.close()
            raise TimeoutError(f"no reply within {self.limit:g} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends the thread as soon as it has nothing to do."""
        if self._orders is not None:
            self._orders.put(None)
            self._orders = None


def _serve(orders: queue.SimpleQueue[Any], results: queue.SimpleQueue[Any]) -> None:
    while (order := orders.get()) is not None:
        function, args = order
        try:
            results.put((function(*args), None))
        except BaseException as error:  # a Ctrl-C that an agent raises is the caller's, too
            results.put((None, error))


def describe(failure: Exception) -> str:
    """An exception in one short text."""
    return f"{type(failure).__name__}: {failure}"[:2000]
