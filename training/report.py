"""The report of a sweep: tables like the paper's table 2 and 3, plots like its figure 4.

Our figures are means over seeds with a 95 % interval (Student's t over the seeds' scores: it speaks
of new seeds on the same test tasks). The paper's stand beside them and are marked as the paper's.
Scores are in percent; what is missing says so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stepagent.eval.paper import LABELS
from stepagent.files import write_text
from stepagent.training import paper

if TYPE_CHECKING:
    from stepagent.training.sweep import Experiment, Run, Sweep

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
    from stepagent.training.sweep import experiments, runs

    output, parts, results = Path(sweep.output), [HEAD], []
    for experiment in experiments(sweep):
        rows = [read(run, output) for run in runs(sweep, experiment)]
        done = sum(row.final is not None for row in rows)
        parts.append(f"\n## {experiment.name}\n\n{done} of {len(rows)} runs are done.\n")
        parts += SECTIONS[experiment.kind](experiment, rows, output)
        results += [_result(experiment, row, output) for row in rows]
    text = json.dumps(results, indent=1)
    write_text(output / "results.json", text)
    report = output / "report.md"
    write_text(report, "\n".join(parts) + "\n")
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
            found = estimate(_finals(own))
            gain = None if method == first else estimate(_gains(own, base))
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


def _gains(
    rows: Iterable[Row], base: Mapping[int, float | None] = MappingProxyType({})
) -> list[float]:
    """What the runs gain over the SFT they began with, or over their seed's score in `base`."""
    found = []
    for row in rows:
        own = None if row.run.options["method"] == "sft" else row.scores.get("sft")
        before = base.get(row.run.seed) if own is None else own
        if row.final is not None and before is not None:
            found.append(row.final - before)
    return found


def rewards(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As table 3: a row a reward type."""
    parts = []
    for environment, model, here in _settings(rows):
        body, bars = [], []
        for reward in _unique(_varied(r, "inverse.reward") for r in here):
            own = [r for r in here if _varied(r, "inverse.reward") == reward]
            found, gain = estimate(_finals(own)), estimate(_gains(own))
            reported = paper.table3(str(reward), here[0].env)
            told = "" if reported is None else f"{reported:.1f}"
            body.append([str(reward), str(found or "not done"), str(gain or ""), told])
            bars.append((str(reward), found, {"Llama-3-8B": reported} if reported else {}))
        title = f"{environment}, {model}"
        picture = _bars(f"{experiment.name}-{environment}-{model}", title, bars, output)
        head = ["reward", "ours", "ours, gain over SFT", "**Paper:** Llama-3-8B"]
        parts += [f"\n### {title}\n", _markdown(head, body), picture]
    return parts


def iterations(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As figure 4(a): the score after each iteration of one run; 0 is SFT."""

    def points(row: Row) -> dict[int, float]:
        found = {0: row.scores["sft"]} if "sft" in row.scores else {}
        for stage, score in row.scores.items():
            name, _, number = stage.partition("-")
            if name == "iteration":
                found[int(number)] = score
        return found

    return _curves(experiment, rows, output, "iteration", points, paper.BEST_ITERATION)


def practice(experiment: Experiment, rows: Sequence[Row], output: Path) -> list[str]:
    """As figure 4(b): the final score by the number of practice actions."""

    def points(row: Row) -> dict[int, float]:
        return {} if row.final is None else {int(_varied(row, "reflection.practice")): row.final}

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


@dataclass
class Curve:
    """A method's scores over an axis, in percent."""

    label: str
    color: str
    seeds: dict[int, dict[int, float]]
    """Seed → x → score"""
    gains: dict[int, list[float]]
    """x → by how much each run is above the SFT it began with"""
    paper_best: int | None
    """Where the paper's curve peaks"""

    @property
    def scores(self) -> dict[int, Estimate]:
        xs = sorted({x for line in self.seeds.values() for x in line})
        return _estimates({x: [s[x] for s in self.seeds.values() if x in s] for x in xs})

    def add(self, row: Row, points: Mapping[int, float]) -> None:
        """A run's scores, x → score; x of 0 is SFT itself."""
        for x, score in points.items():
            self.seeds.setdefault(row.run.seed, {})[x] = score
            if x and "sft" in row.scores:
                self.gains.setdefault(x, []).append(score - row.scores["sft"])


def _estimates(values: Mapping[int, Sequence[float]]) -> dict[int, Estimate]:
    return {x: found for x, v in sorted(values.items()) if (found := estimate(v))}


def _curves(
    experiment: Experiment,
    rows: Sequence[Row],
    output: Path,
    axis: str,
    points: Callable[[Row], dict[int, float]],
    paper_best: dict[str, int],
) -> list[str]:
    """A table and a plot of score over `axis`, a line a method."""
    parts = []
    for environment, model, here in _settings(rows):
        curves = []
        for number, method in enumerate(experiment.methods):
            curve = Curve(_label(method), f"C{number}", {}, {}, paper_best.get(method))
            for row in here:
                if row.run.method == method:
                    curve.add(row, points(row))
            curves.append(curve)
        xs = sorted({x for curve in curves for x in curve.scores})
        body = []
        for curve in curves:
            best = "" if curve.paper_best is None else str(curve.paper_best)
            scores, gains = curve.scores, _estimates(curve.gains)
            body.append([curve.label, *(str(scores.get(x, "")) for x in xs), best])
            body.append([f"{curve.label}, gain", *(str(gains.get(x, "")) for x in xs), ""])
        title = f"{environment}, {model}"
        name = f"{experiment.name}-{environment}-{model}"
        head = [axis, *map(str, xs), f"**Paper:** best {axis} (WebShop)"]
        picture = _plot(name, title, axis, curves, output)
        parts += [f"\n### {title}\n", _markdown(head, body), picture]
    return parts


# Plots --------------------------------------------------------------------------------------------


def _figure(width: float, panels: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, panels, figsize=(width, 3.6), layout="constrained")


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


def _plot(name: str, title: str, axis: str, curves: Sequence[Curve], output: Path) -> str:
    """Left each seed's scores and their mean, right what is gained over SFT, with intervals.

    A dotted line is where the paper has its best.
    """
    figure, (left, right) = _figure(9.0, 2)
    for number, curve in enumerate(curves):
        for line in curve.seeds.values():
            left.plot(list(line), list(line.values()), color=curve.color, alpha=0.35, linewidth=1)
        scores, gains = curve.scores, _estimates(curve.gains)
        means = [e.mean for e in scores.values()]
        left.plot(list(scores), means, marker="o", color=curve.color, label=curve.label)
        half = [0 if math.isnan(e.half) else e.half for e in gains.values()]
        xs = [x + 0.08 * number for x in gains]  # beside each other
        means = [e.mean for e in gains.values()]
        right.errorbar(xs, means, yerr=half, marker="o", capsize=3, color=curve.color)
        if curve.paper_best is not None:
            told = f"the paper's best for {curve.label}"
            for axes in (left, right):
                axes.axvline(curve.paper_best, linestyle=":", color=curve.color, label=told)
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.set_xticks(sorted({x for curve in curves for x in curve.scores}))
    left.set(xlabel=axis, ylabel="score, %", title=title)
    right.set(
        xlabel=axis, ylabel="gain over SFT, points", title="mean and 95 % interval over seeds"
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _saved(figure, name, title, output)
