"""The command `stepagent view`: reads runs, finds the expert's episodes, writes the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from stepagent.command_line import Command
from stepagent.eval.load_runs import EvaluationRun, load_runs
from stepagent.eval.recorded_env import import_modules
from stepagent.eval.results import NoResults
from stepagent.eval.tables import tell
from stepagent.eval.view import curves, data, experts, page


@dataclass
class Config:
    """Writes one self-contained HTML file that shows runs and all their episodes."""

    runs: list[str]
    """Results files; folders of `stepagent eval` (one run, or a suite), or of `stepagent train`
    (its learning curves and all evaluations)."""
    out: Path = Path("report.html")
    """File to write."""
    expert: str | None = None
    """Run whose episodes are shown beside those of the same tasks, or "play": the expert plays
    these tasks now. null: the expert's episodes among the runs, if any."""
    modules: list[str] = field(default_factory=list)
    """With `--expert play`: modules to import, which register the runs' custom environments. A
    results file alone cannot have a module imported."""
    title: str | None = None
    """Title of the page. null: the environments' names."""


def run(config: Config) -> int:
    """The exit code is 0, 1 if something could not be read or written, 2 for wrong options and for
    paths without results."""
    console = Console(stderr=True)
    notes: list[str] = []
    try:
        runs = load_runs(config.runs, notes)
        training_curves = curves.load(config.runs, notes)
        if not runs and not training_curves:
            raise NoResults(f"there is no evaluation and no metric in {', '.join(config.runs)}")
        expert_episodes = _experts(config, runs, notes, console)
        report = data.build(runs, training_curves, expert_episodes, notes, config.title)
        size = page.write(report, config.out)
    finally:
        for note in notes:
            tell(console, f"note: {note}")
    episodes = sum(len(run.trajectories) for run in runs)
    tell(Console(), f"{config.out}: {len(runs)} runs, {episodes:,} episodes, {size / 1e6:.1f} MB")
    return 0


def _experts(
    config: Config, runs: Sequence[EvaluationRun], notes: list[str], console: Console
) -> experts.Experts:
    if config.expert == "play":
        import_modules(config.modules)
        return experts.play(runs, notes, console)
    if config.expert is not None:
        return experts.Experts(
            [t for run in load_runs([config.expert], notes) for t in run.trajectories]
        )
    return experts.Experts([t for run in runs if run.agent == "expert" for t in run.trajectories])


main = Command("view", Config, run, positional="runs")
