"""Benchmarks against the plain way of doing the same: `python -m eval.bench NAME --out FILE`.

Each measures both sides in the same run, in alternating order, and reports medians, so that a busy
machine disturbs both alike. A new one is a function `(Options) -> Iterable[Row]` (`eval.benches`
holds both, and what measures two sides) and a line in `BENCHES`. That table holds names only: a
benchmark lives in the layer whose code it measures, and this module, which is not to import from
`training`, looks up the one asked for when it runs. Rows are told and written as they come.
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

from stepagent import command_line
from stepagent.eval.benches import Options, Row
from stepagent.eval.tables import tell
from stepagent.files import write_text

BENCHES = {
    "envs": "stepagent.eval.benches.envs:bench",
    "rollout": "stepagent.eval.benches.rollout:bench",
    "inspection": "stepagent.training.bench:inspection",
    "reflection": "stepagent.training.bench:reflection",
    "inverse": "stepagent.training.bench_inverse:bench",
    "server": "stepagent.eval.benches.server:bench",
    "soak": "stepagent.eval.benches.soak:bench",
    "vector": "stepagent.eval.benches.vector:bench",
}
"""Name → `module:function`."""


def table(title: str, rows: Sequence[Row]) -> Table:
    shown = Table(title=title, caption="medians; ratio > 1: ours is better")
    for head in ("what", "ours", "baseline", "ratio", "unit"):
        shown.add_column(head, justify="left" if head in ("what", "unit") else "right")
    for row in rows:
        shown.add_row(
            row.name, f"{row.ours:.4g}", f"{row.baseline:.4g}", f"{row.ratio:.2f}", row.unit
        )
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    options = command_line.parse(Options, argv, prog="python -m eval.bench", positional="name")
    errors = Console(stderr=True)
    if options.name not in BENCHES:
        errors.print(f"error: no benchmark {options.name!r}: choose {', '.join(BENCHES)}")
        return 2
    module, function = BENCHES[options.name].split(":")
    rows: list[Row] = []
    try:
        for row in getattr(importlib.import_module(module), function)(options):
            rows.append(row)
            tell(errors, f"{row.name}: {row.ours:.4g}, baseline {row.baseline:.4g} {row.unit}")
            if options.out:
                _write(rows, options.out)
    except KeyboardInterrupt:
        return 130
    except (ValueError, ImportError, OSError) as error:
        tell(errors, f"error: {error}")
        return 2
    Console().print(table(options.name, rows))
    return 0


def _write(rows: Sequence[Row], out: Path) -> None:
    """After every row: what was measured before Ctrl-C is kept."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False)
    write_text(out, text + "\n")


if __name__ == "__main__":
    sys.exit(main())
