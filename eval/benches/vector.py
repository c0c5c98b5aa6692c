"""Gymnasium's vector modes: `stepagent bench vector --args.env stepagent/ALFWorld-v0`.

Steps per second of `gym.make_vec` in each mode, beside one environment alone (`gym.make`). All play
the same tasks by the expert's plan; resets are not counted. "server" is our vector entry point with
a server on this machine (`url`), which steps all of its environments with one request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym

from stepagent import envs
from stepagent.eval.benches import Options, Row, play_sides, settings
from stepagent.eval.benches.serving import Served


def bench(options: Options) -> Iterator[Row]:
    """Settings: env, num_envs (how many at once), tasks (how many are played), split."""
    chosen = settings(options, env="stepagent/ALFWorld-v0", num_envs=4, tasks=5, split="dev")
    env_id, n, arguments = chosen["env"], chosen["num_envs"], {"split": chosen["split"]}
    plans = _plans(envs.make(env_id, **arguments), chosen["tasks"])
    with Served(env_id) as server:
        modes: dict[str, dict[str, Any]] = {
            "sync": {"vectorization_mode": "sync"},
            "async": {"vectorization_mode": "async"},
            "entry point": {"vectorization_mode": "vector_entry_point"},
            "server": {"vectorization_mode": "vector_entry_point", "url": server.url},
        }
        sides: list[Any] = [
            gym.make(env_id, **arguments),
            *(gym.make_vec(env_id, num_envs=n, **mode, **arguments) for mode in modes.values()),
        ]
        seconds = [steps for steps, _ in play_sides(_timed, sides, plans, options.repeats, 1)]
        for side in sides:
            side.close()
    steps = sum(len(actions) for _, actions in plans)
    for mode, taken in zip(modes, seconds[1:], strict=True):
        rate, alone = n * steps / taken, steps / seconds[0]
        yield Row.more_is_better(f"{env_id}, {mode}, {n} environments", rate, alone, "steps/s")


def _plans(env: envs.TextEnv, number: int) -> list[tuple[str, list[str]]]:
    """Task ids and the actions that solve them."""
    plans = []
    for task_id in env.tasks[:number]:
        env.reset(seed=0, options={"task_id": task_id})
        plans.append((task_id, [action for _, action in env.expert_plan()]))
    env.close()
    return plans


def _timed(side: Any, plan: tuple[str, Sequence[str]]) -> tuple[float, float]:
    """Seconds of a plan's steps, and of its reset."""
    task_id, actions = plan
    many = getattr(side, "num_envs", 0)
    start = time.perf_counter()
    # One seed for all: each of a vector environment's would otherwise get the next.
    side.reset(seed=[0] * many if many else 0, options={"task_id": task_id})
    after_reset = time.perf_counter()
    for action in actions:
        side.step([action] * many if many else action)
    return time.perf_counter() - after_reset, after_reset - start
