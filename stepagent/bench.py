"""Benchmarks against the usual way of doing the same: `stepagent bench NAME --out FILE`.

Each measures both sides in the same run, in alternating order, and reports medians, so that a busy
machine disturbs both alike. A new benchmark is a function `(Options) -> Iterable[Row]` (both are in
`eval.benches`, as is what measures two sides) and a line in `BENCHMARKS`. A benchmark is in the
layer whose code it measures, so this module, with the table of them, is above all layers; the table
holds names, so that only the benchmark that runs gets imported. Rows are shown and written as they
come.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stepagent.command_line import Command
from stepagent.errors import UsageError, check_range
from stepagent.eval.benches import Options, Row
from stepagent.eval.tables import tell
from stepagent.files import write_text

BENCHMARKS = {
    "envs": "stepagent.eval.benches.envs:bench",
    "expert": "stepagent.eval.benches.expert:bench",
    "rollout": "stepagent.eval.benches.rollout:bench",
    "practice": "stepagent.training.benchmarks.step_trees:bench_practice",
    "reflection": "stepagent.training.benchmarks.step_trees:bench_reflection",
    "own-states": "stepagent.training.benchmarks.own_states:bench",
    "grpo": "stepagent.training.benchmarks.grpo:bench",
    "inverse": "stepagent.training.benchmarks.inverse:bench",
    "server": "stepagent.eval.benches.server:bench",
    "soak": "stepagent.eval.benches.soak:bench",
    "vector": "stepagent.eval.benches.vector:bench",
}
"""Name → `module:function`."""


def rows_table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, caption="medians; ratio > 1: ours is better")
    for head in ("what", "ours", "baseline", "ratio", "unit"):
        table.add_column(head, justify="left" if head in ("what", "unit") else "right")
    for row in rows:
        table.add_row(
            row.name, f"{row.ours:.4g}", f"{row.baseline:.4g}", f"{row.ratio:.2f}", row.unit
        )
    return table


def run(options: Options) -> int:
    errors = Console(stderr=True)
    if options.name not in BENCHMARKS:
        raise UsageError(f"no benchmark {options.name!r}: choose {', '.join(BENCHMARKS)}")
    check_range(1, repeats=options.repeats)
    module, function = BENCHMARKS[options.name].split(":")
    rows: list[Row] = []
    for row in getattr(importlib.import_module(module), function)(options):
        rows.append(row)
        tell(errors, f"{row.name}: {row.ours:.4g}, baseline {row.baseline:.4g} {row.unit}")
        if options.out:
            _write(rows, options.out)
    Console().print(rows_table(options.name, rows))
    return 0


def _write(rows: Sequence[Row], out: Path) -> None:
    """Called after every row, so that Ctrl-C loses no measurement."""
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    write_text(out, text + "\n")


main = Command("bench", Options, run, positional="name")


if __name__ == "__main__":
    sys.exit(main())
