"""Learning curves of training runs, from their `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepagent.files import is_file, parse_json, read_bytes

POINTS = 200
"""Maximum number per curve and stage; of more, neighbours are averaged."""
_FIRST = ("loss", "accuracy", "margin", "reward", "score", "entropy", "grad_norm")
"""Figures that come first."""


def load(paths: Sequence[str | Path], notes: list[str]) -> list[dict[str, Any]]:
    """A dict for each path that is a training run with metrics: `folder`, `name`, `stages` (`name`,
    `updates`) and `figures`, each with a `name` and its `curves`: `stage` (its number), x, y.

    Lines that cannot be read are left out and reported in `notes`.
    """
    curves = []
    for path in dict.fromkeys(map(Path, paths)):
        file = path / "metrics.jsonl"
        if is_file(file):
            rows, bad = _rows(file)
            if bad:
                notes.append(f"{file}: {len(bad)} lines cannot be read (line {bad[0]}); left out")
            if rows:
                curves.append(_curves(path, rows))
    return curves


def _rows(file: Path) -> tuple[list[dict[str, Any]], list[int]]:
    rows, bad = [], []
    for number, line in enumerate(read_bytes(file).splitlines(), 1):
        try:
            row = parse_json(line)
            rows.append({**row, "stage": str(row["stage"]), "update": int(row["update"])})
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    return rows, bad


def _curves(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    names = {name for row in rows for name in row} - {"stage", "update"}
    order = sorted(names, key=lambda n: (_FIRST.index(n) if n in _FIRST else len(_FIRST), n))
    figures = []
    for name in order:
        curves = []
        for place, stage in enumerate(stages):
            points = [
                (row["update"], float(row[name]))
                for row in rows
                if row["stage"] == stage and _is_number(row.get(name))
            ]
            if points:
                x, y = _thinned(points)
                curves.append({"stage": place, "x": x, "y": y})
        if curves:
            figures.append({"name": name, "curves": curves})
    updates = {s: max(row["update"] for row in rows if row["stage"] == s) for s in stages}
    return {
        "folder": str(path.absolute()),
        "name": path.absolute().name,
        "stages": [{"name": s, "updates": updates[s]} for s in stages],
        "figures": figures,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """At most POINTS points: means of neighbours.

    >>> _thinned([(1, 2.0), (2, 3.0)])
    ([1.0, 2.0], [2.0, 3.0])
    """
    points = sorted(points)
    width = -(-len(points) // POINTS)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    x = [sum(p[0] for p in group) / len(group) for group in groups]
    y = [sum(p[1] for p in group) / len(group) for group in groups]
    return [float(f"{v:.6g}") for v in x], [float(f"{v:.6g}") for v in y]
