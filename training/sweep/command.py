"""The command line of a sweep."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.errors import check_range
from stepagent.files import is_file, write_text
from stepagent.training.sweep.planning import SWEEP, Sweep, SweepError


def _stored(sweep: Sweep) -> Sweep:
    """The sweep itself, or where it has no experiment that which its directory holds.

    Raises SweepError where there is none either.
    """
    if sweep.experiments:
        return sweep
    file = Path(sweep.output) / SWEEP
    if not is_file(file):
        raise SweepError(f"no experiments are named (--config), and {file} does not exist")
    stored = command_line.parse(Sweep, ["--config", str(file)], prog="stepagent sweep")
    return replace(stored, output=sweep.output, report_only=sweep.report_only)


def run(sweep: Sweep) -> int:
    console, sweep = Console(), _stored(sweep)
    from stepagent.training.sweep import report
    from stepagent.training.sweep.execution import run_all

    missing: list[str] = []
    check_range(1, workers=sweep.workers)
    check_range(0, threads=sweep.threads, hours=sweep.hours)
    check_range(1, lost_after=sweep.lost_after)
    if not sweep.report_only:
        # What is not installed is said before anything is written.
        importlib.import_module("stepagent.training.runs.validation")
        write_text(Path(sweep.output) / SWEEP, command_line.dump(sweep))
        missing = run_all(sweep, console)
    path = report.write(sweep)
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, run, resumes=True, configs="stepagent.training")
