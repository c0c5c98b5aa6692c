"""Episodes spread over a Ray cluster: `stepagent eval … --launch ray`.

Each worker process of the cluster has an agent and environments of its own. This process tells them
which tasks to play and writes what comes back, so results are in one file. A task counts as played
when its trajectory is here: what a worker had that dies is played by others.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent import agents, ray_cluster
from stepagent.agents.core import Agent
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import FORESEEN, SetupError, exit_code
from stepagent.eval.evaluate import EvaluationOptions, LocalPlayer, Player, Setting

MOST_LOSSES = 3
"""How many workers may die while they have a task, before it counts as what kills them."""
WAIT_SECONDS = 30.0
"""After which it is said that no worker has found room in the cluster."""


@dataclass(frozen=True)
class Refusal:
    """Why a worker cannot play."""

    message: str
    exit_code: int


class RefusedError(SetupError):
    """No worker can play; the message is that of the last one."""

    def __init__(self, refusal: Refusal):
        super().__init__(refusal.message)
        self.exit_code = refusal.exit_code


class EpisodeWorker:
    """In a process of the cluster: one agent, for one evaluation after another. Made an actor with
    two threads, so that it is given tasks while it plays.

    Parameters
    ----------
    spec, agent_options: of `agents.make_agent`.
    folder: where the command was started; relative paths and modules are looked for there.
    """

    def __init__(self, spec: str, agent_options: Mapping[str, Any], folder: str):
        self._spec, self._agent_options = spec, agent_options
        self._agent: Agent | None = None
        if Path(folder).is_dir():
            os.chdir(folder)
            if folder not in sys.path:
                sys.path.append(folder)

    def prepare(self, env_id: str, options: EvaluationOptions) -> tuple[str, Setting | Refusal]:
        """Makes ready for an evaluation; returns the machine's name, and what will be played."""
        self._waiting: deque[str] = deque()
        self._known: set[str] = set()
        try:
            if self._agent is None:
                self._agent = agents.make_agent(self._spec, **self._agent_options)
            self._player = LocalPlayer(env_id, self._agent, options)
            return socket.gethostname(), self._player.setting()
        except Exception as error:
            return socket.gethostname(), _refusal(error)

    def give(self, tasks: Sequence[str]) -> None:
        """Tasks to play, if it has none of the name yet."""
        for task in tasks:
            if task not in self._known:
                self._known.add(task)
                self._waiting.append(task)

    def play(self, tasks: Sequence[str]) -> Iterator[tuple[Trajectory, dict[str, float]] | Refusal]:
        """Plays these and what it is given meanwhile: trajectories, and the agent's counts."""
        self.give(tasks)
        first = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            for trajectory in self._player.play(first, more=self._next):
                yield trajectory, dict(self._player.statistics())
        except Exception as error:
            yield _refusal(error)

    def _next(self) -> str | None:
        try:
            return self._waiting.popleft()
        except IndexError:
            return None


def _refusal(error: Exception) -> Refusal:
    message = str(error) if isinstance(error, FORESEEN) else f"{type(error).__name__}: {error}"
    return Refusal(message, exit_code(error))


@dataclass(eq=False)
class _Worker:
    """A worker as this process knows it."""

    actor: Any
    call: Any = None
    """What it is doing: a reference to its preparation, or a generator of trajectories."""
    host: str = ""
    slots: int = 0
    """Tasks that it may have at a time; 0: it is not prepared."""
    tasks: dict[str, None] = field(default_factory=dict)
    """Those that it has."""
    statistics: dict[str, float] = field(default_factory=dict)


class RayPlayers:
    """Workers on a cluster with one agent, for one evaluation after another.

    Parameters
    ----------
    ray: the module, connected.
    spec, agent_options: of `agents.make_agent`.
    needs: what each worker takes of the cluster (`ray_cluster.resources`).
    count: workers; None: as many as the cluster has room for.
    """

    def __init__(
        self,
        ray: Any,
        spec: str,
        agent_options: Mapping[str, Any],
        needs: Mapping[str, Any],
        count: int | None,
    ):
        self.ray = ray
        self._make = ray.remote(EpisodeWorker).options(max_concurrency=2, **needs).remote
        self._arguments = (spec, dict(agent_options), os.getcwd())
        self.count = count or max(1, ray_cluster.room(ray, needs))
        self.workers: list[_Worker] = []

    def add(self) -> _Worker:
        worker = _Worker(self._make(*self._arguments))
        self.workers.append(worker)
        return worker

    def player(self, env_id: str, options: EvaluationOptions, console: Console) -> Player:
        return RayPlayer(self, env_id, options, console)

    def drop(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.ray.kill(worker.actor)

    def close(self) -> None:
        for worker in list(self.workers):
            self.drop(worker)


class RayPlayer(Player):
    """One evaluation on the workers."""

    def __init__(
        self, players: RayPlayers, env_id: str, options: EvaluationOptions, console: Console
    ):
        super().__init__(env_id, options)
        self._players, self._ray, self._console = players, players.ray, console
        self._setting: Setting | None = None
        self._todo: deque[str] = deque()
        self._losses: Counter[str] = Counter()
        self._gone: list[dict[str, float]] = []
        """The agents' counts in workers that are gone."""
        self._most = min(players.count, options.limit or sys.maxsize)
        """Workers at a time."""
        self._unprepared = 0
        """Workers that were lost before they were prepared, in a row."""
        self._heard = time.monotonic()
        errors = self._ray.exceptions
        self._losing = (
            errors.RayActorError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
        )

    def setting(self) -> Setting:
        """That of the first worker. Raises RefusedError where none can play."""
        for worker in self._players.workers:
            self._prepare(worker)
        while self._setting is None:
            self._fill(self._most)
            self._listen()
        return self._setting

    def play(
        self, tasks: Sequence[str], show: Callable[[list[Trajectory]], None]
    ) -> Generator[Trajectory, None, None]:
        self._todo.extend(tasks)
        try:
            while self._todo or any(worker.tasks for worker in self._players.workers):
                self._fill(min(self._most, len(tasks)))
                for worker in self._players.workers:
                    if worker.slots and worker.call is None:
                        self._assign(worker)
                yield from self._listen()
        finally:
            # What still plays, after an interruption or an error, has no one to report to.
            for worker in [w for w in self._players.workers if w.tasks or not w.slots]:
                self._remove(worker)

    def statistics(self) -> Mapping[str, float]:
        total: dict[str, float] = {}
        for counts in [*self._gone, *(worker.statistics for worker in self._players.workers)]:
            for name, value in counts.items():
                total[name] = total.get(name, 0.0) + value
        return total

    # Workers ------------------------------------------------------------------------------------

    def _fill(self, most: int) -> None:
        while len(self._players.workers) < most:
            self._prepare(self._players.add())

    def _prepare(self, worker: _Worker) -> None:
        worker.slots = 0
        worker.call = worker.actor.prepare.remote(self.env_id, self.options)

    def _assign(self, worker: _Worker) -> None:
        """Has an idle worker play: what it has been given already, and more."""
        self._give(worker)
        if worker.tasks:
            play = worker.actor.play.options(num_returns="streaming")
            worker.call = play.remote(list(worker.tasks))

    def _give(self, worker: _Worker) -> list[str]:
        """Fills the worker's slots; returns the tasks that are new to it."""
        room = min(worker.slots - len(worker.tasks), len(self._todo))
        new = [self._todo.popleft() for _ in range(room)]
        worker.tasks.update(dict.fromkeys(new))
        return new

    def _remove(self, worker: _Worker) -> None:
        """Its tasks are to be played by others."""
        self._todo.extend(worker.tasks)
        self._gone.append(worker.statistics)
        self._players.drop(worker)

    # What they say ------------------------------------------------------------------------------

    def _listen(self) -> Iterator[Trajectory]:
        """Waits a moment for a worker; the trajectories that it brings.

        Raises RefusedError where the last one cannot play.
        """
        calls = {worker.call: worker for worker in self._players.workers if worker.call is not None}
        waiting = list(calls)
        ready, _ = self._ray.wait(waiting, timeout=1.0, fetch_local=False)
        if ready:  # one is; of all that are, none has to wait for the others
            ready, _ = self._ray.wait(
                waiting, num_returns=len(waiting), timeout=0, fetch_local=False
            )
        trajectories: list[Trajectory] = []
        for call in ready:
            worker = calls[call]
            try:
                trajectories += self._prepared(worker) if not worker.slots else self._played(worker)
            except self._losing as error:
                trajectories += self._lost(worker, error)
        if ready:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard > WAIT_SECONDS and not any(
            worker.slots for worker in self._players.workers
        ):
            self._say("no worker runs yet: the cluster has no room for one, or it is still loading")
            self._heard = time.monotonic()
        return iter(trajectories)

    def _prepared(self, worker: _Worker) -> list[Trajectory]:
        worker.host, setting = self._ray.get(worker.call)
        worker.call, self._unprepared = None, 0
        if isinstance(setting, Setting) and self._setting is not None:
            setting = self._compared(setting)
        if isinstance(setting, Refusal):
            self._refused(worker, setting)
        else:
            self._setting = setting
            episodes = self.options.workers or setting.batch_size
            worker.slots = episodes + max(1, episodes // 2)  # the next are at hand when one ends
        return []

    def _compared(self, setting: Setting) -> Setting | Refusal:
        """A further worker's setting, or what is wrong with it."""
        assert self._setting
        if setting == self._setting:
            return setting
        first, other = self._setting.fingerprint, setting.fingerprint
        different = [
            f"{key} {first.get(key)} → {other.get(key)}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        return Refusal(f"it has other data or software: {'; '.join(different) or 'other tasks'}", 1)

    def _played(self, worker: _Worker) -> list[Trajectory]:
        try:
            item = self._ray.get(next(worker.call))
        except StopIteration:
            worker.call = None  # it is given more, or what reached it too late again
            return []
        if isinstance(item, Refusal):
            self._refused(worker, item)
            return []
        trajectory, worker.statistics = item
        if trajectory.task_id not in worker.tasks:
            return []
        del worker.tasks[trajectory.task_id]
        if new := self._give(worker):
            worker.actor.give.remote(new)
        return [trajectory]

    def _refused(self, worker: _Worker, refusal: Refusal) -> None:
        self._remove(worker)
        self._most -= 1
        message = f"{worker.host}: {refusal.message}"
        if not self._most:
            raise RefusedError(Refusal(message, refusal.exit_code))
        self._say(message)

    def _lost(self, worker: _Worker, error: Exception) -> list[Trajectory]:
        """Its tasks are played again, but for those that were there too often.

        Raises RefusedError where it is the last of several that were lost while they got ready.
        """
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[-1 if "creation task" in lines[0] else 0].strip()
        self._say(f"a worker on {worker.host or 'the cluster'} was lost ({reason})")
        self._unprepared += not worker.slots
        if self._unprepared >= MOST_LOSSES:
            message = f"{MOST_LOSSES} workers were lost while they got ready, the last: {reason}"
            raise RefusedError(Refusal(message, 1))
        self._losses.update(list(worker.tasks))
        given_up = [task for task in worker.tasks if self._losses[task] >= MOST_LOSSES]
        for task in given_up:
            del worker.tasks[task]
        self._remove(worker)
        return [self._unplayed(task) for task in given_up]

    def _unplayed(self, task: str) -> Trajectory:
        assert self._setting
        return Trajectory(
            env=self.env_id,
            task_id=task,
            split=self.options.split,
            agent=self._setting.agent,
            seed=self.options.seed,
            steps=(),
            fingerprint=self._setting.fingerprint,
            error=f"{MOST_LOSSES} workers were lost while they had this task",
        )

    def _say(self, text: str) -> None:
        self._console.print(f"note: {text}", markup=False, highlight=False)
