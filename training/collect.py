"""Collects trajectories to learn from: `stepagent collect --env ID --out DIR`.

Plays an agent (usually the expert) on the train split and keeps the episodes that are worth
imitating. `DIR/results.jsonl` holds all episodes as they end (running the command again resumes),
`DIR/trajectories.jsonl` those kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent import agents
from stepagent.command_line import Command
from stepagent.envs.trajectory import Trajectory, read, write
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.files import is_file

KEPT = "trajectories.jsonl"
"""The file of the trajectories that were kept."""


@dataclass
class Config:
    """Plays an agent on an environment and keeps the episodes worth imitating."""

    env: str
    """Environment id, or module:Namespace/Name-v0 for a custom one."""
    out: Path
    """Directory for results.jsonl (all episodes) and trajectories.jsonl (those kept)."""
    agent: str = "expert"
    """Agent that plays: expert, openai:MODEL, hf:PATH, …"""
    split: Literal["train", "dev", "test"] = "train"
    """Split whose tasks are played. Trajectories of dev or test are not for training."""
    limit: int | None = None
    """Number of tasks: the first of a fixed shuffle of the split. null: all."""
    task_ids: list[str] | None = None
    """Play only these tasks, a list such as '[a/1, b/2]'."""
    min_reward: float = 1.0
    """Keep episodes that scored at least this much, 0 to 1."""
    keep: str | None = None
    """Keep the episodes in which this metric is 1, such as em, whatever they scored. null: the
    score decides."""
    seed: int = 0
    """Seed of every episode."""
    workers: int | None = None
    """Episodes played at the same time. null: as many as the agent prefers."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment, such as --env-args.tasks find-plant."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the agent."""


def collect(config: Config, console: Console | None = None) -> Path:
    """Plays the episodes; returns the path of the trajectories that were kept.

    Raises ValueError where nothing was worth keeping, with the best score.
    """
    console = console or Console(quiet=True)
    path = config.out / KEPT
    if is_file(path):
        return path
    player = agents.make_agent(config.agent, **config.agent_args)
    try:
        evaluate(
            config.env,
            player,
            config.out,
            EvaluationOptions(
                split=config.split,
                limit=config.limit,
                task_ids=config.task_ids,
                seed=config.seed,
                workers=config.workers,
                env_args=config.env_args,
            ),
            console=console,
        )
    finally:
        player.close()
    results = config.out / "results.jsonl"
    episodes = sorted(read(results), key=lambda t: (t.task_id, t.seed))
    if config.keep is not None:
        _check_metric(episodes, config.keep)
    trajectories = [t for t in episodes if _is_worth_keeping(t, config)]
    if not trajectories:
        best = max((t.reward for t in episodes), default=0.0)
        raise ValueError(
            f"none of {len(episodes)} episodes was worth keeping (best score {best:.2f}, "
            f"needed {config.keep or config.min_reward}): see {results}"
        )
    write(path, trajectories)
    console.print(
        f"kept {len(trajectories)} of {len(episodes)} trajectories in {path}", markup=False
    )
    return path


def _check_metric(episodes: Sequence[Trajectory], keep: str) -> None:
    """Raises ValueError where no episode has the metric (one that never acted has none)."""
    known = {name for trajectory in episodes for name in trajectory.metrics}
    if known and keep not in known:
        names = ", ".join(sorted(known))
        raise ValueError(f"keep is {keep!r}, but the metrics of {episodes[0].env} are: {names}")


def _is_worth_keeping(trajectory: Trajectory, config: Config) -> bool:
    if trajectory.error or not trajectory.steps:
        return False
    if config.keep is not None:
        return trajectory.metrics.get(config.keep) == 1
    return trajectory.reward >= config.min_reward - 1e-9


def run(config: Config) -> int:
    collect(config, Console())
    return 0


main = Command("collect", Config, run, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
