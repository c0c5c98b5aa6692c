"""What an evaluation shows in the terminal: a running score, and a table at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stepagent.envs.trajectory import Trajectory

_PLAIN_EVERY = 10.0
"""Seconds between two progress lines if the output is not a terminal."""


class RunningScore:
    """Progress bar with running mean score and success; plain lines without a terminal."""

    def __init__(self, title: str, total: int, done: list[Trajectory], *, console: Console):
        self.title, self.total, self.console = title, total, console
        self.count = self.failed = 0
        self.reward = self.success = 0.0
        self._shown = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[score]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        for trajectory in done:
            self._count(trajectory)
        self._task = self._bar.add_task(title, total=total, completed=self.count, score=self.text())

    def text(self) -> str:
        if not self.count:
            return "no episode yet"
        failed = f", {self.failed} failed" if self.failed else ""
        mean, success = self.reward / self.count, self.success / self.count
        return f"score {mean:.3f}, success {success:.1%}{failed}"

    def _count(self, trajectory: Trajectory) -> None:
        self.count += 1
        self.failed += bool(trajectory.error)
        if not trajectory.error:
            self.reward += trajectory.reward
            self.success += trajectory.success

    def add(self, trajectory: Trajectory) -> None:
        self._count(trajectory)
        if trajectory.error:
            self.console.print(f"{trajectory.task_id} failed: {trajectory.error}", markup=False)
        self._bar.update(self._task, completed=self.count, score=self.text())
        now = time.monotonic()
        if not self.console.is_terminal and now - self._shown >= _PLAIN_EVERY:
            self._shown = now
            line = f"{self.title}: {self.count}/{self.total} episodes, {self.text()}"
            self.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> RunningScore:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()


def summary_table(summary: dict[str, Any]) -> Table:
    """The summary as a table: one row per task type, then all of them."""
    title = f"{summary['agent']} on {summary['env']}, split {summary['split']}"
    table = Table(title=title, box=box.SIMPLE, show_footer=bool(summary["by_type"]))
    total = ["all", _episodes(summary), f"{summary['reward_mean']:.3f}", *_rates(summary)]
    heads = ("task type", "n", "score", "success", "valid", "cut off", "steps")
    for i, (head, foot) in enumerate(zip(heads, total, strict=True)):
        side: Any = "right" if i else "left"
        table.add_column(head, footer=foot, justify=side, no_wrap=i > 0, overflow="fold")
    for name, part in summary["by_type"].items():
        table.add_row(name, _episodes(part), f"{part['reward_mean']:.3f}", *_rates(part))
    if not summary["by_type"]:
        table.add_row(*total)
    table.caption = _caption(summary)
    return table


def _episodes(part: dict[str, Any]) -> str:
    return f"{part['episodes']}" + (f" ({part['failed']} failed)" if part["failed"] else "")


def _rates(part: dict[str, Any]) -> list[str]:
    rates = [f"{part[name]:.1%}" for name in ("success_rate", "valid_rate", "truncated_rate")]
    return [*rates, f"{part['steps_mean']:.1f}"]


def _caption(summary: dict[str, Any]) -> str:
    low, high = summary["reward_ci95"]
    metrics = [f"{name} {value:.3f}" for name, value in summary["metrics"].items()]
    interval = rf"score {summary['reward_mean']:.3f}, 95 % interval \[{low:.3f}, {high:.3f}]"
    count = summary.get("endings", {}).get("length")
    at_limit = [f"{count} replies cut at their limit"] if count else []
    figures = "; ".join([interval, *metrics, *at_limit, f"{summary['seconds']:.0f} s"])
    notes = [f"{reason}: {count}" for reason, count in summary.get("data_notes", {}).items()]
    return figures + (f"\ndata: {escape('; '.join(notes))}" if notes else "")
