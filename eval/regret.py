"""Where episodes were lost, and how much was still in reach: `stepagent regret RUN …`.

Recorded actions are played again. In each state the environment's expert says how it would go on
from there, and a second environment plays that, after the same actions, to its end. The score that
this comes to is in reach; what a step takes away from it is the step's regret. An episode is *lost
at* the first step after which less is in reach than at its start; one that never loses anything
ends with the expert's score, or is cut off.

Where the expert falls short of what is possible (ScienceWorld's tries a few plans), a step can also
bring something back into reach; its regret is then negative, and a state may be called lost that is
not.

Each run gets a file `regret.jsonl` beside its results, a line per episode with `reach` (score in
reach at the start and after each step) and `lost_at` (a step, counted from 1; null: never). Lines
are written as they come, and an episode that has one is not asked about again. `summary.json` then
has the figures as `regret`; `eval.compare` and the viewer read the file. `eval.run --regret` does
all this after an evaluation.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stepagent import envs
from stepagent.command_line import Command
from stepagent.envs.core import Plan, TextEnv
from stepagent.envs.trajectory import Trajectory
from stepagent.errors import UsageError, check_range
from stepagent.eval.load_runs import EvaluationRun, load_runs
from stepagent.eval.recorded_env import import_modules, recorded_env
from stepagent.eval.results import REGRETS, ResultsError
from stepagent.eval.summary import save
from stepagent.eval.tables import tell
from stepagent.files import is_file, open_file, parse_json, read_object, read_text, write_text

_LESS = 1e-6
"""A difference of scores that counts."""


@dataclass
class Config:
    """Finds the step at which each episode lost what was still in reach, by asking the
    environment's expert."""

    runs: list[str] = field(default_factory=list)
    """Results files, or folders of `stepagent eval` (one run, or a suite) or `stepagent train`."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment that replace the recorded ones."""
    modules: list[str] = field(default_factory=list)
    """Modules to import, which register the runs' custom environments. A results file alone cannot
    have a module imported."""
    limit: int | None = None
    """Maximum number of episodes of each run. null: all."""


@dataclass(frozen=True)
class Regret:
    """What was in reach in the states of an episode."""

    task_id: str
    seed: int
    reach: list[float]
    """[steps + 1]: the best score that the expert reaches from each state; the last is the
    episode's own if it has ended."""
    changed: bool = False
    """The episode could not be played again to its end: an observation differs."""

    @property
    def lost_at(self) -> int | None:
        """The first step, counted from 1, after which less is in reach than at the start."""
        first = self.reach[0]
        return next((t for t, score in enumerate(self.reach) if score < first - _LESS), None)

    @property
    def by_step(self) -> list[float]:
        """[steps]: what each step took out of reach."""
        pairs = zip(self.reach, self.reach[1:], strict=False)
        return [before - after for before, after in pairs]


def regret(trajectory: Trajectory, env: TextEnv, twin: TextEnv) -> Regret:
    """What is in reach in each state of a trajectory. `twin`, another environment of the same kind,
    plays the expert's plans.

    Raises what the environment raises: NotImplementedError where its expert plans from the reset
    only, ValueError for a task that it does not have.
    """
    if not env.expert_anywhere:
        raise NotImplementedError(f"the expert of {trajectory.env} plans from the reset only")
    options = {"task_id": trajectory.task_id}
    observation, info = env.reset(seed=trajectory.seed, options=options)
    reach: list[float] = []
    expected: Plan | None = None
    """How the last plan goes on, if the agent has followed it."""
    changed = False
    for number in range(len(trajectory.steps) + 1):
        plan = env.expert_plan(from_here=True)
        if not plan:
            reach.append(float(info["score"]))
        elif plan == expected:
            reach.append(reach[-1])
        else:
            reach.append(_score_of(twin, trajectory, number, plan))
        if number == len(trajectory.steps):
            break
        step = trajectory.steps[number]
        changed = observation != step.observation
        if changed:
            break
        expected = plan[1:] if plan and plan[0][1] == step.action else None
        observation, *_, info = env.step(step.text())
    return Regret(trajectory.task_id, trajectory.seed, reach, changed)


def _score_of(env: TextEnv, trajectory: Trajectory, number: int, plan: Plan) -> float:
    """The score of a plan behind the first steps of a trajectory."""
    env.reset(seed=trajectory.seed, options={"task_id": trajectory.task_id})
    for step in trajectory.steps[:number]:
        env.step(step.text())
    score = 0.0
    for _, action in plan:
        *_, terminated, truncated, info = env.step(action)
        score = float(info["score"])
        if terminated or truncated:
            break
    return score


def figures(regrets: Sequence[Regret]) -> dict[str, float | None]:
    """Over the episodes of a run: how many were lost, and at which step."""
    lost = [r.lost_at for r in regrets if r.lost_at is not None]
    known = max(1, len(regrets))
    return {
        "episodes": float(len(regrets)),
        "changed": float(sum(r.changed for r in regrets)),
        "reach_at_start": sum(r.reach[0] for r in regrets) / known,
        "reach_at_end": sum(r.reach[-1] for r in regrets) / known,
        "lost_rate": len(lost) / known,
        "lost_at_step": statistics.median(lost) if lost else None,
        "lost_at_first_step": sum(step == 1 for step in lost) / known,
    }


def load(results: Path, trajectories: Sequence[Trajectory]) -> list[Regret]:
    """What `record` wrote beside a results file about these episodes."""
    lines = _lines(results.with_name(REGRETS))
    known = [lines.get(_key(t)) for t in trajectories]
    pairs = zip(trajectories, known, strict=True)
    return [r for t, r in pairs if r and (r.changed or len(r.reach) == len(t.steps) + 1)]


def _lines(path: Path) -> dict[tuple[str, int], Regret]:
    """Task and seed → regret; lines that cannot be read are left out."""
    regrets = {}
    text = read_text(path, errors="replace") if is_file(path) else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            values = parse_json(line)
            reach = [float(score) for score in values["reach"]]
            read = Regret(values["task_id"], int(values["seed"]), reach, values["changed"])
            if reach:
                regrets[_key(read)] = read
    return regrets


def record(
    results: Path, trajectories: Sequence[Trajectory], env_id: str, arguments: dict[str, Any]
) -> list[Regret]:
    """The regrets of the episodes that have a step, those that are new written beside the results.

    Raises what `regret` raises.
    """
    episodes = [t for t in trajectories if t.steps and not t.error]
    path = results.with_name(REGRETS)
    others = {k: r for k, r in _lines(path).items() if k not in {_key(t) for t in episodes}}
    regrets = {**others, **{_key(r): r for r in load(results, episodes)}}
    write_text(path, "".join(map(_line, regrets.values())))
    if all(_key(t) in regrets for t in episodes):
        return [regrets[_key(t)] for t in episodes]
    env, twin = envs.make(env_id, **arguments), envs.make(env_id, **arguments)
    try:
        with open_file(path, "a") as file:
            for trajectory in episodes:
                if (key := _key(trajectory)) not in regrets:
                    regrets[key] = regret(trajectory, env, twin)
                    file.write(_line(regrets[key]))
                    file.flush()
    finally:
        env.close()
        twin.close()
    return [regrets[_key(t)] for t in episodes]


def _key(episode: Trajectory | Regret) -> tuple[str, int]:
    return episode.task_id, episode.seed


def _line(regret: Regret) -> str:
    return json.dumps({**asdict(regret), "lost_at": regret.lost_at}) + "\n"


def regret_of_run(run: EvaluationRun, config: Config) -> list[Regret]:
    """The regrets of a run's episodes, also written beside its results and in its summary."""
    env_id, arguments = recorded_env(run, config.env_args)
    episodes = [t for t in run.trajectories if t.steps and not t.error][: config.limit]
    if config.env_args:  # another expert may reach something else
        run.path.with_name(REGRETS).unlink(missing_ok=True)
    regrets = record(run.path, episodes, env_id, arguments)
    summary = read_object(path := run.path.with_name("summary.json"))
    if summary and regrets:
        save({**summary, "regret": figures(load(run.path, run.trajectories))}, path)
    return regrets


def table(rows: Sequence[tuple[str, dict[str, float | None]]]) -> Table:
    shown = Table(title="Where episodes were lost", caption="steps count from 1; medians")
    for head in ("run", "episodes", "in reach at the start", "at the end", "lost", "at step"):
        shown.add_column(head, justify="left" if head == "run" else "right")
    for name, row in rows:
        step = row["lost_at_step"]
        shown.add_row(
            name,
            f"{row['episodes']:.0f}",
            f"{row['reach_at_start']:.3f}",
            f"{row['reach_at_end']:.3f}",
            f"{row['lost_rate']:.0%}",
            "–" if step is None else f"{step:g}",
        )
    return shown


def show(config: Config) -> int:
    if not config.runs:
        raise UsageError("name at least one run: stepagent regret DIR …")
    check_range(1, limit=config.limit)
    errors, notes, rows = Console(stderr=True), list[str](), []
    try:
        import_modules(config.modules)
        runs = load_runs(config.runs, notes)
        for note in notes:
            tell(errors, f"note: {note}")
        if not runs:
            raise UsageError(f"there are no results in {', '.join(config.runs)}")
        for run in runs:
            regrets = regret_of_run(run, config)
            if not regrets:
                raise UsageError(f"{run.path} has no episode with a step")
            rows.append((run.name, row := figures(regrets)))
            if row["changed"]:
                tell(errors, f"note: {run.path}: {row['changed']:.0f} episodes do not replay")
    except (ResultsError, NotImplementedError) as error:
        raise UsageError(str(error)) from error
    Console().print(table(rows))
    return 0


main = Command("regret", Config, show, positional="runs")


if __name__ == "__main__":
    sys.exit(main())
