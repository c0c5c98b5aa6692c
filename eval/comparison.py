"""The figures of a comparison of several runs; `eval.compare` writes them down.

Means are those of `eval.summary`, paired differences those of `eval.paired`. Which runs may be
compared is decided by what their results carry (`eval.load_runs.differences`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stepagent.eval import agreement, paper, regret
from stepagent.eval.agreement import Agreement, Measure
from stepagent.eval.load_runs import EvaluationRun, differences
from stepagent.eval.paired import Paired, holm, paired
from stepagent.eval.results import ResultsError
from stepagent.eval.summary import score, summarise


@dataclass(frozen=True)
class Difference:
    """Run `second` minus run `first`, on the tasks that both have. Scores in [0, 1]."""

    first: str
    second: str
    paired: Paired | None
    """None: no task in common"""
    p_holm: float
    """Corrected for all differences of the same table"""
    task_type: str = ""


@dataclass(frozen=True)
class RunFigures:
    """A run, or its part of one task type."""

    run: str
    figures: dict[str, Any]
    """As in `summary.json`, all of it or the part under `by_type`"""
    task_type: str = ""


@dataclass(frozen=True)
class Comparison:
    """All figures of a comparison; scores and rates in [0, 1]."""

    env: str
    split: str
    runs: list[RunFigures]
    differences: list[Difference]
    runs_by_type: list[RunFigures]
    differences_by_type: list[Difference]
    references: list[tuple[str, float]]
    """The paper's rows: name and score in percent"""
    notes: list[str]
    agreements: dict[str, Agreement] = field(default_factory=dict)
    """Run → its agreement with the expert, for the runs where it was measured"""
    agreement_differences: dict[tuple[str, str], dict[Measure, Paired]] = field(
        default_factory=dict
    )
    """(first, second) → the second's agreement minus the first's, on the same trajectories"""
    regrets: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Run → at which step its episodes were lost (`regret.figures`), where the expert was asked"""
    entry: str = ""
    """For runs of a suite: the entry that they belong to"""


def compare(
    runs: Sequence[EvaluationRun],
    *,
    against: str | None = None,
    force: bool = False,
    paper_rows: bool = True,
) -> Comparison:
    """Compares at least one run. Raises ResultsError if they should not be compared (unless
    `force`), ValueError if `against` is not the name of a run.
    """
    names = [run.name for run in runs]
    if against is not None and against not in names:
        raise ValueError(f"no run is called {against!r}: there are {', '.join(names)}")
    notes = _forced(runs, force)
    figures = [RunFigures(run.name, summarise(run.trajectories)) for run in runs]
    types = sorted({t for run in figures for t in run.figures["by_type"]})
    figures_by_type = [
        RunFigures(run.run, run.figures["by_type"][t], t)
        for t in types
        for run in figures
        if t in run.figures["by_type"]
    ]
    base = next(run for run in runs if run.name == (against or names[0]))
    played = {(run.run, run.task_type) for run in figures_by_type}
    pairs_by_type = [
        (base, run, t)
        for t in types
        for run in runs
        if run is not base and {(base.name, t), (run.name, t)} <= played
    ]
    envs = list(dict.fromkeys(run.env for run in runs))
    known = {run.name: regret.load(run.path, run.trajectories) for run in runs}
    readings = {run.name: agreement.load(run.path.parent) for run in runs}
    return Comparison(
        env=" | ".join(envs),
        split=" | ".join(dict.fromkeys(run.split for run in runs)),
        runs=figures,
        differences=_differences([(a, b, "") for a, b in _pairs(runs, against)]),
        runs_by_type=figures_by_type,
        differences_by_type=_differences(pairs_by_type),
        references=[r for env in envs for r in paper.references(env)] if paper_rows else [],
        notes=[*notes, *_remarks(runs)],
        agreements={
            name: agreement.summarise(list(rows.values()))
            for name, rows in readings.items()
            if rows
        },
        agreement_differences={
            (a.name, b.name): agreement.differences(readings[a.name], readings[b.name])
            for a, b in _pairs(runs, against)
            if readings[a.name] and readings[b.name]
        },
        regrets={name: regret.figures(regrets) for name, regrets in known.items() if regrets},
    )


def _forced(runs: Sequence[EvaluationRun], force: bool) -> list[str]:
    """Notes on what makes the runs incomparable; raises ResultsError unless `force`."""
    reasons = differences(runs)
    if reasons and not force:
        listed = "\n  ".join(reasons)
        raise ResultsError(
            f"these runs cannot be compared, they differ in\n  {listed}\n--force compares them "
            "anyway."
        )
    return [f"Forced: these runs should not be compared. They differ in {r}" for r in reasons]


def _pairs(
    runs: Sequence[EvaluationRun], against: str | None
) -> list[tuple[EvaluationRun, EvaluationRun]]:
    """All pairs of runs, or those with the run `against`, which then comes first."""
    pairs = [
        (a, b)
        for i, a in enumerate(runs)
        for b in runs[i + 1 :]
        if against is None or against in (a.name, b.name)
    ]
    return [(b, a) if b.name == against else (a, b) for a, b in pairs]


def _differences(
    pairs: Sequence[tuple[EvaluationRun, EvaluationRun, str]],
) -> list[Difference]:
    """One for each pair of runs and task type ("": all tasks); Holm's method over all of them."""
    tests = [paired(_scores(a, t), _scores(b, t)) if a.env == b.env else None for a, b, t in pairs]
    corrected = iter(holm([test.p for test in tests if test]))
    return [
        Difference(a.name, b.name, test, next(corrected) if test else 1.0, t)
        for (a, b, t), test in zip(pairs, tests, strict=True)
    ]


def _scores(run: EvaluationRun, task_type: str) -> dict[str, float]:
    """Task id → score; the mean where a task was played with several seeds."""
    scores: dict[str, list[float]] = defaultdict(list)
    for trajectory in run.trajectories:
        if not task_type or trajectory.task_type == task_type:
            scores[trajectory.task_id].append(score(trajectory))
    return {task: sum(of_task) / len(of_task) for task, of_task in scores.items()}


def _remarks(runs: Sequence[EvaluationRun]) -> list[str]:
    """What a reader of the tables should know about these runs."""
    notes = []
    tasks = [{t.task_id for t in run.trajectories} for run in runs]
    if any(t != tasks[0] for t in tasks):
        common = len(set.intersection(*tasks))
        notes.append(
            f"The runs were not on the same tasks ({common} are common to all): means are over "
            "each run's own, differences over those that both have."
        )
    seeds = [{t.seed for t in run.trajectories} for run in runs]
    if any(s != seeds[0] for s in seeds):
        notes.append(
            "The runs have different seeds, so whatever a seed decides within a task differs, too."
        )
    for reason in sorted({reason for run in runs for reason in run.data_notes}):
        counts = [run.data_notes.get(reason, 0) for run in runs]
        if len(set(counts)) > 1:
            values = [f"{count} ({run.name})" for count, run in zip(counts, runs, strict=True)]
            notes.append(f"The runs differ in their data: {reason}: {' | '.join(values)}.")
    for run in runs:
        if failed := sum(bool(t.error) for t in run.trajectories):
            notes.append(f"{run.name}: {failed} episodes failed; they count as 0.")
        if len(run.trajectories) < 10:
            notes.append(
                f"{run.name} has {len(run.trajectories)} episodes: its intervals are too narrow to "
                "rely on."
            )
    return notes
