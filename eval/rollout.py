"""Episodes in parallel: many open environments, one agent that answers whoever is waiting.

Every open environment lives in a thread of its own and is used for one task after another. The
agent acts in the caller's thread on a batch of the episodes that wait for a reply; it lingers a
moment for a fuller batch, but never long compared with its own pace (`PATIENCE`). An episode is a
function of (task, seed) and the agent alone, so the number of workers changes the order in which
trajectories arrive and nothing in them but `seconds`.
"""

from __future__ import annotations

import queue
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import envs
from agents.core import Agent, Turn
from envs import react
from envs.core import TextEnv, clip
from envs.react import Message, PromptStyle
from envs.trajectory import Step, Trajectory

PATIENCE = 0.25
"""How long a batch that is not full waits for more episodes, as a share of the agent's last act."""
_CLOSING = 10.0
"""Seconds that an environment gets to end its last step and close."""


def run_episodes(
    env_id: str,
    agent: Agent,
    tasks: Sequence[str],
    *,
    split: str = "test",
    seed: int | Sequence[int] = 0,
    workers: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> Generator[Trajectory, None, None]:
    """Plays one episode a task and yields their trajectories as they end.

    Parameters
    ----------
    tasks: task ids of the split; an id may occur several times, with different seeds.
    seed: of every episode, or one for each of `tasks`. The agent is handed a seed made of it and
        the task id, so that equal draws do not run through all tasks.
    workers: environments kept open at once; None: the agent's `batch_size`.
    env_kwargs: further arguments of the environment.

    An environment or an agent that fails ends that episode only: its trajectory says why in
    `error` and holds the steps made so far, and the environment is made anew. Raises ValueError
    for an unknown environment, split or task id, and whatever the environment's construction
    raises; both before the first episode.
    """
    kwargs = {**(env_kwargs or {}), "split": split}
    seeds = [seed] * len(tasks) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(tasks):
        raise ValueError(f"{len(seeds)} seeds for {len(tasks)} tasks: give one, or one a task")
    first = envs.make(env_id, **kwargs)
    if unknown := sorted(set(tasks) - set(first.tasks)):
        first.close()
        raise ValueError(
            f"{env_id}, split {split!r}, has no task {unknown[0]!r} ({len(unknown)} of those asked "
            f"for are unknown). It has {len(first.tasks)}, such as {', '.join(first.tasks[:3])}"
        )
    stamp = _Stamp(env_id, split, agent.name, fingerprint(first, agent), first.prompt, agent.style)
    run = _Run(agent, stamp, deque(zip(range(len(tasks)), tasks, seeds, strict=True)))
    return run.play(lambda: envs.make(env_id, **kwargs), first, workers or agent.batch_size)


def fingerprint(env: TextEnv, agent: Agent) -> dict[str, str]:
    """What a result depends on beside task and seed: environment, agent, prompt in its style."""
    try:
        own = version("stepagent")
    except PackageNotFoundError:  # run from a source tree that was never installed
        own = "source"
    of_agent = {f"agent.{name}": str(value) for name, value in agent.fingerprint().items()}
    prompt = env.prompt.checksum(agent.style)
    return {"stepagent": own, **env.fingerprint(), **of_agent, "prompt": prompt}


@dataclass(frozen=True)
class _Stamp:
    """What all trajectories of a run have in common."""

    env: str
    split: str
    agent: str
    fingerprint: dict[str, str]
    prompt: react.Prompt
    style: PromptStyle


@dataclass
class _Episode:
    """One episode on its way."""

    index: int
    task_id: str
    seed: int
    world: _World
    begun: float = field(default_factory=time.monotonic)
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
        kept = clip(react.cut(reply))
        parsed = react.parse(kept)
        step = Step(self.observation, parsed.thought, parsed.action)
        if step.text(style) != kept:
            step = replace(step, reply=kept or " ")  # "" would stand for the rendered text
        self.answer = step
        self.messages.append({"role": "assistant", "content": step.text(style)})
        return kept

    def observe(self, observation: str, reward: float, info: dict[str, Any]) -> None:
        assert self.answer is not None
        self.steps.append(replace(self.answer, reward=reward, valid=bool(info["valid"])))
        self.answer, self.observation, self.info = None, observation, info
        self.messages.append({"role": "user", "content": observation})

    def trajectory(self, stamp: _Stamp, error: str = "") -> Trajectory:
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


class _World(threading.Thread):
    """A thread that owns one environment and does what it is told, one order after another."""

    def __init__(self, make: Callable[[], TextEnv], ended: queue.SimpleQueue[_Ended]):
        super().__init__(daemon=True, name="environment")  # a world that hangs must not hold us
        self.env: TextEnv | None = None
        self._make, self._ended = make, ended
        self._orders: queue.SimpleQueue[Callable[[TextEnv], bool] | None] = queue.SimpleQueue()
        self._episode: _Episode | None = None
        self._closing = False

    def begin(self, episode: _Episode, opening: Callable[[str], list[Message]]) -> None:
        def reset(env: TextEnv) -> bool:
            options = {"task_id": episode.task_id}
            episode.observation, episode.info = env.reset(seed=episode.seed, options=options)
            episode.messages = opening(episode.observation)
            return False

        self._episode = episode
        self._orders.put(reset)

    def step(self, episode: _Episode, reply: str) -> None:
        def step(env: TextEnv) -> bool:
            observation, reward, done, episode.truncated, info = env.step(reply)
            episode.observe(observation, float(reward), info)
            return done or episode.truncated

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
                done, error = True, f"environment: {_describe(failure)}"
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


_Ended = tuple[_Episode, bool, str]
"""An order was carried out: the episode, whether it is over, what went wrong (or "")."""


def _describe(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"[:2000]


class _Run:
    """The loop that brings worlds and agent together."""

    def __init__(self, agent: Agent, stamp: _Stamp, tasks: deque[tuple[int, str, int]]):
        self.agent, self.stamp, self.tasks = agent, stamp, tasks
        self.ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()
        self.waiting: deque[_Episode] = deque()
        self.finished: deque[Trajectory] = deque()
        self.open: dict[int, _Episode] = {}
        self.pace = 0.0
        """Seconds that the agent's last act took."""

    def play(
        self, make: Callable[[], TextEnv], first: TextEnv, workers: int
    ) -> Generator[Trajectory, None, None]:
        worlds = [_World(make, self.ended) for _ in range(max(1, min(workers, len(self.tasks))))]
        worlds[0].env = first
        for world in worlds:
            world.start()
        try:
            for world in worlds:
                self._begin(world)
            while self.open:
                self._gather()
                yield from self._deliver()
                self._act()
                yield from self._deliver()
        except KeyboardInterrupt:
            self.tasks.clear()
            while not self.ended.empty():  # what ended meanwhile is not lost
                self._note(*self.ended.get())
            yield from self._deliver()
            raise
        finally:
            for world in worlds:
                world.close()
            for episode in self.open.values():
                self.agent.forget(episode.key)
            deadline = time.monotonic() + _CLOSING
            for world in worlds:
                world.join(max(0.0, deadline - time.monotonic()))

    def _begin(self, world: _World) -> None:
        if self.tasks:
            index, task_id, seed = self.tasks.popleft()
            self.open[index] = episode = _Episode(index, task_id, seed, world)
            world.begin(
                episode, lambda text: react.opening(self.stamp.prompt, text, self.stamp.style)
            )

    def _finish(self, episode: _Episode, error: str = "") -> None:
        del self.open[episode.index]
        self.agent.forget(episode.key)
        self.finished.append(episode.trajectory(self.stamp, error))
        self._begin(episode.world)

    def _deliver(self) -> Iterator[Trajectory]:
        while self.finished:
            yield self.finished.popleft()

    def _note(self, episode: _Episode, done: bool, error: str) -> None:
        if done:
            where = f"step {len(episode.steps) + 1}" if episode.messages else "reset"
            self._finish(episode, f"{error} ({where})" if error else "")
        else:
            self.waiting.append(episode)

    def _gather(self) -> None:
        """Waits for an episode that wants a reply or has ended; lingers for a full batch."""
        if not self.waiting:
            self._note(*self.ended.get())
        deadline = time.monotonic() + PATIENCE * self.pace
        while True:
            full = len(self.waiting) >= min(self.agent.batch_size, len(self.open))
            left = 0.0 if full else deadline - time.monotonic()
            try:
                self._note(*self.ended.get(timeout=left) if left > 0 else self.ended.get_nowait())
            except queue.Empty:
                return

    def _act(self) -> None:
        batch = [
            self.waiting.popleft() for _ in range(min(self.agent.batch_size, len(self.waiting)))
        ]
        begun = time.monotonic()
        for episode, reply in zip(batch, self._ask([e.turn() for e in batch]), strict=True):
            if isinstance(reply, Exception):
                where = f"(step {len(episode.steps) + 1})"
                self._finish(episode, f"agent: {_describe(reply)} {where}")
            else:
                episode.world.step(episode, episode.take(reply, self.stamp.style))
        if batch:
            self.pace = time.monotonic() - begun

    def _ask(self, turns: list[Turn]) -> list[str | Exception]:
        """A reply for each turn. Where the batch fails, each is asked alone to find the culprit."""
        try:
            return list(self._replies(turns))
        except Exception as failure:  # an agent may fail in any way
            if len(turns) < 2:
                return [failure]
        for turn in turns:  # a failed batch may leave caches half written
            self.agent.forget(turn.key)
        return [self._ask([turn])[0] for turn in turns]

    def _replies(self, turns: list[Turn]) -> list[str]:
        if not turns:
            return []
        replies = self.agent.act(turns)
        if len(replies) != len(turns):
            raise RuntimeError(f"{len(replies)} replies to {len(turns)} turns")
        if wrong := [r for r in replies if not isinstance(r, str)]:
            raise TypeError(f"a reply is a str, not {type(wrong[0]).__name__}")
        return replies
