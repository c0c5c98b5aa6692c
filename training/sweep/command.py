"""The command line of a sweep."""

from __future__ import annotations

import dataclasses
import importlib
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.errors import check_range
from stepagent.files import is_file, write_text
from stepagent.training.sweep.planning import SWEEP, Sweep, SweepError, with_baseline

CONFIGS = "stepagent.training"
"""Package with the shipped configurations."""


def _continue(sweep: Sweep, words: list[str]) -> None:
    """Where no experiment is named, the sweep becomes that which its directory holds, but for what
    the command line says. Raises SweepError where there is none."""
    if sweep.experiments:
        return
    file = Path(sweep.output) / SWEEP
    if not is_file(file):
        raise SweepError(f"no experiments are named (--config), and {file} does not exist")
    arguments = ["--config", str(file), *words]
    stored = command_line.parse(Sweep, arguments, prog="stepagent sweep", configs=CONFIGS)
    vars(sweep).update(vars(stored))


def run(sweep: Sweep) -> int:
    console = Console()
    from stepagent.training.sweep import records, report
    from stepagent.training.sweep.execution import run_all

    missing: list[str] = []
    check_range(1, workers=sweep.workers)
    check_range(0, threads=sweep.threads, hours=sweep.hours)
    check_range(1, lost_after=sweep.lost_after)
    if sweep.baseline and not sweep.report_only:
        raise SweepError("--baseline changes the report alone: add --report-only")
    with_baseline(sweep)  # what is wrong is said before anything is written
    if not sweep.report_only:
        # What is not installed is said before anything is written.
        importlib.import_module("stepagent.training.runs.validation")
        # What is known is in the directory from now on, wherever the files go.
        stored = dataclasses.replace(sweep, known=[])
        write_text(Path(sweep.output) / SWEEP, command_line.dump(stored))
    if taken := records.adopt(sweep):
        console.print(f"{len(taken)} runs are known from {', '.join(sweep.known)}", markup=False)
    try:
        if not sweep.report_only:
            missing = run_all(sweep, console)
    finally:
        with suppress(SweepError):  # of a damaged run, which the report names
            records.write(sweep)
    path = report.write(sweep)
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, run, resumes=True, configs=CONFIGS, adjust=_continue)
