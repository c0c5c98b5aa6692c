"""The command `stepagent view`: reads runs, finds the expert's episodes, writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from stepagent.command_line import Command
from stepagent.eval import runs
from stepagent.eval.results import ResultsError
from stepagent.eval.runs import Run
from stepagent.eval.tables import tell
from stepagent.eval.view import curves, data, experts, page


@dataclass
class Config:
    """Writes one self-contained HTML file that shows runs and all their episodes."""

    runs: list[str]
    """Results files, folders of eval.run (one run, or a whole suite), or folders of training.run
    (its learning curves and all evaluations). They stand first, without a name: RUN RUN …"""
    out: Path = Path("report.html")
    """The file to write."""
    expert: str | None = None
    """A run whose episodes stand beside those of the same task, or "play": the expert plays these
    tasks now. null: the expert's episodes among the runs, if any."""
    title: str | None = None
    """Title of the page. null: the environments' names."""


def run(config: Config) -> int:
    """Ends with 0; 1 where something could not be read or written; 2 for wrong options."""
    console = Console(stderr=True)
    notes: list[str] = []
    try:
        found = runs.read(config.runs, notes)
        learned = curves.read(config.runs, notes)
        if not found and not learned:
            raise ResultsError(f"no evaluation and no metrics stand in {', '.join(config.runs)}")
        beside = _experts(config.expert, found, notes, console)
        report = data.build(found, learned, beside, notes, config.title)
        size = page.write(report, config.out)
    finally:
        for note in notes:
            tell(console, f"note: {note}")
    episodes = sum(len(run.trajectories) for run in found)
    tell(Console(), f"{config.out}: {len(found)} runs, {episodes:,} episodes, {size / 1e6:.1f} MB")
    return 0


def _experts(
    wanted: str | None, found: Sequence[Run], notes: list[str], console: Console
) -> experts.Experts:
    if wanted == "play":
        return experts.played(found, notes, console)
    if wanted is not None:
        return experts.Experts([t for run in runs.read([wanted], notes) for t in run.trajectories])
    return experts.Experts([t for run in found if run.agent == "expert" for t in run.trajectories])


main = Command("view", Config, run, positional="runs")
