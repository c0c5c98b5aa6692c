"""The report of a sweep: tables like the paper's table 2 and 3, plots like its figure 4.

Our figures are means over seeds with a 95 % interval (Student's t over the seeds' scores: it speaks
of new seeds on the same test tasks). The paper's stand beside them and are marked as the paper's.
Scores are in percent; what is missing says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.paper import LABELS
from training import paper
from training.rundir import write_whole

if TYPE_CHECKING:
    from training.sweep import Experiment, Run, Sweep

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in percent."""

    mean: float
    half: float
    """Half of the 95 % interval; NaN for one seed"""
    values: tuple[float, ...]
    """One a seed"""

    def __str__(self) -> str:
        spread = "" if math.isnan(self.half) else f" ± {self.half:.1f}"
        return f"{self.mean:.1f}{spread} (n={len(self.values)})"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Of scores in percent; None where there is none.

    >>> print(estimate([50.0, 52.0, 54.0]))
    52.0 ± 5.0 (n=3)
    """
    n = len(values)
    if not n:
        return None
    mean = sum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, tuple(values))
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    t = _T[n - 2] if n - 2 < len(_T) else 1.96
    return Estimate(mean, t * deviation / math.sqrt(n), tuple(values))


@dataclass(frozen=True)
class Row:
    """A run and what came out of it."""

    run: Run
    scores: dict[str, float]
    """Stage → mean score on the test tasks, in percent; empty where the run is not done"""
    minutes: float

    @property
    def final(self) -> float | None:
        """The score of the policy that the run ends with."""
        own = [s for s in self.scores if s == self.run.options["method"] or "iteration-" in s]
        stages = own or [s for s in self.scores if s == "sft"]
        return self.scores[stages[-1]] if stages else None

    @property
    def env(self) -> str:
        return str(self.run.options.get("env", ""))


def read(run: Run, output: Path) -> Row:
    path = run.directory(output) / "summary.json"
    if not path.is_file():
        return Row(run, {}, 0.0)
    found = json.loads(path.read_text())
    scores = {stage: 100 * row["reward_mean"] for stage, row in found["scores"].items()}
    return Row(run, scores, found["seconds"] / 60)


def write(sweep: Sweep) -> Path:
    """Writes report.md, results.json and the plots; returns the report's path."""
    from training.sweep import experiments, runs

    output, parts, results = Path(sweep.output), [HEAD], []
    for experiment in experiments(sweep):
        rows = [read(run, output) for run in runs(sweep, experiment)]
        done = sum(row.final is not None for row in rows)
        parts.append(f"\n## {experiment.name}\n\n{done} of {len(rows)} runs are done.\n")
        parts += SECTIONS[experiment.kind](experiment, rows, output)
        results += [_result(experiment, row, output) for row in rows]
    text = json.dumps(results, indent=1)
    write_whole(output / "results.json", lambda partial: partial.write_text(text))
    report = output / "report.md"
    write_whole(report, lambda partial: partial.write_text("\n".join(parts) + "\n"))
    return report


HEAD = """# Report of a sweep

Mean score on the test tasks in percent, ± half of the 95 % interval over n seeds. **Paper:**
columns and marks are the paper's figures, on 7B and 8B backbones and whole test sets: not ours."""


def _result(experiment: Experiment, row: Row, output: Path) -> dict[str, Any]:
    run = row.run
    return {
        "experiment": experiment.name,
        "run": run.directory(output).name,
        "method": run.method,
        "environment": run.environment,
        "model": run.model,
        "seed": run.seed,
        "varied": dict(run.varied),
        "scores": row.scores,
        "final": row.final,
        "minutes": round(row.minutes, 1),
    }


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _finals(rows: Iterable[Row]) -> list[float]:
    return [row.final for row in rows if row.final is not None]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _settings(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """The rows by environment and model."""
    keys = _unique((row.run.environment, row.run.model) for row in rows)
    return [
        (e, m, [r for r in rows if (r.run.environment, r.run.model) == (e, m)]) for e, m in keys
    ]


# Sections -----------------------------------------------------------------------------------------


def methods(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As table 2: a row a method, with its gain over SFT.

    That is the SFT that a run itself began with, seed by seed; for another way of SFT, the first.
    """
    parts = []
    for environment, model, here in _settings(rows):
        env, body, bars = here[0].env, [], []
        theirs = list(paper.table2("sft", env))
        plain = [r for r in here if r.run.options["method"] == "sft"]
        first = plain[0].run.method if plain else None
        base = {r.run.seed: r.final for r in plain if r.run.method == first}
        for method in experiment.methods:
            own = [r for r in here if r.run.method == method]
            kind = own[0].run.options["method"]
            gains = [
                r.final - before
                for r in own
                if method != first
                and r.final is not None
                and (before := _before(r, base)) is not None
            ]
            found, gain = estimate(_finals(own)), estimate(gains)
            reported = paper.table2(kind, env)
            body.append(
                [
                    _label(method),
                    str(found or "not done"),
                    str(gain or ""),
                    *(f"{reported[b]:.1f}" if b in reported else "" for b in theirs),
                ]
            )
            bars.append((_label(method), found, reported))
        head = ["method", "ours", "ours, gain over SFT", *(f"**Paper:** {b}" for b in theirs)]
        title = f"{environment}, {model}"
        picture = _bars(f"{experiment.name}-{environment}-{model}", title, bars, output)
        parts += [f"\n### {title}\n", _markdown(head, body), picture]
    return parts


def _before(row: Row, base: dict[int, float | None]) -> float | None:
    """The score that a run's gain counts from."""
    own = None if row.run.options["method"] == "sft" else row.scores.get("sft")
    return base.get(row.run.seed) if own is None else own


def rewards(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As table 3: a row a reward type."""
    parts = []
    for environment, model, here in _settings(rows):
        body, bars = [], []
        for reward in _unique(_varied(r, "inverse.reward") for r in here):
            found = estimate(_finals(r for r in here if _varied(r, "inverse.reward") == reward))
            reported = paper.table3(str(reward), here[0].env)
            told = "" if reported is None else f"{reported:.1f}"
            body.append([str(reward), str(found or "not done"), told])
            bars.append((str(reward), found, {"Llama-3-8B": reported} if reported else {}))
        title = f"{environment}, {model}"
        picture = _bars(f"{experiment.name}-{environment}-{model}", title, bars, output)
        head = ["reward", "ours", "**Paper:** Llama-3-8B"]
        parts += [f"\n### {title}\n", _markdown(head, body), picture]
    return parts


def iterations(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As figure 4(a): the score after each iteration of one run; 0 is SFT."""

    def points(own: Sequence[Row]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for row in own:
            for stage, score in row.scores.items():
                if stage == "sft" or stage.startswith("iteration-"):
                    number = 0 if stage == "sft" else int(stage.split("-")[1])
                    found.setdefault(number, []).append(score)
        return found

    return _curves(experiment, rows, output, "iteration", points, paper.BEST_ITERATION)


def practice(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As figure 4(b): the final score by the number of practice actions."""

    def points(own: Sequence[Row]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for row in own:
            if row.final is not None:
                found.setdefault(int(_varied(row, "reflection.practice")), []).append(row.final)
        return found

    best = dict.fromkeys(experiment.methods, paper.BEST_PRACTICE)
    return _curves(experiment, rows, output, "practice number", points, best)


SECTIONS: dict[str, Callable[[Experiment, Sequence[Row], Path], list[str]]] = {
    "methods": methods,
    "rewards": rewards,
    "iterations": iterations,
    "practice": practice,
}


def _varied(row: Row, key: str) -> Any:
    return dict(row.run.varied).get(key)


def _label(method: str) -> str:
    kind, dash, variant = method.partition("-")
    return f"{LABELS.get(kind, kind)}{dash and ', '}{variant}"


def _curves(
    experiment: Experiment,
    rows: Sequence[Row],
    output: Path,
    axis: str,
    points: Callable[[Sequence[Row]], dict[int, list[float]]],
    paper_best: dict[str, int],
) -> list[str]:
    """A table and a plot of score over `axis`, a line a method."""
    parts = []
    for environment, model, here in _settings(rows):
        lines: dict[str, dict[int, Estimate]] = {}
        for method in experiment.methods:
            found = points([r for r in here if r.run.method == method])
            made = {x: estimate(values) for x, values in sorted(found.items())}
            lines[method] = {x: e for x, e in made.items() if e is not None}
        xs = sorted({x for line in lines.values() for x in line})
        body = [
            [_label(m), *(str(line.get(x, "")) for x in xs), str(paper_best.get(m, ""))]
            for m, line in lines.items()
        ]
        title = f"{environment}, {model}"
        name = f"{experiment.name}-{environment}-{model}"
        head = [axis, *map(str, xs), f"**Paper:** best {axis} (WebShop)"]
        picture = _plot(name, title, axis, lines, paper_best, output)
        parts += [f"\n### {title}\n", _markdown(head, body), picture]
    return parts


# Plots --------------------------------------------------------------------------------------------


def _figure(width: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, 3.6), layout="constrained")


def _saved(figure: Any, name: str, title: str, output: Path) -> str:
    from matplotlib import pyplot

    linked = re.sub(r"[^\w.-]+", "-", name).lower()  # a link in Markdown has no spaces
    path = output / "plots" / f"{linked}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"![{title}](plots/{path.name})\n"


def _bars(
    name: str,
    title: str,
    bars: Sequence[tuple[str, Estimate | None, dict[str, float]]],
    output: Path,
) -> str:
    """Ours as bars with intervals and a dot a seed, the paper's as marks."""
    figure, axes = _figure(max(5.0, 1.0 * len(bars)))
    for x, (_, found, _) in enumerate(bars):
        if found:
            half = 0 if math.isnan(found.half) else found.half
            axes.bar(x, found.mean, yerr=half, color="tab:blue", alpha=0.6, capsize=3, width=0.6)
            axes.scatter([x - 0.2] * len(found.values), found.values, color="black", s=9, zorder=3)
    for marker, backbone in zip("D^sv", _unique(b for *_, p in bars for b in p), strict=False):
        told = [(x, p[backbone]) for x, (*_, p) in enumerate(bars) if backbone in p]
        label = f"the paper's, {backbone}"
        axes.scatter(*zip(*told, strict=True), marker=marker, color="tab:gray", label=label)
    axes.set_xticks(range(len(bars)), [label for label, *_ in bars], rotation=30, ha="right")
    axes.set(ylabel="score, %", title=title, ylim=(0, 105))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", ncols=2, fontsize="small")  # hides no seed
    return _saved(figure, name, title, output)


def _plot(
    name: str,
    title: str,
    axis: str,
    lines: dict[str, dict[int, Estimate]],
    paper_best: dict[str, int],
    output: Path,
) -> str:
    """Lines with intervals; a dotted line where the paper has its best."""
    figure, axes = _figure(5.5)
    for number, (method, line) in enumerate(lines.items()):
        color = f"C{number}"
        xs, means = list(line), [e.mean for e in line.values()]
        half = [0 if math.isnan(e.half) else e.half for e in line.values()]
        axes.errorbar(
            xs, means, yerr=half, marker="o", capsize=3, color=color, label=_label(method)
        )
        if method in paper_best:
            told = f"the paper's best for {_label(method)}"
            axes.axvline(paper_best[method], linestyle=":", color=color, label=told)
    axes.set(xlabel=axis, ylabel="score, %", title=title)
    axes.legend(fontsize="small")
    return _saved(figure, name, title, output)
