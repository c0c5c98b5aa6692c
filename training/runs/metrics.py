"""The metrics of a run: what each update logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepagent.errors import UsageError
from stepagent.files import is_file, open_file, parse_json, read_bytes, read_text, write_text

TENSORBOARD = "tensorboard"


class Metrics:
    """Figures of a run as JSON lines, and for trackers: TensorBoard unless `report_to` says others.

    A tracker knows an update by its number over all stages.
    """

    def __init__(self, path: Path, main: bool = True):
        self.path, self._main = path / "metrics.jsonl", main
        self._events = path / TENSORBOARD
        self._writes_events = True
        self._writer: Any = None
        self._trackers: list[Any] = []
        self._count: int | None = None
        """Lines of the file; None: not counted."""

    def report_to(self, names: Sequence[str], run: str, options: Mapping[str, Any]) -> None:
        """Has trackers of accelerate follow the run, which has a name and options.

        Raises UsageError for a tracker that is unknown or not installed.
        """
        check_trackers(names)
        self._writes_events = TENSORBOARD in names
        if not self._main:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        for name in names:
            if name != TENSORBOARD:
                kind = LOGGER_TYPE_TO_CLASS[name]
                place = {"logging_dir": self.path.parent} if kind.requires_logging_directory else {}
                tracker = kind(run, **place)
                tracker.start()
                tracker.store_init_configuration(dict(options))
                self._trackers.append(tracker)

    def log(self, stage: str, update: int, **figures: float) -> None:
        """One line; `update` counts within the stage."""
        if not self._main:
            return
        line = {"stage": stage, "update": update} | {k: _number(v) for k, v in figures.items()}
        with open_file(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._count is not None:
            self._count += 1
        self.track(stage, update, figures)

    def track(self, stage: str, update: int, figures: Mapping[str, float]) -> None:
        """For trackers alone."""
        if not self._main:
            return
        if self._writes_events:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._events))
            for name, value in figures.items():
                self._writer.add_scalar(f"{stage}/{name}", value, update)
        if self._trackers:
            values = {f"{stage}/{name}": value for name, value in figures.items()}
            if self._count is None:
                self._count = len(read_bytes(self.path).splitlines()) if is_file(self.path) else 0
            for tracker in self._trackers:
                tracker.log(values, step=self._count)

    def rewind(self, stage: str, update: int) -> None:
        """Drops the stage's lines after `update`: they are about to be written again."""
        if not self._main or not is_file(self.path):
            return
        lines = []
        for line in read_text(self.path, errors="replace").splitlines():
            try:
                row = parse_json(line)
                if row["stage"] != stage or row["update"] <= update:
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # truncated by a kill
        write_text(self.path, "".join(lines))
        self._count = None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for tracker in self._trackers:
            tracker.finish()
        self._trackers.clear()


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for a tracker that is unknown or not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(
                f"report_to names {name!r}, which is no tracker: choose of "
                f"{', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
        if name != TENSORBOARD and name not in map(str, get_available_trackers()):
            raise UsageError(f"report_to names {name!r}, which is not installed: install {name}")


def _number(value: float) -> float | int:
    return value if isinstance(value, int) else round(float(value), 6)
