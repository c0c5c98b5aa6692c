"""The command line of a sweep."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from stepagent.command_line import Command
from stepagent.errors import UserError
from stepagent.training.sweep.planning import Sweep


def run(sweep: Sweep) -> int:
    console = Console()
    from stepagent.training.sweep import report
    from stepagent.training.sweep.execution import run_all

    try:
        Path(sweep.output).mkdir(parents=True, exist_ok=True)
        missing = [] if sweep.report_only else run_all(sweep, console)
        path = report.write(sweep)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, run, resumes=True, configs="stepagent.training")
