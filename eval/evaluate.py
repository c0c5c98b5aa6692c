"""One evaluation in a directory, resumable: an agent on an environment's tasks, and the summary."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent import envs
from stepagent.agents.core import Agent
from stepagent.envs.core import TextEnv, checksum
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import check_range
from stepagent.eval import regret
from stepagent.eval.few_shot import few_shot_prompt
from stepagent.eval.report import RunningScore
from stepagent.eval.results import Identity, ResultsDir, ResultsError
from stepagent.eval.rollout import fingerprint, run_episodes
from stepagent.eval.summary import summarise
from stepagent.files import read_object

CUT_PROMPTS = "prompts that the agent cut to its context"
"""Among the `data_notes` of a summary: what did not fit, and so was not seen."""


@dataclass(frozen=True)
class EvaluationOptions:
    """Which tasks `evaluate` plays, and how. `eval.run` has options of the same names."""

    split: str = "test"
    limit: int | None = None
    """Number of tasks, the first of a fixed shuffle; None: all."""
    task_ids: Sequence[str] | None = None
    """Only these tasks."""
    seed: int = 0
    workers: int | None = None
    """Episodes played at the same time; None: the agent's `batch_size`."""
    env_args: dict[str, Any] = field(default_factory=dict)
    shots: int | None = None
    """Worked examples in the prompt, if more than the environment's own one."""
    time_limit: float | None = None
    """Seconds for a reply or a step; None: no limit, and the agent acts in the caller's thread."""
    max_failures: int = 10
    """Failed episodes in a row after which the evaluation gives up."""
    regret: bool = False
    """Afterwards ask the environment's expert at which step each episode was lost."""
    overwrite: bool = False
    """Delete the results in the directory first."""


def evaluate(
    env_id: str,
    agent: Agent,
    out: str | Path,
    options: EvaluationOptions | None = None,
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Plays the tasks that have no result in `out` yet; returns the summary, which is also written.

    The agent's `style` is used as it is; the agent is not closed. Progress goes to `console` (None:
    nowhere). Raises ValueError for unknown names, ResultsError if the directory cannot be used or
    too many episodes fail in a row, KeyboardInterrupt after writing the summary so far.
    """
    options = options or EvaluationOptions()
    check_range(1, workers=options.workers, max_failures=options.max_failures, limit=options.limit)
    check_range(0, seed=options.seed, shots=options.shots)
    console = console or Console(quiet=True)
    start = time.monotonic()
    prompt = few_shot_prompt(env_id, options.shots or 0, options.env_args)
    env = envs.make(env_id, **{**options.env_args, "split": options.split})
    try:
        tasks, notes = choose(env, options.limit, options.task_ids), _repeated_tasks(env_id, env)
        parts, data_notes = fingerprint(env, agent, prompt), env.data_notes()
    finally:
        env.close()  # before the workers open theirs: a server may not have room for one more
    identity = Identity(env_id, agent.name, options.split, options.seed, parts)
    with ResultsDir(Path(out), identity, overwrite=options.overwrite) as results:
        for note in [*notes, *results.notes]:
            console.print(f"note: {note}", markup=False)
        earlier, counts_before = read_object(results.summary), agent.statistics()
        episodes = run_episodes(
            env_id,
            agent,
            [task for task in tasks if task not in results.done],
            seed=options.seed,
            workers=options.workers,
            split=options.split,
            env_args=options.env_args,
            prompt=prompt,
            time_limit=options.time_limit,
            show=results.show,
        )
        title = f"{agent.name} on {env_id}"
        score = RunningScore(title, len(tasks), results.chosen(tasks), console=console)
        try:
            with score:
                _collect(episodes, results, score, options.max_failures)
        finally:
            episodes.close()
            if trajectories := results.chosen(tasks):
                seconds = _number(earlier.get("seconds")) + time.monotonic() - start
                summary = summarise(trajectories, seconds=seconds)
                summary["complete"] = len(trajectories) == len(tasks) and not summary["failed"]
                summary["agent_statistics"] = _total(
                    earlier.get("agent_statistics"), counts_before, agent.statistics()
                )
                summary["data_notes"] |= data_notes
                if cut := int(summary["agent_statistics"].get("prompts_cut", 0)):
                    summary["data_notes"][CUT_PROMPTS] = cut
                if known := regret.load(results.results, trajectories):
                    summary["regret"] = regret.figures(known)
                results.save(summary)
        if options.regret:
            arguments = {**options.env_args, "split": options.split}
            try:
                regrets = regret.record(results.results, trajectories, env_id, arguments)
                summary["regret"] = regret.figures(regrets)
            except NotImplementedError as error:
                console.print(f"note: no regret: {error}", markup=False)
            results.save(summary)
    return summary


def _collect(
    episodes: Iterable[Trajectory], results: ResultsDir, score: RunningScore, max_failures: int
) -> None:
    """Writes the episodes to the results as they end."""
    failures_in_a_row = 0
    for trajectory in episodes:
        results.append(trajectory)
        score.add(trajectory)
        failures_in_a_row = failures_in_a_row + 1 if trajectory.error else 0
        if failures_in_a_row >= max_failures:
            raise ResultsError(
                f"gave up after {failures_in_a_row} failed episodes in a row, the last one with: "
                f"{trajectory.error}\nThe results are kept: fix it and run again to continue."
            )


def _repeated_tasks(env_id: str, env: TextEnv) -> list[str]:
    repeated = len(env.tasks) - len(set(env.tasks))
    if not repeated:
        return []
    return [f"{env_id} repeats {repeated} of its task ids: each task is played once"]


def choose(env: TextEnv, limit: int | None, task_ids: Sequence[str] | None) -> list[str]:
    """The tasks to play: each once, and at least one.

    Raises ValueError for a limit below 1, an id that does not exist, and an empty list of ids.
    """
    check_range(1, limit=limit)
    tasks = dict.fromkeys(env.tasks)
    if task_ids is None:
        return list(tasks) if limit is None else sorted(tasks, key=checksum)[:limit]
    if not task_ids:
        raise ValueError("task_ids names no task: name at least one, or leave it out to play all")
    if unknown := [task for task in task_ids if task not in tasks]:
        raise ValueError(
            f"unknown task id {unknown[0]!r}: the split {env.split!r} has {len(tasks)}, "
            f"such as {', '.join([*tasks][:3])}"
        )
    return list(dict.fromkeys(task_ids))[:limit]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _total(earlier: Any, before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """An agent's counts for this directory: those of earlier runs, and what this run added."""
    counts = earlier if isinstance(earlier, dict) else {}
    return {
        name: _number(counts.get(name)) + value - before.get(name, 0.0)
        for name, value in now.items()
    }
