"""The plots of a sweep's report, scores in percent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from stepagent.training.sweep.statistics import Estimate, estimates
from stepagent.training.sweep.tables import base, paper_gain


@dataclass
class Curve:
    """A method's scores over an axis, in percent."""

    label: str
    color: str
    seeds: dict[int, dict[int, float]]
    """Seed → x → score"""
    gains: dict[int, list[float]]
    """x → how far each run is above the SFT that it started from"""
    paper_best: int | None
    """Where the paper's curve peaks"""

    @property
    def scores(self) -> dict[int, Estimate]:
        xs = sorted({x for line in self.seeds.values() for x in line})
        return estimates({x: [s[x] for s in self.seeds.values() if x in s] for x in xs})

    def add(self, seed: int, points: Mapping[int, float], sft: float | None) -> None:
        """A run's scores, x → score; x of 0 is SFT itself."""
        for x, score in points.items():
            self.seeds.setdefault(seed, {})[x] = score
            if x and sft is not None:
                self.gains.setdefault(x, []).append(score - sft)


def _figure(width: float, panels: int = 1, height: float = 3.6) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, panels, figsize=(width, height), layout="constrained")


def _save(figure: Any, name: str, title: str, output: Path) -> str:
    from matplotlib import pyplot

    file_name = re.sub(r"[^\w.-]+", "-", name).lower()  # a link in Markdown has no spaces
    path = output / "plots" / f"{file_name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"![{title}](plots/{path.name})\n"


def bar_chart(
    name: str,
    title: str,
    bars: Sequence[tuple[str, Estimate | None, dict[str, float]]],
    output: Path,
) -> str:
    """Bars (label, ours, backbone → the paper's): ours with intervals and a dot per seed, the
    paper's as marks. Returns the Markdown that shows the picture."""
    figure, axes = _figure(max(5.0, 1.0 * len(bars)))
    for x, (_, ours, _) in enumerate(bars):
        if ours:
            half = 0 if math.isnan(ours.half_width) else ours.half_width
            axes.bar(x, ours.mean, yerr=half, color="tab:blue", alpha=0.6, capsize=3, width=0.6)
            axes.scatter([x - 0.2] * len(ours.values), ours.values, color="black", s=9, zorder=3)
    backbones = dict.fromkeys(backbone for *_, paper in bars for backbone in paper)
    for marker, backbone in zip("D^sv", backbones, strict=False):
        marks = [(x, paper[backbone]) for x, (*_, paper) in enumerate(bars) if backbone in paper]
        label = f"the paper's, {backbone}"
        axes.scatter(*zip(*marks, strict=True), marker=marker, color="tab:gray", label=label)
    axes.set_xticks(range(len(bars)), [label for label, *_ in bars], rotation=30, ha="right")
    axes.set(ylabel="score, %", title=title, ylim=(0, 105))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower right", ncols=2, fontsize="small")  # hides no seed
    return _save(figure, name, title, output)


def gain_plot(name: str, title: str, setting: Mapping[str, Any], output: Path) -> str:
    """`gain_figure` as a file. Returns the Markdown that shows the picture."""
    return _save(gain_figure(title, setting), name, title, output)


def gain_figure(title: str, setting: Mapping[str, Any]) -> Any:
    """Paired gains of a setting in `report.json`, a line per row: mean, 95 % interval, a dot per
    seed, the paper's gains as marks. Inside the grey band a row's gain is too small to be seen."""
    shown = [row for row in setting["rows"] if row["gain"]][::-1]
    figure, axes = _figure(8.0, height=1.4 + 0.36 * len(shown))
    for y, row in enumerate(shown):
        gain = row["gain"]
        band = gain["detectable_holm"]
        unseen = "too small to be seen" if not y else None
        gray = {"height": 0.7, "color": "tab:gray", "alpha": 0.18}
        axes.barh(y, 2 * band, left=-band, label=unseen, **gray)
        axes.plot([gain["low"], gain["high"]], [y, y], color="tab:blue", linewidth=2)
        axes.plot(gain["mean"], y, "o", color="tab:blue", label="gain, 95 %" if not y else None)
        seeds = "one seed" if not y else None
        axes.plot(gain["by_seed"], [y - 0.22] * len(gain["by_seed"]), "k.", ms=4, label=seeds)
        for marker, backbone in zip("D^sv", row["paper"], strict=False):
            if (reported := paper_gain(setting, row, backbone)) is not None:
                style = {"color": "tab:orange", "ms": 5, "fillstyle": "none"}
                axes.plot(reported, y + 0.22, marker, **style, label=f"the paper's, {backbone}")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [row["label"] for row in shown])
    axes.set(xlabel=f"gain over {base(setting)}, percentage points", title=title)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    where = {"loc": "outside lower center", "ncols": 5, "fontsize": "small", "frameon": False}
    figure.legend(unique.values(), unique, **where)
    return figure


def model_plot(name: str, title: str, settings: Sequence[Mapping[str, Any]], output: Path) -> str:
    """`model_figure` as a file. Returns the Markdown that shows the picture."""
    return _save(model_figure(title, settings), f"{name}-models", title, output)


def model_figure(title: str, settings: Sequence[Mapping[str, Any]]) -> Any:
    """An environment's settings in `report.json`, one per model: on the left each row's scores,
    with a dot per seed, on the right its gains over the baseline, with 95 % intervals."""
    figure, (left, right) = _figure(9.0, 2)
    settings = [s for s in settings if any(row["score"] for row in s["rows"])] or settings
    names = list(dict.fromkeys(row["name"] for setting in settings for row in setting["rows"]))
    step = min(0.12, 0.8 / max(1, len(names)))  # all rows of a model stay beside it
    for number, name in enumerate(names):
        shift, color = step * (number - (len(names) - 1) / 2), f"C{number}"
        found = [
            (x + shift, row)
            for x, setting in enumerate(settings)
            for row in setting["rows"]
            if row["name"] == name and row["score"]
        ]
        for x, row in found:
            values = row["score"]["values"]
            left.plot([x] * len(values), values, ".", color=color, alpha=0.4, markersize=4)
        means = [row["score"]["mean"] for _, row in found]
        label = found[0][1]["label"] if found else name
        left.plot([x for x, _ in found], means, "o-", color=color, label=label)
        gains = [(x, row["gain"]) for x, row in found if row["gain"]]
        right.plot([x for x, _ in gains], [gain["mean"] for _, gain in gains], "o-", color=color)
        for x, gain in gains:
            right.plot([x, x], [gain["low"], gain["high"]], "_-", color=color, markersize=7)
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.set_xticks(range(len(settings)), [setting["model"] for setting in settings])
        axes.set_xlim(-0.5, len(settings) - 0.5)
    left.set(ylabel="score, %", title=title)
    right.set(ylabel="percentage points", title=fill(f"gain over {base(settings[0])}", 46))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def curve_plot(name: str, title: str, axis: str, curves: Sequence[Curve], output: Path) -> str:
    """On the left each seed's scores and their mean, on the right the gain over SFT with intervals.

    A dotted line is where the paper has its best. Returns the Markdown that shows the picture.
    """
    figure, (left, right) = _figure(9.0, 2)
    for number, curve in enumerate(curves):
        for line in curve.seeds.values():
            left.plot(list(line), list(line.values()), color=curve.color, alpha=0.35, linewidth=1)
        scores, gains = curve.scores, estimates(curve.gains)
        means = [e.mean for e in scores.values()]
        left.plot(list(scores), means, marker="o", color=curve.color, label=curve.label)
        half = [0 if math.isnan(e.half_width) else e.half_width for e in gains.values()]
        xs = [x + 0.08 * number for x in gains]  # beside each other
        means = [e.mean for e in gains.values()]
        right.errorbar(xs, means, yerr=half, marker="o", capsize=3, color=curve.color)
        if curve.paper_best is not None:
            label = f"the paper's best for {curve.label}"
            for axes in (left, right):
                axes.axvline(curve.paper_best, linestyle=":", color=curve.color, label=label)
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.set_xticks(sorted({x for curve in curves for x in curve.scores}))
    left.set(xlabel=axis, ylabel="score, %", title=title)
    right.set(
        xlabel=axis, ylabel="gain over SFT, points", title="mean and 95 % interval over seeds"
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _save(figure, name, title, output)
