"""What `eval.compare` finds out about several runs; `eval.compare` writes it down.

Means are those of `eval.summary`, paired differences those of `eval.paired`. Which runs may stand
side by side is decided by what their results carry (`eval.runs.differences`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepagent.eval import paper, runs
from stepagent.eval.paired import Paired, holm, paired
from stepagent.eval.results import ResultsError
from stepagent.eval.runs import Run
from stepagent.eval.summary import score, summarise


@dataclass(frozen=True)
class Difference:
    """Run `second` minus run `first`, on the tasks that both have. Scores in [0, 1]."""

    first: str
    second: str
    found: Paired | None
    """None: no task in common"""
    p_holm: float
    """Corrected for all differences of the same table"""
    task_type: str = ""


@dataclass(frozen=True)
class Row:
    """A run, or its part of one task type."""

    run: str
    figures: dict[str, Any]
    """As in `summary.json`, whole or the part under `by_type`"""
    task_type: str = ""


@dataclass(frozen=True)
class Comparison:
    """All figures of a comparison; scores and rates in [0, 1]."""

    env: str
    split: str
    rows: list[Row]
    differences: list[Difference]
    type_rows: list[Row]
    type_differences: list[Difference]
    references: list[tuple[str, float]]
    """The paper's rows: name and score in percent"""
    notes: list[str]
    entry: str = ""
    """The suite's entry whose runs these are, where they are a suite's"""


def compare(
    found: Sequence[Run],
    *,
    against: str | None = None,
    force: bool = False,
    paper_rows: bool = True,
) -> Comparison:
    """Compares at least one run. Raises ResultsError where they should not be compared (unless
    `force`), ValueError where `against` is not the name of a run.
    """
    names = [run.name for run in found]
    if against is not None and against not in names:
        raise ValueError(f"no run is called {against!r}: there are {', '.join(names)}")
    notes = []
    if differing := runs.differences(found):
        listed = "\n  ".join(differing)
        if not force:
            raise ResultsError(
                f"these runs cannot be compared, they differ in\n  {listed}\n--force compares them "
                "all the same."
            )
        notes += [
            f"Forced: these runs should not be compared. They differ in {d}" for d in differing
        ]
    base = against or names[0]
    pairs = [
        (a, b)
        for i, a in enumerate(found)
        for b in found[i + 1 :]
        if against is None or against in (a.name, b.name)
    ]
    pairs = [(b, a) if b.name == against else (a, b) for a, b in pairs]
    rows = [Row(run.name, summarise(run.trajectories)) for run in found]
    types = sorted({t for row in rows for t in row.figures["by_type"]})
    type_rows = [
        Row(row.run, row.figures["by_type"][t], t)
        for t in types
        for row in rows
        if t in row.figures["by_type"]
    ]
    first = next(run for run in found if run.name == base)
    played = {(row.run, row.task_type) for row in type_rows}
    of_types = [
        (first, run, t)
        for t in types
        for run in found
        if run is not first and {(base, t), (run.name, t)} <= played
    ]
    envs = list(dict.fromkeys(run.env for run in found))
    return Comparison(
        env=" | ".join(envs),
        split=" | ".join(dict.fromkeys(run.split for run in found)),
        rows=rows,
        differences=_differences([(a, b, "") for a, b in pairs]),
        type_rows=type_rows,
        type_differences=_differences(of_types),
        references=[r for env in envs for r in paper.references(env)] if paper_rows else [],
        notes=[*notes, *_remarks(found)],
    )


def _differences(wanted: Sequence[tuple[Run, Run, str]]) -> list[Difference]:
    found = [paired(_scores(a, t), _scores(b, t)) if a.env == b.env else None for a, b, t in wanted]
    tested = [f.p for f in found if f]
    corrected = iter(holm(tested))
    return [
        Difference(a.name, b.name, f, next(corrected) if f else 1.0, t)
        for (a, b, t), f in zip(wanted, found, strict=True)
    ]


def _scores(run: Run, task_type: str) -> dict[str, float]:
    """Task id → score; the mean where a task was played with several seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    for trajectory in run.trajectories:
        if not task_type or trajectory.task_type == task_type:
            found[trajectory.task_id].append(score(trajectory))
    return {task: sum(scores) / len(scores) for task, scores in found.items()}


def _remarks(found: Sequence[Run]) -> list[str]:
    """What a reader of the tables should know about these runs."""
    notes = []
    tasks = [{t.task_id for t in run.trajectories} for run in found]
    if any(t != tasks[0] for t in tasks):
        common = len(set.intersection(*tasks))
        notes.append(
            f"The runs were not on the same tasks ({common} are common to all): means are over "
            "each run's own, differences over those that both have."
        )
    seeds = [{t.seed for t in run.trajectories} for run in found]
    if any(s != seeds[0] for s in seeds):
        notes.append(
            "The runs have different seeds, so what a seed decides within a task differs, too."
        )
    for run in found:
        if failed := sum(bool(t.error) for t in run.trajectories):
            notes.append(f"{run.name}: {failed} episodes failed; they count as 0.")
        if len(run.trajectories) < 10:
            notes.append(
                f"{run.name} has {len(run.trajectories)} episodes: its intervals are too narrow to "
                "lean on."
            )
    return notes
