"""Runs side by side: `stepagent compare RUN RUN …`.

Means with 95 % intervals, paired differences on the same tasks with their significance, the same by
task type, and the rows of the paper's table 2 for the environment, marked as the paper's. What a
failed episode counts is said in `eval.summary` (0), how a difference is tested in `eval.paired`.
Runs of another environment, split, prompt, data or version are refused, naming what differs, unless
--force says that this is meant; those of suites (`eval.run --suite`) are compared entry by entry,
with the tables of each. Ends with exit code 0, 1 where runs were refused or could not be
read, 2 for wrong options.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent.command_line import Command
from stepagent.eval import runs, tables
from stepagent.eval.comparison import Comparison, Difference, Row, compare
from stepagent.eval.results import ResultsError
from stepagent.eval.tables import MISSING, Table

Format = Literal["terminal", "markdown", "csv", "latex"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


@dataclass
class Config:
    """Compares runs: means with intervals, paired differences, by task type, the paper's rows."""

    runs: list[str]
    """Results files, folders of eval.run, or folders of training.run (all evaluations of it); or
    folders of whole suites, whose environments are compared one by one. They stand first, without a
    name: RUN RUN …"""
    format: Format | None = None
    """How to write it. null: as the ending of --out says (.md, .csv, .tex), else for the
    terminal."""
    out: Path | None = None
    """File to write to. null: the terminal."""
    against: str | None = None
    """Name of a run that all others are compared with. null: every pair is compared, and by task
    type all with the first."""
    paper: bool = True
    """Show the paper's figures for the environment, too."""
    force: bool = False
    """Compare even what should not be compared (other split, prompt, data or version)."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(mean: float, bounds: Sequence[float], sign: str = "") -> str:
    low, high = bounds
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def as_tables(*compared: Comparison) -> list[Table]:
    """The tables that a reader gets, in percent."""
    return [
        replace(table, title=f"{c.entry}: {table.title}") if c.entry else table
        for c in compared
        for table in _tables(c)
    ]


def _tables(c: Comparison) -> list[Table]:
    where = f"{c.env}, split {c.split}"
    head = ["run", "tasks", "score [95 %]", "success [95 %]", "valid", "cut off", "steps"]
    main = Table(f"{where}: mean score in percent", head)
    main.rows = [[row.run, *_cells(row.figures)] for row in c.rows]
    main.rules = {len(main.rows)}
    main.rows += [
        [f"Paper: {name}", MISSING, f"{value:.1f}", *[MISSING] * 4] for name, value in c.references
    ]
    found = [main]
    if any(row.figures["metrics"] for row in c.rows):
        found.append(_metrics(c))
    if c.differences:
        head = ["compared", "tasks", "difference [95 %]", "better / worse", "p", "p (Holm)", ""]
        table = Table("Paired differences of the score on the same tasks, percentage points", head)
        table.rows = [[f"{d.second} − {d.first}", *_difference_cells(d)] for d in c.differences]
        found.append(table)
    if c.type_rows:
        found.append(_types(c))
    return found


def _cells(figures: dict[str, Any]) -> list[str]:
    failed = f" ({figures['failed']} failed)" if figures["failed"] else ""
    return [
        f"{figures['episodes']}{failed}",
        _interval(figures["reward_mean"], figures["reward_ci95"]),
        _interval(figures["success_rate"], figures["success_ci95"]),
        *(_percent(figures[name]) for name in ("valid_rate", "truncated_rate")),
        f"{figures['steps_mean']:.1f}",
    ]


def _difference_cells(d: Difference) -> list[str]:
    if d.found is None:
        return ["0", "no task in common", *[MISSING] * 3, ""]
    f = d.found
    return [
        str(f.tasks),
        _interval(f.mean, (f.low, f.high), "+"),
        f"{f.better} / {f.worse}",
        _p(f.p),
        _p(d.p_holm),
        "*" if d.p_holm < 0.05 else "",
    ]


def _metrics(c: Comparison) -> Table:
    table = Table("The benchmark's own figures, means", ["figure", *(row.run for row in c.rows)])
    for name in sorted({name for row in c.rows for name in row.figures["metrics"]}):
        values = [row.figures["metrics"].get(name) for row in c.rows]
        table.rows.append([name, *(MISSING if v is None else f"{v:.3f}" for v in values)])
    return table


def _types(c: Comparison) -> Table:
    base = c.type_differences[0].first if c.type_differences else ""
    head = ["task type", "run", "tasks", "score [95 %]", "success", "steps"]
    if base:
        head += [f"difference to {base} [95 %]", "p", "p (Holm)", ""]
    table = Table("By task type, percent", head, left=2)
    by_place = {(d.task_type, d.second): d for d in c.type_differences}
    before = None
    for row in c.type_rows:
        figures, known = row.figures, by_place.get((row.task_type, row.run))
        if row.task_type != before and before is not None:
            table.rules.add(len(table.rows))
        cells = [
            row.task_type if row.task_type != before else "",
            row.run,
            str(figures["episodes"]),
            _interval(figures["reward_mean"], figures["reward_ci95"]),
            _percent(figures["success_rate"]),
            f"{figures['steps_mean']:.1f}",
        ]
        before = row.task_type
        if base:
            shown = _difference_cells(known) if known else [""] * 6
            cells += [shown[1], *shown[3:]]
        table.rows.append(cells)
    return table


def legend(*compared: Comparison) -> list[str]:
    """What the tables mean, and what is to be known about these runs."""
    told = [
        "Intervals: 95 %, bootstrap over tasks (score, differences), Wilson's (success). A failed "
        "episode counts as 0."
    ]
    if any(c.differences or c.type_differences for c in compared):
        told.append(
            "p: two-sided sign-flip permutation test on the tasks both have. p (Holm): corrected "
            "for all comparisons of its table; * where it is below 0.05."
        )
    if any(c.references for c in compared):
        told.append(
            "Paper: the figures that the paper reports in its table 2, on the benchmark's whole "
            "official test set. They were not measured here and have no interval."
        )
    notes = [f"{c.entry}: {note}" if c.entry else note for c in compared for note in c.notes]
    return [*told, *notes]


COLUMNS = (
    *("table", "source", "task_type", "run", "compared_with", "tasks", "failed"),
    *("score", "score_low", "score_high", "success", "success_low", "success_high"),
    *("valid", "cut_off", "steps", "difference", "difference_low", "difference_high"),
    *("better", "worse", "p", "p_holm", "env"),
)
"""Of the CSV: scores, rates and differences in percent; empty where a figure does not apply. `env`
is the environment, of a suite the name of its entry."""


def as_csv(*compared: Comparison) -> str:
    """One tidy table of all figures: runs, the paper's rows, differences, task types."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in (line for c in compared for line in _csv_lines(c)):
        writer.writerow({k: tables.plain(v) if isinstance(v, str) else v for k, v in line.items()})
    return file.getvalue()


def _csv_lines(c: Comparison) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [_csv_run("runs", row) for row in c.rows]
    lines += [
        {"table": "runs", "source": "paper", "run": name, "score": value}
        for name, value in c.references
    ]
    lines += [_csv_difference("differences", d) for d in c.differences]
    lines += [_csv_run("task types", row) for row in c.type_rows]
    lines += [_csv_difference("task type differences", d) for d in c.type_differences]
    return [{**line, "env": c.entry or c.env} for line in lines]


def _csv_run(table: str, row: Row) -> dict[str, Any]:
    f = row.figures
    shares = {
        "score": f["reward_mean"],
        **dict(zip(("score_low", "score_high"), f["reward_ci95"], strict=True)),
        "success": f["success_rate"],
        **dict(zip(("success_low", "success_high"), f["success_ci95"], strict=True)),
        "valid": f["valid_rate"],
        "cut_off": f["truncated_rate"],
    }
    return {
        "table": table,
        "source": "ours",
        "task_type": row.task_type,
        "run": row.run,
        "tasks": f["episodes"],
        "failed": f["failed"],
        **{name: round(100 * value, 4) for name, value in shares.items()},
        "steps": round(f["steps_mean"], 4),
    }


def _csv_difference(table: str, d: Difference) -> dict[str, Any]:
    line = {
        "table": table,
        "source": "ours",
        "task_type": d.task_type,
        "run": d.second,
        "compared_with": d.first,
        "tasks": d.found.tasks if d.found else 0,
    }
    if d.found:
        bounds = {"": d.found.mean, "_low": d.found.low, "_high": d.found.high}
        line |= {f"difference{name}": round(100 * value, 4) for name, value in bounds.items()}
        line |= {"better": d.found.better, "worse": d.found.worse}
        line |= {"p": round(d.found.p, 6), "p_holm": round(d.p_holm, 6)}
    return line


RENDERERS: dict[str, Callable[..., str]] = {
    "terminal": lambda *c: tables.terminal(as_tables(*c), legend(*c)),
    "markdown": lambda *c: tables.markdown(as_tables(*c), legend(*c)),
    "latex": lambda *c: tables.latex(as_tables(*c), legend(*c)),
    "csv": as_csv,
}
"""Format → the text of one or several `Comparison`s."""


def _compared(config: Config, notes: list[str]) -> list[Comparison]:
    """One comparison of all runs; where the paths are suites, one for each of their entries."""
    found = runs.read(config.runs, notes)
    if not found:
        raise ResultsError(f"no evaluation stands in {', '.join(config.runs)} yet")
    options: dict[str, Any] = {"force": config.force, "paper_rows": config.paper}
    if not all(runs.is_suite(Path(path)) for path in config.runs):
        return [compare(found, against=config.against, **options)]
    several = []
    for entry, group in runs.by_entry(found).items():
        names = [run.name for run in group]
        if config.against is not None and config.against not in names:
            notes.append(
                f"{entry}: no run is called {config.against!r} ({', '.join(names)}); left out"
            )
            continue
        try:
            c = compare(group, against=config.against, **options)
        except ResultsError as error:
            raise ResultsError(f"{entry}: {error}") from None
        several.append(replace(c, entry=entry))
    if not several:
        raise ValueError(f"no run is called {config.against!r} in {', '.join(config.runs)}")
    return several


def run(config: Config) -> int:
    errors = Console(stderr=True)
    notes: list[str] = []
    kind = config.format or SUFFIXES.get(config.out.suffix if config.out else "", "terminal")
    try:
        compared = _compared(config, notes)
        if config.out:
            config.out.parent.mkdir(parents=True, exist_ok=True)
            config.out.write_text(RENDERERS[kind](*compared), encoding="utf-8")
    finally:
        for note in notes:
            tables.tell(errors, f"note: {note}")
    if not config.out and kind == "terminal":
        tables.terminal(as_tables(*compared), legend(*compared), Console())
    elif not config.out:
        sys.stdout.write(RENDERERS[kind](*compared))
    return 0


main = Command("compare", Config, run, positional="runs")


if __name__ == "__main__":
    sys.exit(main())
