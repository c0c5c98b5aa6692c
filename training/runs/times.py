"""What a stage's time goes into, and the memory that it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Times:
    """Seconds by kind of work; what is done within other work does not count as that, too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Measures the body."""
        self._stop()
        self._open.append((kind, time.perf_counter()))
        try:
            yield
        finally:
            self._stop()
            self._open.pop()
            self._go_on()

    def take(self) -> dict[str, float]:
        """The seconds so far, rounded, which then start anew."""
        self._stop()
        taken = {f"seconds_{kind}": round(value, 3) for kind, value in self.seconds.items()}
        self.seconds = {}
        self._go_on()
        return taken

    def _stop(self) -> None:
        if self._open:
            kind, start = self._open[-1]
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - start

    def _go_on(self) -> None:
        if self._open:
            kind, _ = self._open[-1]
            self._open[-1] = kind, time.perf_counter()


def of_stage(times: Times, tokens: int) -> dict[str, float]:
    """What a stage that has trained on so many tokens reports: seconds by kind of work, tokens per
    second of its updates, on a GPU its peak memory in GB. Both counts then start anew."""
    report = times.take()
    if report.get("seconds_updates"):
        report["tokens_per_second"] = round(tokens / report["seconds_updates"], 1)
    if torch.cuda.is_available():
        report["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        torch.cuda.reset_peak_memory_stats()
    return report
