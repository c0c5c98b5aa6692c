"""The command line of a sweep."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from stepagent import command_line
from stepagent.training.sweep.planning import Sweep


def main(argv: Sequence[str] | None = None) -> int:
    sweep = command_line.parse(Sweep, argv, prog="python -m training.sweep")
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill, like Ctrl-C
    from stepagent.training.sweep import report
    from stepagent.training.sweep.execution import run_all

    try:
        Path(sweep.output).mkdir(parents=True, exist_ok=True)
        missing = [] if sweep.report_only else run_all(sweep, console)
        path = report.write(sweep)
    except (ValueError, OSError) as error:
        print(f"training.sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0
