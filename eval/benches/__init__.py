"""What benchmarks share: their options, their rows, and how two sides are measured.

Beside it stand the benchmarks of environments and rollouts; those of training live in
`training.benchmarks`. `eval.bench` is the command.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepagent import command_line


@dataclass
class Options:
    """Measures a part of StepAgent against the plain way of doing the same."""

    name: str
    """Benchmark to run: envs, expert, rollout, practice, reflection, own-states, grpo, inverse,
    server, soak or vector."""
    out: Path | None = None
    """JSON file for the rows. null: only the table is shown."""
    env: str = "stepagent/ScienceWorld-v0"
    """Environment, for the benchmark `envs`."""
    repeats: int = 3
    """How often each side is measured; the medians are reported."""
    model: str = "smollm2"
    """Language model, for benchmarks that need one: smollm2, or a folder or hub name."""
    device: str = "auto"
    """Device on which the model runs: auto, cpu or cuda."""
    dtype: str = "auto"
    """Number format of the model: auto, float32 or bfloat16."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further settings of the benchmark, such as --args.episodes 8."""


MOST = 1e6
"""A ratio at most: a side may be 0, and JSON knows no infinity."""


@dataclass(frozen=True)
class Row:
    """One comparison. `ratio` says how many times better ours is: above 1, ours wins."""

    name: str
    ours: float
    baseline: float
    ratio: float
    unit: str

    @staticmethod
    def more_is_better(name: str, ours: float, baseline: float, unit: str) -> Row:
        return Row(name, ours, baseline, _ratio(ours, baseline), unit)

    @staticmethod
    def less_is_better(name: str, ours: float, baseline: float, unit: str) -> Row:
        return Row(name, ours, baseline, _ratio(baseline, ours), unit)


def _ratio(value: float, base: float) -> float:
    if value == base:
        return 1.0
    return min(value / base, MOST) if base else MOST


def measure(
    ours: Callable[[], Any], baseline: Callable[[], Any], repeats: int
) -> tuple[float, float]:
    """Median seconds of both, called in turn; who comes first alternates.

    Each is called once beforehand where `repeats` allows it to be afforded (3 or more), so that
    caches, compilers and processors are warm.
    """
    if repeats >= 3:
        ours()
        baseline()
    mine, theirs = measure_sides([ours, baseline], repeats)
    return mine, theirs


def measure_sides(sides: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each of several sides, called in turn in alternating order, no warm-up."""
    seconds: list[list[float]] = [[] for _ in sides]
    for number in range(repeats):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            started = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def play_sides(
    timed: Callable[[Any, Any], tuple[float, float]],
    sides: Sequence[Any],
    plans: Sequence[Any],
    repeats: int,
    warm_up: int = 0,
) -> list[tuple[float, float]]:
    """For each side, median seconds of (all steps, all resets) over all plans.

    `timed` (side, plan) gives the seconds of one plan's steps and of its reset. Sides are played in
    alternating order; the first `warm_up` rounds do not count.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(-warm_up, repeats):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            steps, resets = map(sum, zip(*(timed(sides[side], p) for p in plans), strict=True))
            if number >= 0:
                taken[side].append((steps, resets))
    return [
        (statistics.median(s for s, _ in times), statistics.median(r for _, r in times))
        for times in taken
    ]


def settings(options: Options, **defaults: Any) -> dict[str, Any]:
    """A benchmark's own settings: its defaults under `options.args`.

    Raises ValueError for a name that is not among the defaults, listing them.
    """
    for name in options.args:
        if name not in defaults:
            raise ValueError(command_line.unknown_key(name, defaults))
    return {**defaults, **options.args}
