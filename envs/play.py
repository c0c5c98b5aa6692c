"""Play an environment by hand in the terminal: `stepagent play ID [--task-id TASK]`.

Type an action (or a whole ReAct reply); `/actions` lists what is possible now, `/expert` what the
expert would do from the start, `/quit` (or Ctrl-D) ends. Nothing is recorded without `--out FILE`,
which appends the episode as a trajectory, finished or not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs import react
from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Step, Trajectory, Writer


@dataclass
class Config:
    """Play an environment by hand in the terminal."""

    env: str
    """Environment id, such as stepagent/ScienceWorld-v0, or module:Namespace/Name-v0."""
    task_id: str | None = None
    """The task to play. null: one drawn with the seed."""
    split: Literal["train", "dev", "test"] = "train"
    """Split from which the task is drawn."""
    seed: int = 0
    """Seed of the episode."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment, such as --env-args.max-steps 30."""
    out: Path | None = None
    """File to which the episode is appended as a trajectory, one JSON line. null: none."""


def play(
    env_id: str, env: TextEnv, task_id: str | None, seed: int, ask: Callable[[], str], say: Console
) -> Trajectory:
    """One episode with actions from `ask` (EOFError or `/quit` ends it)."""
    start = time.monotonic()
    options = {"task_id": task_id} if task_id else {}
    observation, info = env.reset(seed=seed, options=options)
    _show(say, f"{env_id}, split {env.split}, task {info['task_id']}", "bold")
    _show(say, observation)
    steps: list[Step] = []
    done = truncated = False
    while not (done or truncated):
        try:
            typed = ask().strip()
        except EOFError:
            break
        if typed.startswith("/"):
            if typed == "/quit":
                break
            _show(say, _aside(env, typed), "dim")
            continue
        reply = react.parse(typed)
        before = observation
        observation, reward, done, truncated, info = env.step(typed)
        steps.append(Step(before, reply.thought, reply.action, float(reward), info["valid"]))
        _show(say, observation)
        _show(say, f"step {len(steps)}, score {info['score']:.2f}", "dim")
    end = (
        "solved" if info["success"] else "over" if done else "out of steps" if truncated else "left"
    )
    _show(say, f"The episode is {end}: score {info['score']:.2f} in {len(steps)} steps.", "bold")
    return Trajectory(
        env=env_id,
        task_id=info["task_id"],
        task_type=env.task_type,
        split=env.split,
        agent="human",
        seed=seed,
        steps=tuple(steps),
        final_observation=observation,
        reward=info["score"],
        success=info["success"],
        truncated=truncated,
        metrics=info["metrics"],
        data_notes=info["data_notes"],
        fingerprint=env.fingerprint(),
        seconds=round(time.monotonic() - start, 3),
        error="" if done or truncated else "left before the end",
    )


def _aside(env: TextEnv, command: str) -> str:
    """The answer to a `/command`, which costs no step."""
    if command == "/actions":
        try:
            return "\n".join(env.admissible_actions())
        except NotImplementedError as error:
            return str(error)
    if command == "/expert":
        return "\n".join(f"{action}    ({thought})" for thought, action in env.expert_plan())
    return f"unknown command {command!r}: there are /actions, /expert, /quit"


def _show(say: Console, text: str, style: str = "") -> None:
    say.print(text, style=style, markup=False, highlight=False)


def run(config: Config) -> int:
    say = Console()
    env = envs.make(config.env, split=config.split, **config.env_args)
    try:
        trajectory = play(config.env, env, config.task_id, config.seed, lambda: input("> "), say)
    finally:
        env.close()
    if config.out:
        with Writer(config.out) as file:
            file.write(trajectory)
        _show(say, f"Recorded in {config.out}", "dim")
    return 0


main = Command("play", Config, run, positional="env")


if __name__ == "__main__":
    sys.exit(main())
