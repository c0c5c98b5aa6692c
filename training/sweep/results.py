"""What the runs of a sweep have left on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import read as read_trajectories
from stepagent.eval import agreement
from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.eval.summary import score
from stepagent.files import is_file, parse_json, read_object, read_text
from stepagent.training.sweep.job import SUMMARY
from stepagent.training.sweep.planning import SweepError, SweepRun

TASKS = "task-scores.json"
"""The file beside an evaluation that stands for its episodes, in a run that was done elsewhere."""
DEV = ("dev_step_match", "dev_loss", "dev_draw")
"""Figures of SFT: agreement of the chosen pass with the expert on dev, and whether its choice was a
draw."""
FAILED = ".failed"
"""Suffix of a file beside the logs: the last line of a run that failed."""


@dataclass(frozen=True)
class Result:
    """A run and its scores."""

    run: SweepRun
    scores: dict[str, float]
    """Stage or agent → mean score on the test tasks, in percent; empty where the run is not done"""
    stages: tuple[str, ...]
    """Its stages, in order"""
    minutes: float
    missing: str = ""
    """Why there is no result; "" where there is one"""
    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Stage → agreement with the expert, as in `summary.json`"""
    budget: dict[str, float] | None = None
    """What it has used; None where that was not recorded"""
    origin: dict[str, str] = field(default_factory=dict)
    """The model that it began from: its name, and the digest of `nano`"""
    dev: Mapping[str, float] = field(default_factory=dict)
    """Of `DEV`, the figures of its SFT whose pass was chosen on dev"""
    chosen: str = ""
    """The row that it was taken from as the best on dev; "" for a run of its own"""
    folder: Path = Path()

    @property
    def final_stage(self) -> str | None:
        """The stage whose policy the run ends with."""
        scored = [stage for stage in self.stages if stage in self.scores]
        return scored[-1] if scored else None

    @property
    def final(self) -> float | None:
        """The score of the policy that the run ends with."""
        return self.scores[self.final_stage] if self.final_stage else None

    @property
    def dev_draw(self) -> bool | None:
        """Whether the dev trajectories were too few to choose SFT's pass by; None where none was
        chosen among several."""
        return bool(self.dev["dev_draw"]) if "dev_draw" in self.dev else None

    @property
    def env(self) -> str:
        return str(self.run.options.get("env", ""))

    def varied(self, key: str) -> Any:
        """The value of an option that the experiment varies."""
        return dict(self.run.varied).get(key)

    def task_scores(self, stage: str | None) -> dict[str, float]:
        """Task → score in percent; {} where the episodes are not there."""
        if not stage:
            return {}
        folder = self.folder / "eval" / stage
        if is_file(folder / TASKS):
            return dict(read_object(folder / TASKS))
        path = folder / "results.jsonl"
        episodes = read_trajectories(path, bad=[]) if is_file(path) else []
        return {t.task_id: 100 * score(t) for t in episodes}

    def readings(self, stage: str | None) -> dict[str, TrajectoryAgreement]:
        """Task → agreement on the expert's trajectory of it; {} where it was not recorded."""
        return agreement.load(self.folder / "eval" / stage) if stage else {}


def read(run: SweepRun, output: Path) -> Result:
    folder = run.directory(output)
    path = folder / SUMMARY
    if not is_file(path):
        return Result(run, {}, (), 0.0, missing=_why_missing(run, output))
    try:
        return _of_summary(run, folder, parse_json(read_text(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(
            f"{path} is damaged ({error!r}): delete it, and the sweep takes the run up again"
        ) from None


def _of_summary(run: SweepRun, folder: Path, summary: dict[str, Any]) -> Result:
    return Result(
        run,
        scores={name: 100 * row["reward_mean"] for name, row in summary["scores"].items()},
        stages=tuple(summary["figures"]),
        minutes=summary["seconds"] / 60,
        agreement=summary.get("agreement", {}),
        budget=summary.get("budget"),
        origin=summary.get("origin", {}),
        dev=of_dev(summary["figures"]),
        folder=folder,
    )


def of_dev(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Those of `DEV` among the figures of a run's stages. Raises ValueError or TypeError for one
    that is no number."""
    found = {name: value for name, value in figures.get("sft", {}).items() if name in DEV}
    if bad := [name for name, value in found.items() if not math.isfinite(value)]:
        raise ValueError(f"{bad[0]} is not finite")
    return found


def _why_missing(run: SweepRun, output: Path) -> str:
    for name in (run.name, run.directory(output).name):  # or of an equal run of another table
        failed = output / "logs" / f"{name}{FAILED}"
        if is_file(failed):
            return f"failed: {read_text(failed, errors='replace').strip()}"
    return "not finished" if run.directory(output).is_dir() else "not started"
