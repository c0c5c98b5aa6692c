"""One evaluation in a directory, resumable: an agent on an environment's tasks, and the summary."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from stepagent import envs
from stepagent.agents.core import Agent
from stepagent.envs.core import TextEnv, checksum
from stepagent.envs.react import Prompt
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


@dataclass(frozen=True)
class Setting:
    """What an evaluation plays, and what its results depend on."""

    agent: str
    """The agent's name."""
    batch_size: int
    """Episodes that the agent prefers to play at once."""
    tasks: list[str]
    fingerprint: dict[str, str]
    data_notes: dict[str, int]
    notes: list[str]
    """What people should know before."""


class Player(ABC):
    """Plays the episodes of an evaluation, in this process or elsewhere."""

    def __init__(self, env_id: str, options: EvaluationOptions):
        self.env_id, self.options = env_id, options

    @abstractmethod
    def setting(self) -> Setting:
        """Called once, before `play`. Raises ValueError for unknown names."""

    @abstractmethod
    def play(
        self, tasks: Sequence[str], show: Callable[[list[Trajectory]], None]
    ) -> Generator[Trajectory, None, None]:
        """One trajectory per task, as episodes end; `show` may get those that are being played."""

    @abstractmethod
    def statistics(self) -> Mapping[str, float]:
        """The agent's counts so far."""


class LocalPlayer(Player):
    """Plays in this process."""

    def __init__(self, env_id: str, agent: Agent, options: EvaluationOptions):
        super().__init__(env_id, options)
        self.agent = agent
        self._prompt: Prompt | None = None

    def setting(self) -> Setting:
        options = self.options
        self._prompt = few_shot_prompt(self.env_id, options.shots or 0, options.env_args)
        env = envs.make(self.env_id, **{**options.env_args, "split": options.split})
        try:
            return Setting(
                agent=self.agent.name,
                batch_size=self.agent.batch_size,
                tasks=choose(env, options.limit, options.task_ids),
                fingerprint=fingerprint(env, self.agent, self._prompt),
                data_notes=env.data_notes(),
                notes=_repeated_tasks(self.env_id, env),
            )
        finally:
            env.close()  # before the workers open theirs: a server may not have room for one more

    def play(
        self,
        tasks: Sequence[str],
        show: Callable[[list[Trajectory]], None] | None = None,
        more: Callable[[], str | None] = lambda: None,
    ) -> Generator[Trajectory, None, None]:
        """Plays also what `more` gives whenever an environment is free, until it gives None."""
        options = self.options
        return run_episodes(
            self.env_id,
            self.agent,
            tasks,
            seed=options.seed,
            workers=options.workers,
            split=options.split,
            env_args=options.env_args,
            prompt=self._prompt,
            time_limit=options.time_limit,
            show=show,
            more=more,
        )

    def statistics(self) -> Mapping[str, float]:
        return self.agent.statistics()


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
    player = LocalPlayer(env_id, agent, options or EvaluationOptions())
    return evaluate_by(player, out, console or Console(quiet=True))


def evaluate_by(player: Player, out: str | Path, console: Console) -> dict[str, Any]:
    """`evaluate`, with the episodes played by `player`."""
    env_id, options = player.env_id, player.options
    check_range(1, workers=options.workers, max_failures=options.max_failures, limit=options.limit)
    check_range(0, seed=options.seed, shots=options.shots)
    start = time.monotonic()
    setting = player.setting()
    tasks = setting.tasks
    identity = Identity(env_id, setting.agent, options.split, options.seed, setting.fingerprint)
    with ResultsDir(Path(out), identity, overwrite=options.overwrite) as results:
        for note in [*setting.notes, *results.notes]:
            console.print(f"note: {note}", markup=False)
        earlier, counts_before = read_object(results.summary), player.statistics()
        episodes = player.play([t for t in tasks if t not in results.done], results.show)
        title = f"{setting.agent} on {env_id}"
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
                    earlier.get("agent_statistics"), counts_before, player.statistics()
                )
                summary["data_notes"] |= setting.data_notes
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
    added = {name: value - before.get(name, 0.0) for name, value in now.items()}
    return {name: _number(counts.get(name)) + added.get(name, 0.0) for name in {**added, **counts}}
