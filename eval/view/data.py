"""What the page shows: figures of the runs, a row for each episode, and their texts in chunks.

The rows (which run, which task, which outcome) are small and loaded at once; the texts are
compressed in chunks that never divide a task, so that an episode and those it is compared with are
together, and are only unpacked when somebody reads or searches them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import Step, Trajectory
from stepagent.eval import regret
from stepagent.eval.load_runs import EvaluationRun, differences
from stepagent.eval.summary import explain_endings, score, summarise
from stepagent.eval.view.experts import Experts, divergence

CHUNK = 400_000
"""Minimum characters of JSON in a chunk before the next one begins."""
OUTCOMES = ("solved", "partly", "nothing", "cut", "failed")
"""How an episode ended: solved; ended with some reward; with none; cut off at the step limit; with
an environment or an agent that broke."""
_MAX_REASONS = 10
"""Maximum rows per run in the tables of reasons."""


@dataclass(frozen=True)
class Report:
    """Everything that the page needs, as JSON values."""

    title: str
    index: dict[str, Any]
    chunks: list[list[dict[str, Any]]]


@dataclass(frozen=True)
class _Episode:
    """An episode for the report. `run` is -1 for an expert's that is only compared with."""

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
    runs: Sequence[EvaluationRun],
    curves: Sequence[dict[str, Any]],
    experts: Experts,
    notes: Sequence[str],
    title: str | None = None,
) -> Report:
    """The report of runs and learning curves (either may be empty)."""
    episodes, expert_of = _with_experts(runs, experts)
    chunks, starts = _chunks(episodes)
    diverges = [
        divergence(e.trajectory, episodes[b].trajectory) if b >= 0 else None
        for e, b in zip(episodes, expert_of, strict=True)
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
        "notes": [*notes, *_endings(runs), *(f"The runs differ in {d}" for d in differences(runs))],
        "episodes": _columns(episodes, expert_of, diverges, _lost(runs, episodes)),
        "starts": starts,
    }
    return Report(title, index, chunks)


def _endings(runs: Sequence[EvaluationRun]) -> list[str]:
    """What to know of replies that did not end by themselves, a sentence each."""
    notes = []
    for run in runs:
        fingerprint = run.trajectories[0].fingerprint if run.trajectories else {}
        notes += [f"{run.name}: {text}" for text in explain_endings(run.trajectories, fingerprint)]
    return notes


def _with_experts(
    runs: Sequence[EvaluationRun], experts: Experts
) -> tuple[list[_Episode], list[int]]:
    """All episodes, grouped by task, and for each the index of the expert's (or -1)."""
    episodes = [_Episode(i, t) for i, run in enumerate(runs) for t in run.trajectories]
    own = {id(e.trajectory) for e in episodes}
    pairs = {id(e.trajectory): experts.find(e.trajectory) for e in episodes}
    only = {id(x): _Episode(-1, x) for x in pairs.values() if x is not None and id(x) not in own}
    episodes = sorted([*episodes, *only.values()], key=_order)
    place = {id(e.trajectory): i for i, e in enumerate(episodes)}
    partners = (pairs.get(id(e.trajectory)) for e in episodes)
    return episodes, [place[id(p)] if p is not None else -1 for p in partners]


def _order(e: _Episode) -> tuple[Any, ...]:
    t = e.trajectory
    kind, _, number = t.task_id.rpartition("/")
    counted = (0, int(number), "") if number.isdecimal() and len(number) < 19 else (1, 0, number)
    return t.env, kind, counted, t.task_id, t.seed, e.run


def _chunks(episodes: Sequence[_Episode]) -> tuple[list[list[dict[str, Any]]], list[int]]:
    """The episodes' texts in chunks, and the index of each chunk's first episode."""
    chunks: list[list[dict[str, Any]]] = []
    starts: list[int] = []
    size, before = CHUNK, ("", "")
    for place, e in enumerate(episodes):
        task = e.trajectory.env, e.trajectory.task_id
        if size >= CHUNK and task != before:
            chunks.append([])
            starts.append(place)
            size = 0
        text = episode_text(e.trajectory)
        size, before = size + _length(text), task
        chunks[-1].append(text)
    return chunks, starts


def episode_text(t: Trajectory) -> dict[str, Any]:
    """What the pages show of an episode, as JSON values; a step is a list (see `turns.js`)."""
    return {
        "steps": [step_text(s) for s in t.steps],
        "final": t.final_observation,
        "metrics": {name: _short(value) for name, value in t.metrics.items()},
        "error": t.error,
    }


def step_text(s: Step) -> list[Any]:
    """A step as `turns.js` reads it."""
    row = [s.observation, s.thought, s.action, _short(s.reward), int(s.valid), s.reply]
    return [*row, s.ending] if s.ending else row


def _length(text: dict[str, Any]) -> int:
    return sum(len(part) for step in text["steps"] for part in step if isinstance(part, str)) + len(
        text["final"]
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _lost(runs: Sequence[EvaluationRun], episodes: Sequence[_Episode]) -> list[int]:
    """For each episode the step, from 1, at which something went out of reach; 0: none."""
    steps = {
        (i, r.task_id, r.seed): r.lost_at
        for i, run in enumerate(runs)
        for r in regret.load(run.path, run.trajectories)
    }
    keys = ((e.run, e.trajectory.task_id, e.trajectory.seed) for e in episodes)
    return [steps.get(key) or 0 for key in keys]


def _columns(
    episodes: Sequence[_Episode],
    expert_of: Sequence[int],
    diverges: Sequence[int | None],
    lost: Sequence[int],
) -> dict[str, list[Any]]:
    """A list for each column of the table of episodes."""
    trajectories = [e.trajectory for e in episodes]
    return {
        "run": [e.run for e in episodes],
        "task": [t.task_id for t in trajectories],
        "type": [t.task_type for t in trajectories],
        "env": _numbered([t.env for t in trajectories]),
        "seed": [t.seed for t in trajectories],
        "score": [_short(score(t)) for t in trajectories],
        "outcome": [OUTCOMES.index(outcome(t)) for t in trajectories],
        "steps": [len(t.steps) for t in trajectories],
        "invalid": [sum(not s.valid for s in t.steps) for t in trajectories],
        "at_limit": [sum(s.ending == "length" for s in t.steps) for t in trajectories],
        "seconds": [_short(t.seconds) for t in trajectories],
        "expert": list(expert_of),
        "diverges": [d or 0 for d in diverges],  # 0: nowhere, or nothing to compare with
        "lost": list(lost),  # 0: never, or the expert was not asked
    }


def _numbered(values: Sequence[str]) -> list[int]:
    places: dict[str, int] = {}
    return [places.setdefault(value, len(places)) for value in values]


def _run(run: EvaluationRun, episodes: Sequence[tuple[_Episode, int | None]]) -> dict[str, Any]:
    """A run's summary and the data of its charts."""
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
    return Counter(_line(t.error) for t in trajectories if t.error).most_common(_MAX_REASONS)


def _refusals(trajectories: Sequence[Trajectory]) -> list[tuple[str, int]]:
    """The observations after invalid actions, the most frequent first."""
    refusals: Counter[str] = Counter()
    for t in trajectories:
        after = [*(s.observation for s in t.steps[1:]), t.final_observation]
        refusals.update(_line(o) for s, o in zip(t.steps, after, strict=False) if not s.valid)
    return refusals.most_common(_MAX_REASONS)


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:159] + "…"


def _with_scores(curve: dict[str, Any], runs: Sequence[EvaluationRun]) -> dict[str, Any]:
    """The curve with the scores of the stages that were evaluated, as run numbers."""
    folder = Path(curve["folder"]) / "eval"
    scored = [i for i, r in enumerate(runs) if r.path.absolute().parent.parent == folder]
    return {**{k: v for k, v in curve.items() if k != "folder"}, "scored": scored}


def to_json(value: Any) -> bytes:
    """Only ASCII, so that even lone surrogates in a model's reply survive."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
