"""The expert's episode of the same task, and where an agent first diverges from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.console import Console

from stepagent.agents import make_agent
from stepagent.envs.trajectory import Trajectory
from stepagent.eval.load_runs import EvaluationRun
from stepagent.eval.recorded_env import recorded_env
from stepagent.eval.rollout import run_episodes


class Experts:
    """Finds the expert's episode for an agent's: same environment, task and seed, or at least the
    same first observation (where the seed decides nothing within the task).
    """

    def __init__(self, trajectories: Iterable[Trajectory]):
        self._by_task: dict[tuple[str, str], list[Trajectory]] = {}
        for trajectory in trajectories:
            if not trajectory.error and trajectory.steps:
                key = trajectory.env, trajectory.task_id
                self._by_task.setdefault(key, []).append(trajectory)

    def find(self, trajectory: Trajectory) -> Trajectory | None:
        """None if there is none, and for the expert's own episodes."""
        candidates = self._by_task.get((trajectory.env, trajectory.task_id), [])
        if any(c is trajectory for c in candidates):
            return None
        for candidate in candidates:
            if candidate.seed == trajectory.seed:
                return candidate
        for candidate in candidates:
            steps = trajectory.steps[:1]
            if steps and steps[0].observation == candidate.steps[0].observation:
                return candidate
        return None


def divergence(trajectory: Trajectory, expert: Trajectory) -> int | None:
    """Number (from 1) of the first step whose action differs from the expert's; None: none.

    Case and white space do not count. If one episode is longer than the other, they diverge at the
    first step that only one of them has.
    """
    actions = [_normalised(step.action) for step in trajectory.steps]
    expert_actions = [_normalised(step.action) for step in expert.steps]
    for number, (action, expert_action) in enumerate(zip_longest(actions, expert_actions), 1):
        if action != expert_action:
            return number
    return None


def _normalised(action: str) -> str:
    return " ".join(action.split()).casefold()


def play(runs: Sequence[EvaluationRun], notes: list[str], console: Console) -> Experts:
    """The expert plays every (task, seed) of the runs. Raises ValueError for a task that does not
    exist (any more), UsageError for an environment that may not be made (see `recorded_env`).
    """
    trajectories: list[Trajectory] = []
    episodes_by_env: dict[tuple[str, str], dict[tuple[str, int], None]] = {}
    for run in runs:
        env, arguments = recorded_env(run)
        key = env, json.dumps(arguments, sort_keys=True)
        episodes_by_env.setdefault(key, {}).update(
            {(t.task_id, t.seed): None for t in run.trajectories}
        )
    for (env, recorded), episodes in episodes_by_env.items():
        console.print(f"the expert plays {len(episodes)} tasks of {env}", markup=False)
        agent = make_agent("expert")
        tasks, seeds = [task for task, _ in episodes], [seed for _, seed in episodes]
        try:
            env_args = json.loads(recorded)
            split = env_args.pop("split")
            trajectories += run_episodes(
                env, agent, tasks, seed=seeds, split=split, env_args=env_args
            )
        finally:
            agent.close()
    if failed := [t for t in trajectories if t.error]:
        notes.append(f"the expert failed on {len(failed)} tasks, such as: {failed[0].error}")
    return Experts(trajectories)
