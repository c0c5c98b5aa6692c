"""Environments on a server against the same environments in this process.

`stepagent bench server`: on loopback, for several numbers of sessions, the expert's actions
(all but those that end the episode) over and over. Two clients: one thread a session, each with a
request a step, and a vectorised one that steps all sessions with one request. Clients and server
share the machine, as everybody's figures do who has two cores.

- steps/s: of all sessions together; the baseline steps as many environments here, in turn.
- overhead a step: seconds per step through the server less seconds per step here. The baseline is
  the limit that we set ourselves, 2 ms.
- median and 99th percentile: of what one client waits for its step, with all others at work.
- memory: what the server and its Java grow by with a session; the baseline is a whole server.
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
from stepagent.envs.remote_vector import RemoteVectorEnv
from stepagent.eval.benches import Options, Row, settings
from stepagent.eval.benches.serving import Served

LIMIT = 2.0
"""Milliseconds of overhead a step that we allow."""
_FOREVER = 1_000_000
"""Steps an episode may have, so that none ends while it is measured."""


@dataclass(frozen=True)
class _Timed:
    """Seconds that `steps` steps took in all, and what each waited."""

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
    wanted = settings(options, env="stepagent/WebShop-v0", sessions=[1, 16, 64, 256], steps=20)
    env_id, rows = wanted["env"], []
    with Served(env_id, max_sessions=2 * max(wanted["sessions"])) as server:
        first = envs.make(env_id, url=server.url)
        _begin(first, 0)  # what all sessions share is loaded
        first.close()
        empty = server.megabytes()
        for n in wanted["sessions"]:
            rows += _of(options, server, env_id, n, wanted["steps"], empty)
    return rows


def _of(
    options: Options, server: Served, env_id: str, n: int, steps: int, empty: float
) -> list[Row]:
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
    for number in range(-1, options.repeats):  # the first round warms up
        order = (0, 1, 2) if number % 2 == 0 else (2, 1, 0)
        for side in order:
            timed = sides[side]()
            if number >= 0:
                rounds[side].append(timed)
    for env in [*here, *alone]:
        env.close()
    vector.close()
    local, single, batch = map(_median, rounds)
    what = f"{env_id.rsplit('/')[-1].removesuffix('-v0')}, {n} session{'s' * (n > 1)}"
    return [
        Row.more_is_better(f"{what}: steps, a request each", single.rate, local.rate, "steps/s"),
        Row.more_is_better(f"{what}: steps, batched", batch.rate, local.rate, "steps/s"),
        _overhead(f"{what}: overhead a step, a request each", single, local),
        _overhead(f"{what}: overhead a step, batched", batch, local),
        *(
            Row.less_is_better(
                f"{what}: {name}, a request each",
                single.percentile(share),
                local.percentile(share),
                "ms",
            )
            for name, share in (("median", 50), ("99th percentile", 99))
        ),
        *(
            Row.less_is_better(
                f"{what}: {name} of a round, batched",
                batch.percentile(share),
                n * local.percentile(share),
                "ms",
            )
            for name, share in (("median", 50), ("99th percentile", 99))
        ),
        Row.less_is_better(
            f"{what}: memory a session (baseline: a server)",
            max((after - before) / n, 0.01),
            empty,
            "MB",
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
    """Starts a task; the expert's actions but the last, which may end it."""
    tasks = env.tasks
    env.reset(seed=0, options={"task_id": tasks[number % min(len(tasks), 16)]})
    return [action for _, action in env.expert_plan()][:-1] or ["look"]


def _in_turn(opened: list[TextEnv], plans: list[list[str]], steps: int) -> _Timed:
    waits, begun = [], time.perf_counter()
    for turn in range(steps):
        for env, plan in zip(opened, plans, strict=True):
            asked = time.perf_counter()
            env.step(plan[turn % len(plan)])
            waits.append(time.perf_counter() - asked)
    return _Timed(len(waits), time.perf_counter() - begun, tuple(waits))


def _in_threads(opened: list[TextEnv], plans: list[list[str]], steps: int) -> _Timed:
    waits: list[list[float]] = [[] for _ in opened]
    start = threading.Barrier(len(opened) + 1)

    def play(number: int) -> None:
        env, plan = opened[number], plans[number]
        start.wait()
        for turn in range(steps):
            asked = time.perf_counter()
            env.step(plan[turn % len(plan)])
            waits[number].append(time.perf_counter() - asked)

    threads = [threading.Thread(target=play, args=(i,)) for i in range(len(opened))]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    found = tuple(wait for mine in waits for wait in mine)
    if len(found) != steps * len(opened):
        raise RuntimeError(f"{steps * len(opened) - len(found)} steps failed")
    return _Timed(len(found), seconds, found)


def _batched(vector: Any, plans: list[list[str]], steps: int) -> _Timed:
    waits, begun = [], time.perf_counter()
    for turn in range(steps):
        asked = time.perf_counter()
        vector.step(tuple(plan[turn % len(plan)] for plan in plans))
        waits.append(time.perf_counter() - asked)
    return _Timed(steps * len(plans), time.perf_counter() - begun, tuple(waits))
