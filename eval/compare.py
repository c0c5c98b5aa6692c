"""Compares runs: `stepagent compare RUN RUN …`.

Shows means with 95 % intervals, paired differences on the same tasks with their significance, both
by task type, and the rows of the paper's table 2 for the environment, marked as the paper's. A
failed episode counts as 0 (`eval.summary`); `eval.paired` describes the test of a difference. Where
a run's agreement with the expert was measured (`eval.agreement`), that is compared, too. Runs
that differ in environment, split, prompt, data or version are refused, naming what differs, unless
--force is given; those of suites (`eval.run --suite`) are compared entry by entry, with the tables
of each. The exit code is 0, 1 if runs were refused or could not be read, 2 for wrong options and
for paths without results.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from stepagent.command_line import Command
from stepagent.eval import tables
from stepagent.eval.agreement import MEASURES, Measure
from stepagent.eval.agreement.tables import NOTE, differences_table, figures_table
from stepagent.eval.comparison import Comparison, Difference, RunFigures, compare
from stepagent.eval.load_runs import by_entry, is_suite, load_runs
from stepagent.eval.results import NoResults, ResultsError
from stepagent.eval.tables import MISSING, Table, p_value
from stepagent.files import write_text

Format = Literal["terminal", "markdown", "csv", "latex"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


@dataclass
class Config:
    """Compares runs: means with intervals, paired differences, both also by task type, and the
    paper's figures."""

    runs: list[str]
    """Results files; folders of `stepagent eval`, or of `stepagent train` (all its evaluations); or
    folders of entire suites, which are compared environment by environment."""
    format: Format | None = None
    """Output format. null: by the ending of --out (.md, .csv, .tex), else for the terminal."""
    out: Path | None = None
    """File to write to. null: the terminal."""
    against: str | None = None
    """Name of the run that all others are compared with. null: every pair is compared, and by task
    type all with the first run."""
    paper: bool = True
    """Also show the paper's figures for the environment."""
    force: bool = False
    """Compare even runs that differ in what they should share (split, prompt, data or version)."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(mean: float, bounds: Sequence[float], sign: str = "") -> str:
    low, high = bounds
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def as_tables(*compared: Comparison) -> list[Table]:
    """The tables for the reader, in percent."""
    return [
        replace(table, title=f"{c.entry}: {table.title}") if c.entry else table
        for c in compared
        for table in _tables(c)
    ]


def _tables(c: Comparison) -> list[Table]:
    where = f"{c.env}, split {c.split}"
    head = ["run", "tasks", "score [95 %]", "success [95 %]", "valid", "cut off", "steps"]
    main = Table(f"{where}: mean score in percent", head)
    main.rows = [[run.run, *_cells(run.figures)] for run in c.runs]
    main.rules = {len(main.rows)}
    main.rows += [
        [f"Paper: {name}", MISSING, f"{value:.1f}", *[MISSING] * 4] for name, value in c.references
    ]
    shown = [main]
    if any(run.figures["metrics"] for run in c.runs):
        shown.append(_metrics(c))
    if c.differences:
        head = ["compared", "tasks", "difference [95 %]", "better / worse", "p", "p (Holm)", ""]
        table = Table("Paired differences of the score on the same tasks, percentage points", head)
        table.rows = [[f"{d.second} − {d.first}", *_difference_cells(d)] for d in c.differences]
        shown.append(table)
    if c.runs_by_type:
        shown.append(_types(c))
    if c.regrets:
        shown.append(_regrets(c))
    if c.agreements:
        shown.append(figures_table(f"{c.env}: agreement with the expert", c.agreements))
    if c.agreement_differences:
        pairs = {f"{b} − {a}": of for (a, b), of in c.agreement_differences.items()}
        shown.append(differences_table(pairs))
    return shown


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
    if d.paired is None:
        return ["0", "no task in common", *[MISSING] * 3, ""]
    test = d.paired
    return [
        str(test.tasks),
        _interval(test.mean, (test.low, test.high), "+"),
        f"{test.better} / {test.worse}",
        p_value(test.p),
        p_value(d.p_holm),
        "*" if d.p_holm < 0.05 else "",
    ]


def _metrics(c: Comparison) -> Table:
    table = Table("The benchmark's own figures, means", ["figure", *(run.run for run in c.runs)])
    for name in sorted({name for run in c.runs for name in run.figures["metrics"]}):
        values = [run.figures["metrics"].get(name) for run in c.runs]
        table.rows.append([name, *(MISSING if v is None else f"{v:.3f}" for v in values)])
    return table


def _regrets(c: Comparison) -> Table:
    head = ["run", "episodes", "in reach at the start", "at the end", "lost", "at step (median)"]
    table = Table("Where episodes were lost, by the environment's expert, percent", head)
    for name, row in c.regrets.items():
        start, end, lost = (
            row[key] or 0.0 for key in ("reach_at_start", "reach_at_end", "lost_rate")
        )
        step = row["lost_at_step"]
        cells = [f"{row['episodes']:.0f}", *map(_percent, (start, end, lost))]
        table.rows.append([name, *cells, MISSING if step is None else f"{step:g}"])
    return table


def _types(c: Comparison) -> Table:
    base = c.differences_by_type[0].first if c.differences_by_type else ""
    head = ["task type", "run", "tasks", "score [95 %]", "success", "steps"]
    if base:
        head += [f"difference to {base} [95 %]", "p", "p (Holm)", ""]
    table = Table("By task type, percent", head, left=2)
    differences = {(d.task_type, d.second): d for d in c.differences_by_type}
    before = None
    for run in c.runs_by_type:
        figures, difference = run.figures, differences.get((run.task_type, run.run))
        if run.task_type != before and before is not None:
            table.rules.add(len(table.rows))
        cells = [
            run.task_type if run.task_type != before else "",
            run.run,
            str(figures["episodes"]),
            _interval(figures["reward_mean"], figures["reward_ci95"]),
            _percent(figures["success_rate"]),
            f"{figures['steps_mean']:.1f}",
        ]
        before = run.task_type
        if base:
            difference_cells = _difference_cells(difference) if difference else [""] * 6
            cells += [difference_cells[1], *difference_cells[3:]]
        table.rows.append(cells)
    return table


def legend(*compared: Comparison) -> list[str]:
    """What the tables mean, and the notes on these runs."""
    lines = [
        "Intervals: 95 %, bootstrap over tasks (score, differences), Wilson's (success). A failed "
        "episode counts as 0."
    ]
    if any(c.differences or c.differences_by_type for c in compared):
        lines.append(
            "p: two-sided sign-flip permutation test on the tasks both have. p (Holm): corrected "
            "for all comparisons of its table; * where it is below 0.05."
        )
    if any(c.references for c in compared):
        lines.append(
            "Paper: the figures that the paper reports in its table 2, on the benchmark's full "
            "official test set. They were not measured here and have no interval."
        )
    if any(c.agreements for c in compared):
        lines.append(NOTE)
    notes = [f"{c.entry}: {note}" if c.entry else note for c in compared for note in c.notes]
    return [*lines, *notes]


COLUMNS = (
    *("table", "source", "task_type", "run", "compared_with", "tasks", "failed"),
    *("score", "score_low", "score_high", "success", "success_low", "success_high"),
    *("valid", "cut_off", "steps", "difference", "difference_low", "difference_high"),
    *("better", "worse", "p", "p_holm"),
    *(f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")),
    *("reach_at_start", "reach_at_end", "lost", "lost_at_step"),
    "env",
)
"""Columns of the CSV: scores, rates, matches and differences in percent, losses in nats; empty
where a figure does not apply. `env` is the environment, or in a suite the name of the entry."""


def as_csv(*compared: Comparison) -> str:
    """One tidy table of all figures: runs, the paper's rows, differences, task types."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in (line for c in compared for line in _csv_lines(c)):
        writer.writerow({k: tables.cell(v) if isinstance(v, str) else v for k, v in line.items()})
    return file.getvalue()


def _csv_lines(c: Comparison) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [_csv_run("runs", run) for run in c.runs]
    lines += [
        {"table": "runs", "source": "paper", "run": name, "score": value}
        for name, value in c.references
    ]
    lines += [_csv_difference("differences", d) for d in c.differences]
    lines += [_csv_run("task types", run) for run in c.runs_by_type]
    lines += [_csv_difference("task type differences", d) for d in c.differences_by_type]
    for name, figures in c.agreements.items():
        measured = {m: (getattr(figures, m), *getattr(figures, f"{m}_ci95")) for m in MEASURES}
        line = {"table": "agreement", "source": "ours", "run": name, "tasks": figures.trajectories}
        lines.append(line | _csv_measures(measured))
    for name, row in c.regrets.items():
        line = {
            "table": "regret",
            "source": "ours",
            "run": name,
            "tasks": round(row["episodes"] or 0),
        }
        shares = {
            "reach_at_start": "reach_at_start",
            "reach_at_end": "reach_at_end",
            "lost": "lost_rate",
        }
        line |= {column: round(100 * (row[key] or 0.0), 4) for column, key in shares.items()}
        lines.append(line | {"lost_at_step": row["lost_at_step"]})
    for (first, second), of in c.agreement_differences.items():
        line = {"table": "agreement differences", "source": "ours", "run": second}
        line |= {"compared_with": first, "tasks": next((d.tasks for d in of.values()), 0)}
        lines.append(line | _csv_measures({m: (d.mean, d.low, d.high) for m, d in of.items()}))
    return [{**line, "env": c.entry or c.env} for line in lines]


def _csv_measures(figures: Mapping[Measure, tuple[float, float, float]]) -> dict[str, Any]:
    """Measure → mean, lower and upper bound, as columns."""
    return {
        f"{measure}{end}": round(value if measure == "loss" else 100 * value, 4)
        for measure, values in figures.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }


def _csv_run(table: str, run: RunFigures) -> dict[str, Any]:
    f = run.figures
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
        "task_type": run.task_type,
        "run": run.run,
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
        "tasks": d.paired.tasks if d.paired else 0,
    }
    if d.paired:
        bounds = {"": d.paired.mean, "_low": d.paired.low, "_high": d.paired.high}
        line |= {f"difference{name}": round(100 * value, 4) for name, value in bounds.items()}
        line |= {"better": d.paired.better, "worse": d.paired.worse}
        line |= {"p": round(d.paired.p, 6), "p_holm": round(d.p_holm, 6)}
    return line


RENDERERS: dict[str, Callable[..., str]] = {
    "terminal": lambda *c: tables.terminal(as_tables(*c), legend(*c)),
    "markdown": lambda *c: tables.markdown(as_tables(*c), legend(*c)),
    "latex": lambda *c: tables.latex(as_tables(*c), legend(*c)),
    "csv": as_csv,
}
"""Format → the text of one or several `Comparison`s."""


def _comparisons(config: Config, notes: list[str]) -> list[Comparison]:
    """One comparison of all runs; if the paths are suites, one for each of their entries."""
    runs = load_runs(config.runs, notes)
    if not runs:
        raise NoResults(f"there is no evaluation in {', '.join(config.runs)} yet")
    options: dict[str, Any] = {"force": config.force, "paper_rows": config.paper}
    if not all(is_suite(Path(path)) for path in config.runs):
        return [compare(runs, against=config.against, **options)]
    comparisons = []
    for entry, group in by_entry(runs).items():
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
        comparisons.append(replace(c, entry=entry))
    if not comparisons:
        raise ValueError(f"no run is called {config.against!r} in {', '.join(config.runs)}")
    return comparisons


def run(config: Config) -> int:
    errors = Console(stderr=True)
    notes: list[str] = []
    kind = config.format or SUFFIXES.get(config.out.suffix if config.out else "", "terminal")
    try:
        comparisons = _comparisons(config, notes)
        if config.out:
            write_text(config.out, RENDERERS[kind](*comparisons))
    finally:
        for note in notes:
            tables.tell(errors, f"note: {note}")
    if not config.out and kind == "terminal":
        tables.terminal(as_tables(*comparisons), legend(*comparisons), Console())
    elif not config.out:
        sys.stdout.write(RENDERERS[kind](*comparisons))
    return 0


main = Command("compare", Config, run, positional="runs")


if __name__ == "__main__":
    sys.exit(main())
