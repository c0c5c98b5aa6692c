"""Collects trajectories to learn from: `stepagent collect --env ID --out DIR`.

Plays an agent (the expert, as a rule) on the train split and keeps the episodes that are worth
imitating. `DIR/results.jsonl` holds all episodes as they end (running again goes on),
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
from stepagent.errors import UserError
from stepagent.eval.run import evaluate


@dataclass
class Config:
    """Plays an agent on an environment and keeps the episodes worth imitating."""

    env: str
    """Environment id, or module:Namespace/Name-v0 for one of your own."""
    out: Path
    """Directory for results.jsonl (all episodes) and trajectories.jsonl (those kept)."""
    agent: str = "expert"
    """Who plays: expert, openai:MODEL, hf:PATH, …"""
    split: Literal["train", "dev", "test"] = "train"
    """Which tasks. Trajectories of dev or test are not for training."""
    limit: int | None = None
    """Number of tasks, drawn in a fixed order; null: all."""
    min_reward: float = 1.0
    """Keep episodes that scored at least this much, 0 to 1."""
    keep: str | None = None
    """Keep only episodes in which this metric is 1, such as em. null: the score decides."""
    seed: int = 0
    """Seed of every episode."""
    workers: int | None = None
    """Episodes played at the same time. null: as many as the agent likes."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment, such as --env-args.tasks find-plant."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the agent."""


def collect(
    env: str,
    agent: str,
    out: Path,
    *,
    split: str = "train",
    limit: int | None = None,
    min_reward: float = 1.0,
    keep: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    env_args: dict[str, Any] | None = None,
    agent_args: dict[str, Any] | None = None,
    console: Console | None = None,
) -> Path:
    """Plays and keeps; returns the path of the trajectories kept.

    Raises ValueError where nothing was worth keeping, with the best score seen.
    """
    console = console or Console(quiet=True)
    path = out / "trajectories.jsonl"
    if path.is_file():
        return path
    player = agents.make_agent(agent, **(agent_args or {}))
    try:
        evaluate(
            env,
            player,
            out,
            split=split,
            limit=limit,
            seed=seed,
            workers=workers,
            env_args=env_args,
            console=console,
        )
    finally:
        player.close()
    played = sorted(read(out / "results.jsonl"), key=lambda t: (t.task_id, t.seed))
    if keep is not None:
        _check_metric(played, keep)
    kept = [t for t in played if _worth(t, min_reward, keep)]
    if not kept:
        best = max((t.reward for t in played), default=0.0)
        raise ValueError(
            f"none of {len(played)} episodes was worth keeping (best score {best:.2f}, "
            f"wanted {keep or min_reward}): see {out / 'results.jsonl'}"
        )
    write(path, kept)
    console.print(f"kept {len(kept)} of {len(played)} trajectories in {path}", markup=False)
    return path


def _check_metric(played: Sequence[Trajectory], keep: str) -> None:
    """Raises ValueError where no episode has the metric (one that never acted has none)."""
    there = {name for trajectory in played for name in trajectory.metrics}
    if there and keep not in there:
        raise ValueError(
            f"keep is {keep!r}, but the metrics of {played[0].env} are: {', '.join(sorted(there))}"
        )


def _worth(trajectory: Trajectory, min_reward: float, keep: str | None) -> bool:
    if trajectory.error or not trajectory.steps:
        return False
    if keep is not None:
        return trajectory.metrics.get(keep) == 1
    return trajectory.reward >= min_reward - 1e-9


def run(config: Config) -> int:
    try:
        collect(**vars(config), console=Console())
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    return 0


main = Command("collect", Config, run, resumes=True)


if __name__ == "__main__":
    sys.exit(main())
