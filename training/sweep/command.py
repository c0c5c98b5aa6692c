"""The command line of a sweep."""

from __future__ import annotations

from rich.console import Console

from stepagent.command_line import Command
from stepagent.training.sweep.planning import Sweep


def run(sweep: Sweep) -> int:
    console = Console()
    from stepagent.training.sweep import report
    from stepagent.training.sweep.execution import run_all

    missing = [] if sweep.report_only else run_all(sweep, console)
    path = report.write(sweep)
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, run, resumes=True, configs="stepagent.training")
