"""The command line of a sweep."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.errors import UserError
from stepagent.files import write_text
from stepagent.training.sweep.planning import Sweep, SweepError

SWEEP = "sweep.yaml"
"""The sweep that a directory holds."""


def _stored(sweep: Sweep) -> Sweep:
    """The sweep itself, or where it has no experiment that which its directory holds.

    Raises SweepError where there is none either.
    """
    if sweep.experiments:
        return sweep
    file = Path(sweep.output) / SWEEP
    if not file.is_file():
        raise SweepError(f"no experiments are named (--config), and {file} does not exist")
    stored = command_line.parse(Sweep, ["--config", str(file)], prog="stepagent sweep")
    return replace(stored, output=sweep.output, report_only=sweep.report_only)


def run(sweep: Sweep) -> int:
    console = Console()
    sweep = _stored(sweep)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill, like Ctrl-C
    from stepagent.training.sweep import report
    from stepagent.training.sweep.execution import run_all

    try:
        output = Path(sweep.output)
        output.mkdir(parents=True, exist_ok=True)
        if not sweep.report_only:
            write_text(output / SWEEP, command_line.dump(replace(sweep, report_only=False)))
        missing = [] if sweep.report_only else run_all(sweep, console)
        path = report.write(sweep)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, run, resumes=True, configs="stepagent.training")
