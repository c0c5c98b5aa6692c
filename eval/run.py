"""Scores an agent on an environment: `python -m eval.run --env ID --agent SPEC --out DIR`.

`DIR/results.jsonl` gets a trajectory a line as episodes end, `DIR/summary.json` the scores
(`eval.summary` says how they are counted). Running the same command again continues where it was
left, after Ctrl-C, a kill or a full disk; it ends with exit code 0 where all episodes were played,
1 where some failed or it had to give up, 2 for wrong options, 130 where it was interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

import agents
import envs
from agents.core import Agent
from envs import cli
from envs.core import TextEnv, checksum
from eval import report
from eval.results import Identity, ResultsDir, ResultsError
from eval.rollout import fingerprint, run_episodes
from eval.summary import summarise


@dataclass
class Config:
    """Scores an agent on an environment and writes results and summary to a directory."""

    env: str
    """Environment id, such as stepagent/ScienceWorld-v0, or module:Namespace/Name-v0 for one of
    your own."""
    agent: str
    """Who acts: expert, random, human, smollm2, hf:PATH or openai:MODEL."""
    out: Path
    """Directory for results.jsonl and summary.json. One that holds results is continued."""
    split: Literal["train", "dev", "test"] = "test"
    """Which tasks."""
    limit: int | None = None
    """Number of tasks: the first ones of a fixed shuffle of the split, so that a small number sees
    every kind of task and a larger one adds to it. null: all."""
    task_ids: list[str] | None = None
    """Only these tasks, as a list: '[a/1, b/2]'."""
    seed: int = 0
    """Seed of every episode and, with the task id, of the agent's own draws."""
    workers: int | None = None
    """Episodes played at the same time. null: as many as the agent likes to answer at once."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment, such as --env-args.max-steps 30."""
    agent_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the agent, such as --agent-args.batch-size 8."""
    max_new_tokens: int | None = None
    """Length of a reply at most, in tokens (models only). null: the agent's own default."""
    temperature: float | None = None
    """Sampling temperature (models only); 0 is greedy. null: the agent's own default."""
    instruction: bool | None = None
    """Open with the environment's instruction. null: as the agent likes it (most do)."""
    example: bool | None = None
    """Show the one-shot example. null: as the agent likes it (most do)."""
    thoughts: bool | None = None
    """Replies are a thought and an action; off: the action alone. null: as the agent likes it."""
    max_failures: int = 10
    """Give up after so many failed episodes in a row (a server that went away, say)."""
    overwrite: bool = False
    """Throw away the results that the directory holds."""


def evaluate(
    env_id: str,
    agent: Agent,
    out: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    task_ids: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    env_args: dict[str, Any] | None = None,
    max_failures: int = 10,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Plays the tasks that `out` has no result for yet and returns the summary (also written).

    The arguments are those of `Config`; `agent` is a live one (its `style` is used as it stands)
    and is not closed. Progress goes to `console` (None: nowhere).
    Raises ValueError for unknown names, ResultsError where the directory cannot be used or too many
    episodes fail in a row, KeyboardInterrupt after writing the summary of what there is.
    """
    console = console or Console(quiet=True)
    begun, arguments = time.monotonic(), {**(env_args or {}), "split": split}
    env = envs.make(env_id, **arguments)
    try:
        tasks = choose(env, limit, task_ids)
        identity = Identity(env_id, agent.name, split, seed, fingerprint(env, agent))
        with ResultsDir(Path(out), identity, overwrite=overwrite) as results:
            for note in results.notes:
                console.print(f"note: {note}", markup=False)
            before = _seconds(results.summary)
            todo = [task for task in tasks if task not in results.done]
            played = run_episodes(
                env_id, agent, todo, seed=seed, workers=workers, split=split, env_kwargs=env_args
            )
            score = report.RunningScore(
                f"{agent.name} on {env_id}", len(tasks), results.chosen(tasks), console=console
            )
            row = 0
            try:
                with score:
                    for trajectory in played:
                        results.append(trajectory)
                        score.add(trajectory)
                        row = row + 1 if trajectory.error else 0
                        if row >= max_failures:
                            raise ResultsError(
                                f"gave up after {row} failed episodes in a row, the last one with: "
                                f"{trajectory.error}\nWhat was played is kept: mend it and run "
                                "again to continue."
                            )
            finally:
                played.close()
                found = results.chosen(tasks)
                if found:
                    summary = summarise(found, seconds=before + time.monotonic() - begun)
                    summary["complete"] = len(found) == len(tasks) and not summary["failed"]
                    summary["agent_statistics"] = agent.statistics()
                    results.save(summary)
    finally:
        env.close()
    return summary


def choose(env: TextEnv, limit: int | None, task_ids: Sequence[str] | None) -> list[str]:
    """The tasks to play. Raises ValueError for a limit below 1 or an id that does not exist."""
    if task_ids is not None:
        unknown = [task for task in task_ids if task not in env.tasks]
        if unknown:
            raise ValueError(
                f"unknown task id {unknown[0]!r}: the split {env.split!r} has {len(env.tasks)}, "
                f"such as {', '.join(env.tasks[:3])}"
            )
        return list(dict.fromkeys(task_ids))[:limit]
    if limit is None:
        return list(env.tasks)
    if limit < 1:
        raise ValueError(f"limit is {limit}: it must be at least 1")
    return sorted(env.tasks, key=checksum)[:limit]


def _seconds(summary: Path) -> float:
    """Seconds that earlier runs in this directory took, as far as their summary tells."""
    try:
        return float(json.loads(summary.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def make_agent(config: Config) -> Agent:
    """The agent that a configuration names, with its decoding and its conversations' style."""
    named = ("max_new_tokens", "temperature", "instruction", "example", "thoughts")
    options = {name: getattr(config, name) for name in named}
    options = {name: value for name, value in options.items() if value is not None}
    return agents.make_agent(config.agent, **options, **config.agent_args)


def main(argv: Sequence[str] | None = None) -> int:
    config = cli.parse(Config, argv, prog="python -m eval.run")
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill, as a Ctrl-C
    agent = None
    try:
        agent = make_agent(config)
        summary = evaluate(
            config.env,
            agent,
            config.out,
            split=config.split,
            limit=config.limit,
            task_ids=config.task_ids,
            seed=config.seed,
            workers=config.workers,
            env_args=config.env_args,
            max_failures=config.max_failures,
            overwrite=config.overwrite,
            console=console if config.agent != "human" else None,
        )
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. What was played is in {config.out}; the same command continues.",
            markup=False,
        )
        return 130
    except ResultsError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        console.print(f"error: {error}", markup=False)
        return 2
    finally:
        if agent is not None:
            agent.close()
    Console().print(report.table(summary))
    if summary["failed"]:
        console.print(
            f"{summary['failed']} episodes failed (they count as 0): the same command tries them "
            "again.",
            markup=False,
        )
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
