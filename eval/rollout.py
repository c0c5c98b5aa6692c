"""Episodes in parallel: many open environments, one agent that answers those that are waiting.

Every open environment has its own thread (`eval.env_workers`) and plays one task after another. The
agent acts in the caller's thread on the episodes that wait for a reply. A streaming agent (a local
model, a server) gets each episode as soon as it is ready and returns each reply as soon as it has
ended, so that its batch stays full and a slow environment delays no other. Other agents get
batches: the loop waits a moment for a fuller one, but never long compared with the agent's own
speed (`PATIENCE`). An episode is a function of its start and the agent alone, so the number of
workers changes the order in which trajectories arrive, and nothing in them but `seconds`.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import Any, TypeVar

from stepagent import envs
from stepagent.agents.core import Agent, Turn
from stepagent.envs import react
from stepagent.envs.core import TextEnv, own_version
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import SetupError, check_range
from stepagent.eval.env_workers import (
    Caller,
    Ended,
    EnvWorker,
    Episode,
    Stamp,
    Start,
    describe,
    raise_interrupt,
)

T = TypeVar("T")
PATIENCE = 0.25
"""How long a batch that is not full waits for more episodes, as a share of the agent's last act."""
SHOWN_EVERY = 2.0
"""Seconds between two looks at the open episodes (`show`)."""
UNFINISHED = "not over yet"
"""The `error` of an episode that is still being played."""
_CLOSING = 10.0
"""Seconds that an environment has to end its last step and close."""
_MAX_HANGS = 2
"""Turns, asked one by one, that an agent may hang on before it counts as hanging on all of them."""


def run_episodes(
    env_id: str,
    agent: Agent,
    tasks: Sequence[str],
    *,
    split: str = "test",
    seed: int | Sequence[int] = 0,
    workers: int | None = None,
    env_args: dict[str, Any] | None = None,
    prompt: react.Prompt | None = None,
    time_limit: float | None = None,
    show: Callable[[list[Trajectory]], None] | None = None,
    more: Callable[[], str | None] = lambda: None,
) -> Generator[Trajectory, None, None]:
    """Plays one episode per task and yields the trajectories as they end.

    Parameters
    ----------
    tasks: task ids of the split; an id may occur several times, with different seeds.
    seed: of every episode, or one for each of `tasks`. The agent gets a seed made of it and the
        task id, so that it does not make the same draws in every task.
    workers: environments kept open at once; None: the agent's `batch_size`.
    env_args: further arguments of the environment.
    prompt: opens the conversations instead of the environment's own (`eval.few_shot` makes some).
    time_limit: seconds that the agent may take for a reply, or an environment for a step, before
        the episode counts as failed and whatever hangs is abandoned; None: no limit.
    show: gets the episodes that wait for the agent, unfinished, every few seconds.
    more: asked for a further task while an environment has nothing to do. It ends when all are
        played and `more` gives None.

    An environment or an agent that fails or hangs ends that episode only: its trajectory says why
    in `error` and holds the steps so far, and the environment is recreated. Raises ValueError for
    an unknown environment, split or task id, and whatever the environment's construction raises;
    both before the first episode. A SetupError, such as a missing package, would fail every
    episode: it is raised at once.
    """
    seeds = [seed] * len(tasks) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(tasks):
        raise ValueError(f"{len(seeds)} seeds for {len(tasks)} tasks: give one, or one per task")
    common_seed = seed if isinstance(seed, int) else 0
    episodes = run_from(
        env_id,
        agent,
        [Start(task, number) for task, number in zip(tasks, seeds, strict=True)],
        split=split,
        workers=workers,
        env_args=env_args,
        prompt=prompt,
        time_limit=time_limit,
        show=show,
        more=lambda: None if (task := more()) is None else Start(task, common_seed),
    )
    return _trajectories(episodes)


def _trajectories(
    episodes: Generator[tuple[int, Trajectory], None, None],
) -> Generator[Trajectory, None, None]:
    with contextlib.closing(episodes):
        for _, trajectory in episodes:
            yield trajectory


def run_from(
    env_id: str,
    agent: Agent,
    starts: Sequence[Start],
    *,
    split: str = "test",
    workers: int | None = None,
    env_args: dict[str, Any] | None = None,
    prompt: react.Prompt | None = None,
    time_limit: float | None = None,
    show: Callable[[list[Trajectory]], None] | None = None,
    more: Callable[[], Start | None] = lambda: None,
) -> Generator[tuple[int, Trajectory], None, None]:
    """`run_episodes` from any starts: yields (number of the start, trajectory) as episodes end.

    A start's replies are played as the agent's own would be and are part of the trajectory. An
    environment may end the episode before they are all played: compare the number of steps.
    """
    kwargs = {**(env_args or {}), "split": split}
    check_range(1, workers=workers)
    if time_limit is not None and time_limit <= 0:
        raise ValueError(f"time_limit is {time_limit}: it must be above 0 seconds, or None")
    check_range(0, seed=min((start.seed for start in starts), default=0))
    first = envs.make(env_id, **kwargs)
    if unknown := sorted({start.task_id for start in starts} - set(first.tasks)):
        first.close()
        raise ValueError(
            f"{env_id}, split {split!r}, has no task {unknown[0]!r} ({len(unknown)} of the task "
            f"ids are unknown). It has {len(first.tasks)}, such as {', '.join(first.tasks[:3])}"
        )
    prompt = prompt or first.prompt
    stamp = Stamp(env_id, split, agent.name, fingerprint(first, agent, prompt), prompt, agent.style)
    todo = deque(enumerate(starts))
    rollout = _Rollout(agent, stamp, todo, lambda: envs.make(env_id, **kwargs), time_limit)
    rollout.show, rollout.more = show, more
    return rollout.play(first, workers or agent.batch_size)


def fingerprint(env: TextEnv, agent: Agent, prompt: react.Prompt | None = None) -> dict[str, str]:
    """What a result depends on besides task and seed: environment, agent, prompt in its style."""
    agent_parts = {f"agent.{name}": str(value) for name, value in agent.fingerprint().items()}
    prompt = prompt or env.prompt
    shots = {"shots": str(1 + len(prompt.more))} if prompt.more and agent.style.example else {}
    calls = {"format": agent.style.format} if agent.style.format != "react" else {}
    prompt_parts = {"prompt": prompt.checksum(agent.style), **shots, **calls}
    return {"stepagent": own_version(), **env.fingerprint(), **agent_parts, **prompt_parts}


class _Rollout:
    """The loop between workers and agent."""

    def __init__(
        self,
        agent: Agent,
        stamp: Stamp,
        starts: deque[tuple[int, Start]],
        make: Callable[[], TextEnv],
        limit: float | None,
    ):
        self.agent, self.stamp, self.starts = agent, stamp, starts
        self.make, self.limit, self.call = make, limit, Caller(limit)
        self.workers: list[EnvWorker] = []
        self.ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self.waiting: deque[Episode] = deque()
        self.pending: dict[Hashable, Episode] = {}
        """Episodes that a streaming agent has accepted and not answered yet."""
        self.finished: deque[tuple[int, Trajectory]] = deque()
        self.open: dict[int, Episode] = {}
        self.pace = 0.0
        """Seconds that the agent's last `act` took."""
        self.more: Callable[[], Start | None] = lambda: None
        self.count = len(starts)
        """Starts so far, those of `more` among them."""
        self.idle: list[EnvWorker] = []
        self.show: Callable[[list[Trajectory]], None] | None = None
        self.shown = time.monotonic()
        """When it was last called."""

    def play(self, first: TextEnv, workers: int) -> Generator[tuple[int, Trajectory], None, None]:
        for _ in range(max(1, min(workers, len(self.starts)))):
            self.workers.append(EnvWorker(self.make, self.ended))
        self.workers[0].env = first
        for worker in self.workers:
            worker.start()
        try:
            for worker in self.workers:
                self._begin(worker)
            while self.open:
                for worker in self._take_idle():
                    self._begin(worker)
                self._gather()
                self._show()
                yield from self._deliver()
                (self._stream if self.agent.streaming else self._act)()
                yield from self._deliver()
        except (KeyboardInterrupt, SetupError):
            self.starts.clear()
            self.more = lambda: None
            while not self.ended.empty():  # episodes that ended meanwhile are not lost
                self._record(*self.ended.get())
            yield from self._deliver()
            raise
        finally:
            for worker in self.workers:
                worker.close()
            self.call.close()
            for episode in self.open.values():
                self.agent.forget(episode.key)
            deadline = time.monotonic() + _CLOSING
            for worker in self.workers:
                worker.join(max(0.0, deadline - time.monotonic()))

    def _take_idle(self) -> list[EnvWorker]:
        """The workers that had nothing to do."""
        idle, self.idle = self.idle, []
        return idle

    def _begin(self, worker: EnvWorker) -> None:
        if not self.starts and (further := self.more()):
            self.starts.append((self.count, further))
            self.count += 1
        if not self.starts:
            self.idle.append(worker)
        else:
            index, start = self.starts.popleft()
            self.open[index] = episode = Episode(index, start, worker)
            worker.begin(
                episode, lambda text: react.opening(self.stamp.prompt, text, self.stamp.style)
            )

    def _finish(self, episode: Episode, error: str = "") -> None:
        del self.open[episode.index]
        self.agent.forget(episode.key)
        self.finished.append((episode.index, episode.trajectory(self.stamp, error)))
        self._begin(episode.worker)

    def _deliver(self) -> Iterator[tuple[int, Trajectory]]:
        while self.finished:
            yield self.finished.popleft()

    # Environments -------------------------------------------------------------------------------

    def _record(self, episode: Episode, done: bool, failure: Exception | None) -> None:
        if isinstance(failure, SetupError):
            raise failure
        if self.open.get(episode.index) is not episode:
            return  # it took too long and was abandoned
        episode.waiting_since = float("inf")
        replies, played = episode.start.replies, len(episode.steps)
        if failure:
            self._finish(episode, f"environment: {describe(failure)} {episode.where()}")
        elif done:
            self._finish(episode)
        elif played < len(replies):
            self._answer(episode, replies[played])
        elif not episode.start.play_on:
            self._finish(episode)
        else:
            self.waiting.append(episode)

    def _gather(self) -> None:
        """If the agent has nothing to do, waits for an episode that needs a reply or has ended.

        For an agent that answers in batches, waits a little longer for a full one.
        """
        if not (self.waiting or self.pending):
            self._take(self._until_overdue())
        deadline = time.monotonic() + PATIENCE * self.pace
        while True:
            full = len(self.waiting) >= min(self.agent.batch_size, len(self.open))
            left = 0.0 if full or self.agent.streaming else deadline - time.monotonic()
            if not self._take(max(0.0, left)):
                break
        self._give_up()

    def _show(self) -> None:
        """Shows the episodes whose environments are idle, but not often: it costs time."""
        if self.show is None or time.monotonic() - self.shown < SHOWN_EVERY:
            return
        idle = sorted([*self.waiting, *self.pending.values()], key=lambda e: e.index)
        self.show([episode.trajectory(self.stamp, UNFINISHED) for episode in idle])
        self.shown = time.monotonic()

    def _take(self, timeout: float | None) -> bool:
        """Records the outcome of the next command, if one ends within `timeout` seconds (None: no
        limit)."""
        try:
            self._record(*self.ended.get(block=timeout != 0, timeout=timeout))
        except queue.Empty:
            return False
        return True

    def _until_overdue(self) -> float | None:
        """Seconds until the first episode has taken too long; None: never."""
        if self.limit is None:
            return None
        first = min((e.waiting_since for e in self.open.values()), default=0.0)
        return max(0.01, first + self.limit - time.monotonic())

    def _give_up(self) -> None:
        """Ends the episodes on which their environment or the agent has worked for too long."""
        limit, now = self.limit, time.monotonic()
        late = [
            e for e in self.open.values() if limit is not None and now - e.waiting_since > limit
        ]
        for episode in late:
            if self.pending.pop(episode.key, None):
                self._answer(episode, TimeoutError(f"no reply within {limit:g} s"))
                continue
            episode.worker.close()  # takes effect when its step returns, if ever
            self.workers.remove(episode.worker)
            episode.worker = EnvWorker(self.make, self.ended)
            self.workers.append(episode.worker)
            episode.worker.start()
            why = f"environment: TimeoutError: no answer within {limit:g} s {episode.where()}"
            self._finish(episode, why)

    # The agent ----------------------------------------------------------------------------------

    def _answer(self, episode: Episode, reply: str | Exception) -> None:
        if isinstance(reply, SetupError):
            raise reply
        episode.waiting_since = float("inf")
        if isinstance(reply, str):
            episode.worker.step(episode, episode.add_reply(reply, self.stamp))
        else:
            self._finish(episode, f"agent: {describe(reply)} {episode.where()}")

    def _stream(self) -> None:
        """Submits waiting episodes, lets the agent work for a moment, and takes its replies."""
        room = self.agent.batch_size - len(self.pending)
        taken = [self.waiting.popleft() for _ in range(min(room, len(self.waiting)))]
        for episode, failure in zip(taken, _each(taken, self._submit), strict=True):
            if failure:
                self._answer(episode, failure)
            else:
                episode.waiting_since = time.monotonic()
                self.pending[episode.key] = episode
        if not self.pending:
            return
        try:
            replies = [(key, _checked(reply)) for key, reply in self.call(self.agent.poll)]
        except Exception as failure:
            raise_interrupt(failure)
            pending = list(self.pending.values())
            self.pending.clear()
            for episode, reply in zip(pending, self._one_by_one(pending), strict=True):
                self._answer(episode, reply)
            return
        for key, reply in replies:
            if key in self.pending:
                self._answer(self.pending.pop(key), reply)

    def _submit(self, episode: Episode) -> Exception | None:
        try:
            self.call(self.agent.submit, [episode.turn()])
        except Exception as failure:  # an agent may fail in any way
            raise_interrupt(failure)
            return failure
        return None

    def _act(self) -> None:
        batch = [
            self.waiting.popleft() for _ in range(min(self.agent.batch_size, len(self.waiting)))
        ]
        start = time.monotonic()
        for episode, reply in zip(batch, self._ask(batch), strict=True):
            self._answer(episode, reply)
        if batch:
            self.pace = time.monotonic() - start

    def _ask(self, batch: list[Episode]) -> list[str | Exception]:
        """A reply for each. If the batch fails, each is asked alone to find the culprit."""
        try:
            return list(self._replies([episode.turn() for episode in batch]))
        except Exception as failure:  # an agent may fail in any way
            raise_interrupt(failure)
            return [failure] if len(batch) == 1 else self._one_by_one(batch)

    def _one_by_one(self, batch: list[Episode]) -> list[str | Exception]:
        for episode in batch:  # a failed batch may leave caches in a bad state
            self.agent.forget(episode.key)
        return _each(batch, lambda episode: self._ask([episode])[0])

    def _replies(self, turns: list[Turn]) -> list[str]:
        if not turns:
            return []
        replies = self.call(self.agent.act, turns)
        if len(replies) != len(turns):
            raise RuntimeError(f"{len(replies)} replies to {len(turns)} turns")
        for reply in replies:
            if isinstance(checked := _checked(reply), Exception):
                raise checked
        return replies


def _each(batch: Sequence[Episode], ask: Callable[[Episode], T]) -> list[T]:
    """The result of `ask` for each. If it hangs twice, the cause is not a turn but the agent: the
    rest are not asked, and get the same error.
    """
    results: list[T] = []
    for episode in batch:
        hung = sum(isinstance(reply, TimeoutError) for reply in results)
        results.append(ask(episode) if hung < _MAX_HANGS else results[-1])
    return results


def _checked(reply: Any) -> str | Exception:
    """The reply, or what is wrong with it."""
    if isinstance(reply, str | Exception):
        return reply
    return TypeError(f"a reply is a str, not {type(reply).__name__}")
