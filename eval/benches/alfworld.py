"""ALFWorld: the fast engine against TextWorld's, which is the baseline of every row.

The expert's actions in a few generated games, which are written as files and played by both. Ours
is the full environment (it parses ReAct replies, tries other wordings, checks the goal); upstream
is its PDDL engine with the wrappers and infos that its own environment requests. Both read and
reset the same files. Memory is the growth of this process as it loads one game after another;
upstream's is measured over fewer loads and multiplied. Install the baseline with
`stepagent install textworld`.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from stepagent import envs
from stepagent.envs.alfworld import export, generate
from stepagent.envs.alfworld.data import GAME
from stepagent.envs.core import TextEnv
from stepagent.eval.benches import Options, Row, play_sides, settings

ALFWORLD = "stepagent/ALFWorld-v0"


def bench(options: Options) -> list[Row]:
    """Steps, loads and resets, memory, many at once.

    Settings: games (of each of the six types), loads (of ours, for the memory), upstream_loads
    (for its memory), environments (at once). Raises ImportError if TextWorld is missing.
    """
    args = settings(options, games=1, loads=2000, upstream_loads=10, environments=64)
    with tempfile.TemporaryDirectory(prefix="stepagent-alfworld-") as folder:
        tasks = generate.GeneratedGames().tasks("test")[: 6 * args["games"]]
        export.write(Path(folder), tasks)
        env = envs.make(ALFWORLD, data=folder, split="test")
        plans = [_plan(env, Path(folder), task_id) for task_id in env.tasks]
        ours, upstream = _Ours(env), _Upstream()
        for side in (ours, upstream):
            _timed(side, plans[0])
        seconds = play_sides(_timed, (ours, upstream), plans, options.repeats)
        growth = _growth(ours, plans, args["loads"])
        upstream_growth = _growth(upstream, plans, args["upstream_loads"], warm_up=2)
        many = _at_once(folder, plans, args["environments"], options.repeats)
    steps = sum(len(plan.actions) for plan in plans)
    (our_steps, our_loads), (upstream_steps, upstream_loads) = seconds
    loads, n = args["loads"], args["environments"]
    return [
        Row.more_is_better("ALFWorld steps", steps / our_steps, steps / upstream_steps, "steps/s"),
        Row.less_is_better(
            "ALFWorld load + reset",
            1000 * our_loads / len(plans),
            1000 * upstream_loads / len(plans),
            "ms",
        ),
        Row.less_is_better(
            f"ALFWorld memory grown in {loads} loads",
            max(growth * loads, 0.1),  # there is no growth, only noise of either sign
            upstream_growth * loads,
            "MB",
        ),
        Row.more_is_better(
            f"ALFWorld, {n} in one process (baseline: one upstream)",
            many,
            steps / upstream_steps,
            "steps/s",
        ),
    ]


@dataclass(frozen=True)
class _GamePlan:
    task_id: str
    path: Path
    actions: tuple[str, ...]


def _plan(env: TextEnv, folder: Path, task_id: str) -> _GamePlan:
    env.reset(seed=0, options={"task_id": task_id})
    actions = tuple(action for _, action in env.expert_plan())
    (path,) = folder.glob(f"*/*/{task_id}/{GAME}")
    return _GamePlan(task_id, path, actions)


class _Ours:
    def __init__(self, env: TextEnv):
        self.env = env

    def load(self, plan: _GamePlan) -> None:
        self.env.close()  # forgets the games it has read
        self.env.reset(seed=0, options={"task_id": plan.task_id})

    def step(self, action: str) -> None:
        self.env.step(action)


class _Upstream:
    def __init__(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            import textworld
            from alfworld.agents.environment import alfred_tw_env
            from textworld.envs.pddl import PddlEnv
        self._wrappers = alfred_tw_env
        self._infos = textworld.EnvInfos(won=True, admissible_commands=True, extras=["gamefile"])
        self._engine: Any = PddlEnv
        self.env: Any = None

    def load(self, plan: _GamePlan) -> None:
        if self.env is not None:
            self.env.close()
        engine = self._engine(self._infos)
        self.env = self._wrappers.AlfredInfos(self._wrappers.AlfredDemangler(engine))
        self.env.load(str(plan.path))
        self.env.reset()

    def step(self, action: str) -> None:
        self.env.step(action)


def _timed(side: _Ours | _Upstream, plan: _GamePlan) -> tuple[float, float]:
    start = time.perf_counter()
    side.load(plan)
    ready = time.perf_counter()
    for action in plan.actions:
        side.step(action)
    return time.perf_counter() - ready, ready - start


def _growth(
    side: _Ours | _Upstream, plans: list[_GamePlan], loads: int, warm_up: int = 100
) -> float:
    """Megabytes by which this process grows per load."""
    process = psutil.Process()
    for number in range(warm_up + loads):
        if number == warm_up:
            gc.collect()
            before = process.memory_info().rss
        side.load(plans[number % len(plans)])
    gc.collect()
    return (process.memory_info().rss - before) / 1e6 / loads


def _at_once(folder: str, plans: list[_GamePlan], n: int, repeats: int) -> float:
    """Steps per second of n environments stepped in turn (median)."""
    opened = [envs.make(ALFWORLD, data=folder, split="test") for _ in range(n)]
    chosen = [plans[i % len(plans)] for i in range(n)]
    rates = []
    for _ in range(repeats):
        for env, plan in zip(opened, chosen, strict=True):
            env.reset(seed=0, options={"task_id": plan.task_id})
        start = time.perf_counter()
        for turn in range(max(len(plan.actions) for plan in plans)):
            for env, plan in zip(opened, chosen, strict=True):
                if turn < len(plan.actions):
                    env.step(plan.actions[turn])
        rates.append(sum(len(p.actions) for p in chosen) / (time.perf_counter() - start))
    return statistics.median(rates)
