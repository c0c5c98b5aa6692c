"""The metrics of a run: what each update logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepagent.files import write_text


class Metrics:
    """Figures of a run as JSON lines and TensorBoard events."""

    def __init__(self, path: Path, main: bool = True):
        self.path, self._main = path / "metrics.jsonl", main
        self._events = path / "tensorboard"
        self._writer: Any = None

    def log(self, stage: str, update: int, **figures: float) -> None:
        """One line; `update` counts within the stage."""
        if not self._main:
            return
        line = {"stage": stage, "update": update} | {k: _number(v) for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events))
        for name, value in figures.items():
            self._writer.add_scalar(f"{stage}/{name}", value, update)

    def rewind(self, stage: str, update: int) -> None:
        """Drops the stage's lines after `update`: they are about to be written again."""
        if not self._main or not self.path.is_file():
            return
        lines = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
                if row["stage"] != stage or row["update"] <= update:
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # truncated by a kill
        write_text(self.path, "".join(lines))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _number(value: float) -> float | int:
    return value if isinstance(value, int) else round(float(value), 6)
