"""The expert asked in the middle of an episode: `stepagent bench expert`.

An agent takes random actions on every environment, the expert's now and then; after each of its own
the expert is asked. Beside the milliseconds of `expert_action` (median, and the 95th percentile)
stands what a call may cost, so a ratio above 1 is within the limit. Lost states count as well; a
lost state ends its episode, since those after it are lost, too.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

from stepagent import envs
from stepagent.envs.core import TextEnv, split_names
from stepagent.eval.benches import Options, Row, settings

LIMITS = {"stepagent/ScienceWorld-v0": 500.0}
"""Milliseconds that a call may take at the median: it has to try its plans in the simulator."""
LIMIT = 5.0
"""Of all the others."""


def bench(options: Options) -> Iterator[Row]:
    """Settings: envs (names separated by commas; all of ours), states (asked of each), split."""
    chosen = settings(options, envs=",".join(envs.ENTRY_POINTS), states=60, split="dev")
    for env_id in split_names(chosen["envs"]):
        env = envs.make(env_id, split=chosen["split"])
        milliseconds, lost = _asked(env, int(chosen["states"]))
        env.close()
        limit, states = LIMITS.get(env_id, LIMIT), len(milliseconds)
        name = f"{env_id}, {states} states, {lost} of them lost"
        slow = sorted(milliseconds)[int(0.95 * states)]
        yield Row.less_is_better(name, statistics.median(milliseconds), limit, "ms, median; limit")
        yield Row.less_is_better(f"{env_id}, 95 % of calls", slow, limit, "ms; limit at the median")


def _asked(env: TextEnv, states: int) -> tuple[list[float], int]:
    """Milliseconds of each call, and in how many states nothing could be gained any more."""
    rng = random.Random(0)
    taken: list[float] = []
    lost = 0
    while len(taken) < states:
        env.reset(seed=0, options={"task_id": rng.choice(env.tasks)})
        pair, ended = env.expert_action(), False
        while pair and not ended:
            own = rng.random() < 0.5
            action = rng.choice(env.admissible_actions()) if own else pair[1]
            *_, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            start = time.perf_counter()
            pair = env.expert_action()
            if own and not ended:
                taken.append(1000 * (time.perf_counter() - start))
                lost += pair is None
    return taken, lost
