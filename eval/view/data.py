"""What the page shows: figures of the runs, a row for each episode, and their texts in chunks.

The rows (who, which task, how it went) are small and loaded at once; the texts are compressed in
chunks of whole tasks, so that an episode and those it is compared with lie together, and are only
unpacked when somebody looks at them or searches in them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import Trajectory
from stepagent.eval import runs as reading
from stepagent.eval.runs import Run
from stepagent.eval.summary import score, summarise
from stepagent.eval.view.experts import Experts, divergence

CHUNK = 400_000
"""Characters of JSON that a chunk has at least before the next one begins."""
OUTCOMES = ("solved", "partly", "nothing", "cut", "failed")
"""How an episode ended: solved; ended with some reward; with none; cut off at the step limit; with
an environment or an agent that broke."""
_MOST = 10
"""Rows of the tables of reasons, for each run."""


@dataclass(frozen=True)
class Report:
    """All that the page needs, as JSON values."""

    title: str
    index: dict[str, Any]
    chunks: list[list[dict[str, Any]]]


@dataclass(frozen=True)
class _Listed:
    """An episode on its way into the report. `run` is -1 for an expert's that is only compared."""

    run: int
    trajectory: Trajectory


def outcome(t: Trajectory) -> str:
    """One of OUTCOMES."""
    if t.error:
        return "failed"
    if t.success:
        return "solved"
    if t.truncated:
        return "cut"
    return "partly" if t.reward > 0 else "nothing"


def build(
    runs: Sequence[Run],
    curves: Sequence[dict[str, Any]],
    experts: Experts,
    notes: Sequence[str],
    title: str | None = None,
) -> Report:
    """The report of runs and learning curves (either may be empty)."""
    episodes, beside = _gathered(runs, experts)
    chunks, starts = _chunks(episodes)
    diverges = [
        divergence(e.trajectory, episodes[b].trajectory) if b >= 0 else None
        for e, b in zip(episodes, beside, strict=True)
    ]
    envs = list(dict.fromkeys(run.env for run in runs))
    title = title or ", ".join(envs) or ", ".join(c["name"] for c in curves)
    index = {
        "title": title,
        "outcomes": OUTCOMES,
        "runs": [
            _run(run, [(e, d) for e, d in zip(episodes, diverges, strict=True) if e.run == i])
            for i, run in enumerate(runs)
        ],
        "curves": [_with_scores(curve, runs) for curve in curves],
        "notes": [*notes, *(f"The runs differ in {d}" for d in reading.differences(runs))],
        "episodes": _columns(episodes, beside, diverges),
        "starts": starts,
    }
    return Report(title, index, chunks)


def _gathered(runs: Sequence[Run], experts: Experts) -> tuple[list[_Listed], list[int]]:
    """All episodes, those of a task together, and for each the place of its expert's (or -1)."""
    found = [_Listed(i, t) for i, run in enumerate(runs) for t in run.trajectories]
    own = {id(e.trajectory) for e in found}
    pairs = {id(e.trajectory): experts.beside(e.trajectory) for e in found}
    only = {id(x): _Listed(-1, x) for x in pairs.values() if x is not None and id(x) not in own}
    found = sorted([*found, *only.values()], key=_order)
    place = {id(e.trajectory): i for i, e in enumerate(found)}
    partners = (pairs.get(id(e.trajectory)) for e in found)
    return found, [place[id(p)] if p is not None else -1 for p in partners]


def _order(e: _Listed) -> tuple[Any, ...]:
    t = e.trajectory
    kind, _, number = t.task_id.rpartition("/")
    counted = (0, int(number), "") if number.isdecimal() and len(number) < 19 else (1, 0, number)
    return t.env, kind, counted, t.task_id, t.seed, e.run


def _chunks(episodes: Sequence[_Listed]) -> tuple[list[list[dict[str, Any]]], list[int]]:
    """The episodes' texts in chunks, and the place of each chunk's first episode."""
    chunks: list[list[dict[str, Any]]] = []
    starts: list[int] = []
    size, before = CHUNK, ("", "")
    for place, e in enumerate(episodes):
        task = e.trajectory.env, e.trajectory.task_id
        if size >= CHUNK and task != before:
            chunks.append([])
            starts.append(place)
            size = 0
        text = _text(e.trajectory)
        size, before = size + _length(text), task
        chunks[-1].append(text)
    return chunks, starts


def _text(t: Trajectory) -> dict[str, Any]:
    return {
        "steps": [
            [s.observation, s.thought, s.action, _short(s.reward), int(s.valid), s.reply]
            for s in t.steps
        ],
        "final": t.final_observation,
        "metrics": {name: _short(value) for name, value in t.metrics.items()},
        "error": t.error,
    }


def _length(text: dict[str, Any]) -> int:
    return sum(len(part) for step in text["steps"] for part in step if isinstance(part, str)) + len(
        text["final"]
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _columns(
    episodes: Sequence[_Listed], beside: Sequence[int], diverges: Sequence[int | None]
) -> dict[str, list[Any]]:
    """A list for each column of the table of episodes."""
    all_of = [e.trajectory for e in episodes]
    return {
        "run": [e.run for e in episodes],
        "task": [t.task_id for t in all_of],
        "type": [t.task_type for t in all_of],
        "env": _numbered([t.env for t in all_of]),
        "seed": [t.seed for t in all_of],
        "score": [_short(score(t)) for t in all_of],
        "outcome": [OUTCOMES.index(outcome(t)) for t in all_of],
        "steps": [len(t.steps) for t in all_of],
        "invalid": [sum(not s.valid for s in t.steps) for t in all_of],
        "seconds": [_short(t.seconds) for t in all_of],
        "expert": list(beside),
        "diverges": [d or 0 for d in diverges],  # 0: nowhere, or nothing to compare with
    }


def _numbered(values: Sequence[str]) -> list[int]:
    places: dict[str, int] = {}
    return [places.setdefault(value, len(places)) for value in values]


def _run(run: Run, episodes: Sequence[tuple[_Listed, int | None]]) -> dict[str, Any]:
    """A run's summary and what its charts are drawn from."""
    summary = summarise(run.trajectories)
    del summary["seconds"], summary["seeds"]
    ends = Counter((outcome(t), len(t.steps)) for t in run.trajectories)
    return {
        "name": run.name,
        "file": str(run.path),
        "summary": summary,
        "outcomes": [sum(n for (o, _), n in ends.items() if o == kind) for kind in OUTCOMES],
        "lengths": sorted([steps, OUTCOMES.index(o), n] for (o, steps), n in ends.items()),
        "reasons": _reasons(run.trajectories),
        "refusals": _refusals(run.trajectories),
        "divergences": sorted(Counter(d for _, d in episodes if d).items()),
    }


def _reasons(trajectories: Sequence[Trajectory]) -> list[tuple[str, int]]:
    """Why episodes failed, the most frequent first."""
    return Counter(_line(t.error) for t in trajectories if t.error).most_common(_MOST)


def _refusals(trajectories: Sequence[Trajectory]) -> list[tuple[str, int]]:
    """What the environment said to actions that it did not take, the most frequent first."""
    found: Counter[str] = Counter()
    for t in trajectories:
        after = [*(s.observation for s in t.steps[1:]), t.final_observation]
        found.update(_line(o) for s, o in zip(t.steps, after, strict=False) if not s.valid)
    return found.most_common(_MOST)


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159] + "…"


def _with_scores(curve: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The curve with the scores of the stages that were evaluated, as run numbers."""
    folder = Path(curve["folder"]) / "eval"
    scored = [i for i, r in enumerate(runs) if r.path.absolute().parent.parent == folder]
    return {**{k: v for k, v in curve.items() if k != "folder"}, "scored": scored}


def to_json(value: Any) -> bytes:
    """ASCII alone, so that even halves of characters that a model invented come through."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
