"""A stage of a training run: what the code that does it needs to know of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stepagent.files import is_file
from stepagent.training.runs.directory import MOMENTS, RunDirectory, shards_of
from stepagent.training.runs.times import Times
from stepagent.training.sampler.interface import Sampler
from stepagent.training.sampler.local import LocalSampler

OnUpdate = Callable[[int, dict[str, float]], None]
"""(units done, figures of the last one) → None"""


def _quiet() -> Console:
    return Console(quiet=True)


@dataclass
class Stage:
    """A named stage: its place in the run's directory, its seed, its figures, its progress bars.

    `TrainingRun.stage` opens one and, at its end, keeps the policy.
    """

    name: str
    directory: RunDirectory
    seed: int = 0
    checkpoint_seconds: float = 300.0
    """Time between checkpoints; 0: after every update."""
    console: Console = field(default_factory=_quiet)
    keep_optimiser: bool = False
    """Whether AdamW goes on with the newest moments of an earlier stage, and keeps its own."""
    earlier: tuple[str, ...] = ()
    """Names of the stages before, in order."""
    done: bool = False
    """Whether it was done before: then there is nothing left to do."""
    figures: dict[str, float] = field(default_factory=dict)
    """What it reports in `stages.json` and `summary.json`."""
    sampler: Sampler = field(default_factory=LocalSampler)
    """Where the policy's replies are drawn."""
    times: Times = field(default_factory=Times)
    """What its time goes into."""

    @property
    def before(self) -> str:
        """Name of the stage before; "" for the first."""
        return self.earlier[-1] if self.earlier else ""

    @property
    def checkpoint(self) -> Path:
        """Where the state within the stage is kept."""
        return self.directory.checkpoint(self.name)

    @property
    def artifacts(self) -> Path:
        """A folder for what it keeps beside the policy."""
        return self.directory.artifacts(self.name)

    def part(self, name: str, keep_optimiser: bool = False) -> Stage:
        """Something that is trained within this stage, with checkpoints and metrics of its own; by
        option with AdamW's moments of the same part in an earlier stage."""
        return replace(
            self,
            name=f"{self.name}-{name}",
            earlier=tuple(f"{stage}-{name}" for stage in self.earlier),
            keep_optimiser=keep_optimiser,
            figures={},
        )

    def newest(self, name: str) -> Path | None:
        """The file `name` of the latest earlier stage that has one (where sharded, a folder without
        the suffix stands in for it). A stage with nothing to learn leaves none."""
        paths = (self.directory.artifacts(stage) / name for stage in reversed(self.earlier))
        return next((p for p in paths if is_file(p) or shards_of(p).is_dir()), None)

    @property
    def moments_before(self) -> Path | None:
        """The newest of AdamW's moments that an earlier stage has kept."""
        return self.newest(MOMENTS)

    def resume_at(self, update: int) -> None:
        """Drops the metrics after `update`: those updates are about to be made again.

        Raises RuntimeError where the stage is done already.
        """
        if self.done:
            raise RuntimeError(f"stage {self.name} is done: skip its work where `stage.done`")
        self.directory.metrics.rewind(self.name, update)

    def log(self, update: int, figures: dict[str, float]) -> None:
        """One line of `metrics.jsonl`; `update` counts within the stage, from 1."""
        self.times.tokens += figures.get("tokens", 0)
        self.directory.metrics.log(self.name, update, **figures)

    def note(self, text: str) -> None:
        """A line on the console."""
        self.console.print(f"{self.name}: {text}", markup=False)

    def stop(self, reason: str) -> None:
        """Ends the method after this stage (see `TrainingRun.stopped`)."""
        self.note(f"stopped: {reason}")
        self.figures["stopped"] = 1.0

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[OnUpdate]:
        """A progress bar with the latest loss; yields the callback that moves it."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, refresh_per_second=2) as bar:
            task = bar.add_task(self.name, total=total, note=unit)

            def move(done: int, figures: dict[str, float]) -> None:
                note = f"loss {figures['loss']:.3f}" if "loss" in figures else unit
                bar.update(task, completed=done, note=note)

            yield move
