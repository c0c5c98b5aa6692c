"""The report of a sweep: tables like the paper's table 2 and 3, plots like its figures 3 and 4.

Our figures are means over seeds with a 95 % interval (`sweep.statistics`). The paper's are beside
them and marked as the paper's. Scores are in percent; runs that are missing are marked as such.
`report.json` has all figures as data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stepagent.files import write_text
from stepagent.training.sweep import paper, rows, tables
from stepagent.training.sweep.planning import Experiment, Sweep, runs, with_baseline
from stepagent.training.sweep.plots import Curve, bar_chart, curve_plot, gain_plot, model_plot
from stepagent.training.sweep.results import Result, read
from stepagent.training.sweep.statistics import estimate, estimates

FORMAT = 1
"""Version of `report.json`."""


def write(sweep: Sweep) -> Path:
    """Writes report.md, report.json, results.json and the plots; returns the report's path."""
    output, parts, of_runs, data = Path(sweep.output), [HEAD], [], []
    for experiment in with_baseline(sweep):
        results = [read(run, output) for run in runs(sweep, experiment)]
        chosen = rows.best_on_dev(experiment, results)
        figures = as_data(experiment, results, chosen)
        parts.append(f"\n## {experiment.name}\n\n{tables.about(figures)}")
        parts += SECTIONS[experiment.kind](experiment, [*results, *chosen], output)
        if experiment.kind == "models":
            parts += _models(figures, output)
        for setting in figures["settings"]:
            parts += _statistics(experiment, setting, output)
        data.append(figures)
        of_runs += [_run_as_json(experiment, result, output) for result in results]
    write_text(output / "results.json", json.dumps(of_runs, indent=1))
    everything = {"format": FORMAT, "stepagent": version("stepagent"), "experiments": data}
    write_text(output / "report.json", json.dumps(everything, indent=1))
    report = output / "report.md"
    write_text(report, "\n".join(parts) + "\n")
    return report


HEAD = """# Report of a sweep

Mean score on the test tasks in percent, ± half of the 95 % interval over n seeds. **Paper:**
columns and marks are the paper's figures, on 7B and 8B backbones and full test sets: not ours."""


def as_data(
    experiment: Experiment, results: Sequence[Result], chosen: Sequence[Result] = ()
) -> dict[str, Any]:
    """All figures of an experiment, as `report.json` has them, of its runs and those of the rows
    that are chosen among them."""
    everything = [*results, *chosen]
    absent = [result for result in everything if result.final is None]
    by_setting = _by_setting(everything)
    return {
        "name": experiment.name,
        "kind": experiment.kind,
        "runs": len(results),
        "done": sum(result.final is not None for result in results),
        "origins": _origins(results),
        "chosen_by_dev": sum(result.dev_draw is not None for result in results),
        "dev_draws": [result.run.name for result in results if result.dev_draw],
        "missing": [{"run": r.run.name, "why": r.missing or "no score"} for r in absent],
        "settings": [rows.setting(experiment, of) for of in by_setting.values()],
        "between": rows.between_models(experiment, by_setting),
    }


def _origins(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The models with a digest that the runs began from, each with its runs."""
    runs_of: dict[tuple[str, str], list[str]] = {}
    for result in results:
        if digest := result.origin.get("digest"):
            runs_of.setdefault((result.origin["model"], digest), []).append(result.run.name)
    return [{"model": m, "digest": d, "runs": names} for (m, d), names in runs_of.items()]


def _models(figures: Mapping[str, Any], output: Path) -> list[str]:
    """As figure 3: the rows over the models, and how much more a row gains with one of them."""
    pictures = [
        model_plot(f"{figures['name']}-{environment}", environment, settings, output)
        for environment, settings in tables.by_environment(figures).items()
    ]
    return [*pictures, tables.between_models(figures)]


def _statistics(experiment: Experiment, setting: dict[str, Any], output: Path) -> list[str]:
    """Tables and the plot of what is paired, measured and used, as far as runs recorded it."""
    title = f"{setting['environment']}, {setting['model']}"
    parts = [tables.gains(setting)]
    if parts[0]:
        parts.append(gain_plot(f"{experiment.name}-{title}-gains", title, setting, output))
    return [
        *parts,
        tables.chosen(setting),
        tables.agreement(setting),
        tables.correlations(setting),
        tables.budgets(setting),
    ]


def _run_as_json(experiment: Experiment, result: Result, output: Path) -> dict[str, Any]:
    run = result.run
    return {
        "experiment": experiment.name,
        "run": run.directory(output).name,
        "method": run.method,
        "environment": run.environment,
        "model": run.model,
        "seed": run.seed,
        "varied": dict(run.varied),
        "scores": result.scores,
        "final": result.final,
        "minutes": round(result.minutes, 1),
    }


def _finals(results: Iterable[Result]) -> list[float]:
    return [result.final for result in results if result.final is not None]


def _by_setting(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """(environment, model) → its results."""
    settings: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        settings.setdefault((result.run.environment, result.run.model), []).append(result)
    return settings


# Sections -----------------------------------------------------------------------------------------


def methods(experiment: Experiment, results: Sequence[Result], output: Path) -> list[str]:
    """As table 2: a row per method, with its gain over SFT.

    That is the SFT that a run itself started from, seed by seed; for another kind of SFT, the
    first.
    """
    parts = []
    for (environment, model), here in _by_setting(results).items():
        env, body, bars = here[0].env, [], []
        backbones = list(paper.table2("sft", env))
        groups = rows.groups(here)
        plain = [row for row in groups if row.results[0].run.options["method"] == "sft"]
        first = plain[0].name if plain else None
        base = {r.run.seed: r.final for r in plain[0].results} if plain else {}
        for row, label in zip(groups, rows.labels(groups), strict=True):
            score = estimate(_finals(row.results))
            gain = None if row.name == first else estimate(_gains(row.results, base))
            reported = paper.table2(row.results[0].run.options["method"], env)
            body.append(
                [
                    label,
                    str(score or "not done"),
                    str(gain or ""),
                    *(f"{reported[b]:.1f}" if b in reported else "" for b in backbones),
                ]
            )
            bars.append((label, score, reported))
        head = ["method", "ours", "ours, gain over SFT", *(f"**Paper:** {b}" for b in backbones)]
        title = f"{environment}, {model}"
        picture = bar_chart(f"{experiment.name}-{environment}-{model}", title, bars, output)
        parts += [f"\n### {title}\n", tables.markdown(head, body), picture]
    return parts


def _gains(
    results: Iterable[Result], base: Mapping[int, float | None] = MappingProxyType({})
) -> list[float]:
    """The runs' gains over the SFT they started from, or over their seed's score in `base`."""
    gains = []
    for result in results:
        own = None if result.run.options["method"] == "sft" else result.scores.get("sft")
        before = base.get(result.run.seed) if own is None else own
        if result.final is not None and before is not None:
            gains.append(result.final - before)
    return gains


def rewards(experiment: Experiment, results: Sequence[Result], output: Path) -> list[str]:
    """As table 3: a row per reward type."""
    parts = []
    for (environment, model), here in _by_setting(results).items():
        body, bars = [], []
        for reward in dict.fromkeys(r.varied("inverse.reward") for r in here):
            of_reward = [r for r in here if r.varied("inverse.reward") == reward]
            score, gain = estimate(_finals(of_reward)), estimate(_gains(of_reward))
            reported = paper.table3(str(reward), here[0].env)
            cell = "" if reported is None else f"{reported:.1f}"
            body.append([str(reward), str(score or "not done"), str(gain or ""), cell])
            bars.append((str(reward), score, {"Llama-3-8B": reported} if reported else {}))
        title = f"{environment}, {model}"
        picture = bar_chart(f"{experiment.name}-{environment}-{model}", title, bars, output)
        head = ["reward", "ours", "ours, gain over SFT", "**Paper:** Llama-3-8B"]
        parts += [f"\n### {title}\n", tables.markdown(head, body), picture]
    return parts


@dataclass(frozen=True)
class Axis:
    """What a curve is drawn over."""

    name: str
    points: Callable[[Result], dict[int, float]]
    """A run's scores: x → score; x of 0 is SFT itself"""
    paper_best: dict[str, int]
    """Method → where the paper's curve peaks"""


def iterations(experiment: Experiment, results: Sequence[Result], output: Path) -> list[str]:
    """As figure 4(a): the score after each iteration of one run; 0 is SFT."""

    def points(result: Result) -> dict[int, float]:
        scores = {0: result.scores["sft"]} if "sft" in result.scores else {}
        for stage, score in result.scores.items():
            name, _, number = stage.partition("-")
            if name == "iteration":
                scores[int(number)] = score
        return scores

    axis = Axis("iteration", points, paper.BEST_ITERATION)
    return _curves(experiment, results, axis, output)


def practice(experiment: Experiment, results: Sequence[Result], output: Path) -> list[str]:
    """As figure 4(b): the final score by the number of practice actions."""

    def points(result: Result) -> dict[int, float]:
        number = result.varied("reflection.practice")
        return {} if result.final is None else {int(number): result.final}

    axis = Axis("practice number", points, paper.BEST_PRACTICE)
    return _curves(experiment, results, axis, output)


SECTIONS: dict[str, Callable[[Experiment, Sequence[Result], Path], list[str]]] = {
    "methods": methods,
    "rewards": rewards,
    "models": methods,
    "iterations": iterations,
    "practice": practice,
}


def _curves(
    experiment: Experiment, results: Sequence[Result], axis: Axis, output: Path
) -> list[str]:
    """A table and a plot of score over the axis, a line per method."""
    parts = []
    for (environment, model), here in _by_setting(results).items():
        curves = []
        for number, method in enumerate(experiment.methods):
            of_method = [result for result in here if result.run.method == method]
            learned_by = of_method[0].run.options["method"]
            best = axis.paper_best.get(learned_by) if paper.has(method, learned_by) else None
            curve = Curve(rows.label(method), f"C{number}", {}, {}, best)
            for result in of_method:
                curve.add(result.run.seed, axis.points(result), result.scores.get("sft"))
            curves.append(curve)
        xs = sorted({x for curve in curves for x in curve.scores})
        body = []
        for curve in curves:
            papers = "" if curve.paper_best is None else str(curve.paper_best)
            scores, gains = curve.scores, estimates(curve.gains)
            body.append([curve.label, *(str(scores.get(x, "")) for x in xs), papers])
            body.append([f"{curve.label}, gain", *(str(gains.get(x, "")) for x in xs), ""])
        title = f"{environment}, {model}"
        name = f"{experiment.name}-{environment}-{model}"
        head = [axis.name, *map(str, xs), f"**Paper:** best {axis.name} (WebShop)"]
        picture = curve_plot(name, title, axis.name, curves, output)
        parts += [f"\n### {title}\n", tables.markdown(head, body), picture]
    return parts
