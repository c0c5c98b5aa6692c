"""Environments on a server against the same environments in this process.

`stepagent bench server`: on loopback, for several numbers of sessions, repeats the expert's
actions (all but those that end the episode). There are two clients: one thread per session with one
request per step, and a vectorised one that steps all sessions with one request. Clients and server
share the machine.

- steps/s: of all sessions together; the baseline steps as many environments here, in turn.
- overhead per step: seconds per step through the server minus seconds per step here. The baseline
  is the limit that we set ourselves, 2 ms.
- median and 99th percentile: of a client's wait for its step, while all others are active.
- memory: growth of the server and its Java per session; the baseline is an entire server.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepagent import envs
from stepagent.envs.core import TextEnv
from stepagent.envs.remote import RemoteVectorEnv
from stepagent.eval.benches import Options, Row, settings
from stepagent.eval.benches.serving import Served

LIMIT = 2.0
"""Milliseconds of overhead per step that we allow."""
_FOREVER = 1_000_000
"""Maximum steps of an episode, so that none ends while it is measured."""


@dataclass(frozen=True)
class _Timed:
    """Seconds that `steps` steps took in total, and the wait for each."""

    steps: int
    seconds: float
    waits: tuple[float, ...]

    @property
    def rate(self) -> float:
        return self.steps / self.seconds

    def percentile(self, share: float) -> float:
        return 1000 * float(np.percentile(self.waits, share))


def bench(options: Options) -> list[Row]:
    """Settings: env, sessions (how many at once), steps (of each session and round)."""
    args = settings(options, env="stepagent/WebShop-v0", sessions=[1, 16, 64, 256], steps=20)
    env_id, rows = args["env"], []
    with Served(env_id, max_sessions=2 * max(args["sessions"])) as server:
        first = envs.make(env_id, url=server.url)
        _begin(first, 0)  # loads what all sessions share
        first.close()
        empty = server.megabytes()
        for n in args["sessions"]:
            clients = _measure(server, env_id, n, args["steps"], options.repeats)
            name = f"{env_id.rsplit('/')[-1].removesuffix('-v0')}, {n} session{'s' * (n > 1)}"
            rows += _rows(name, n, clients)
            rows.append(
                Row.less_is_better(
                    f"{name}: memory per session (baseline: a server)",
                    max(clients.megabytes / n, 0.01),
                    empty,
                    "MB",
                )
            )
    return rows


@dataclass(frozen=True)
class _Clients:
    """The ways of stepping n environments, and the memory that n sessions need."""

    local: _Timed
    single: _Timed
    """One request per session and step."""
    batched: _Timed
    """One request per step of all sessions."""
    megabytes: float


def _measure(server: Served, env_id: str, n: int, steps: int, repeats: int) -> _Clients:
    here = [envs.make(env_id, max_steps=_FOREVER) for _ in range(n)]
    plans = [_begin(env, i) for i, env in enumerate(here)]
    before = server.megabytes()
    alone = [envs.make(env_id, max_steps=_FOREVER, url=server.url) for _ in range(n)]
    for i, env in enumerate(alone):
        _begin(env, i)
    after = server.megabytes()
    vector = RemoteVectorEnv(env_id, n, url=server.url, max_steps=_FOREVER)
    for i, remote in enumerate(vector.envs):
        _begin(remote, i)  # type: ignore[arg-type]
    sides = (
        lambda: _in_turn(here, plans, steps),
        lambda: _in_threads(alone, plans, steps),
        lambda: _batched(vector, plans, steps),
    )
    rounds: list[list[_Timed]] = [[], [], []]
    for number in range(-1, repeats):  # the first round warms up
        order = (0, 1, 2) if number % 2 == 0 else (2, 1, 0)
        for side in order:
            timed = sides[side]()
            if number >= 0:
                rounds[side].append(timed)
    for env in [*here, *alone]:
        env.close()
    vector.close()
    local, single, batched = map(_median, rounds)
    return _Clients(local, single, batched, after - before)


def _rows(name: str, n: int, clients: _Clients) -> list[Row]:
    local, single, batched = clients.local, clients.single, clients.batched
    shares = (("median", 50), ("99th percentile", 99))
    return [
        Row.more_is_better(f"{name}: steps, one request each", single.rate, local.rate, "steps/s"),
        Row.more_is_better(f"{name}: steps, batched", batched.rate, local.rate, "steps/s"),
        _overhead(f"{name}: overhead per step, one request each", single, local),
        _overhead(f"{name}: overhead per step, batched", batched, local),
        *(
            Row.less_is_better(
                f"{name}: {figure}, one request each",
                single.percentile(share),
                local.percentile(share),
                "ms",
            )
            for figure, share in shares
        ),
        *(
            Row.less_is_better(
                f"{name}: {figure} of a round, batched",
                batched.percentile(share),
                n * local.percentile(share),
                "ms",
            )
            for figure, share in shares
        ),
    ]


def _overhead(name: str, there: _Timed, here: _Timed) -> Row:
    milliseconds = 1000 * (1 / there.rate - 1 / here.rate)
    return Row.less_is_better(f"{name} (baseline: limit)", max(milliseconds, 0.001), LIMIT, "ms")


def _median(rounds: list[_Timed]) -> _Timed:
    """All waits of the rounds, and the round of median length."""
    seconds = statistics.median(timed.seconds for timed in rounds)
    return _Timed(rounds[0].steps, seconds, tuple(w for timed in rounds for w in timed.waits))


def _begin(env: TextEnv, number: int) -> list[str]:
    """Starts a task; returns the expert's actions except the last, which may end it."""
    tasks = env.tasks
    env.reset(seed=0, options={"task_id": tasks[number % min(len(tasks), 16)]})
    return [action for _, action in env.expert_plan()][:-1] or ["look"]


def _in_turn(opened: list[TextEnv], plans: list[list[str]], steps: int) -> _Timed:
    waits, started = [], time.perf_counter()
    for turn in range(steps):
        for env, plan in zip(opened, plans, strict=True):
            sent = time.perf_counter()
            env.step(plan[turn % len(plan)])
            waits.append(time.perf_counter() - sent)
    return _Timed(len(waits), time.perf_counter() - started, tuple(waits))


def _in_threads(opened: list[TextEnv], plans: list[list[str]], steps: int) -> _Timed:
    waits: list[list[float]] = [[] for _ in opened]
    start = threading.Barrier(len(opened) + 1)

    def play(number: int) -> None:
        env, plan = opened[number], plans[number]
        start.wait()
        for turn in range(steps):
            sent = time.perf_counter()
            env.step(plan[turn % len(plan)])
            waits[number].append(time.perf_counter() - sent)

    threads = [threading.Thread(target=play, args=(i,)) for i in range(len(opened))]
    for thread in threads:
        thread.start()
    start.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    all_waits = tuple(wait for of_session in waits for wait in of_session)
    if len(all_waits) != steps * len(opened):
        raise RuntimeError(f"{steps * len(opened) - len(all_waits)} steps failed")
    return _Timed(len(all_waits), seconds, all_waits)


def _batched(vector: Any, plans: list[list[str]], steps: int) -> _Timed:
    waits, started = [], time.perf_counter()
    for turn in range(steps):
        sent = time.perf_counter()
        vector.step(tuple(plan[turn % len(plan)] for plan in plans))
        waits.append(time.perf_counter() - sent)
    return _Timed(steps * len(plans), time.perf_counter() - started, tuple(waits))
