"""What a stage's time goes into, how much of the device that uses, and the memory that it takes.

The share of the peak is that of the updates: N tokens in t seconds on p processes make

    N (4 P + 2 P_trained) / (t p peak)

of it, with P weights, of which P_trained are trained: 2 per weight and token in the forward pass,
2 for the gradient of what comes in, 2 for that of a trained weight. Attention's own products, and
what gradient checkpointing computes again, are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""FLOP/s of dense bfloat16 products, by a part of the GPU's name (vendors' data sheets)."""


class Times:
    """Seconds by kind of work; what is done within other work does not count as that, too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.tokens = 0.0
        """Read in updates during that time."""
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
        """The seconds so far, rounded; they and the tokens then start anew."""
        self._stop()
        taken = {f"seconds_{kind}": round(value, 3) for kind, value in self.seconds.items()}
        self.seconds, self.tokens = {}, 0.0
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


def peak_flops(device: torch.device) -> float:
    """FLOP/s of a GPU whose data sheet is known; 0 of anything else."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAK.items() if part in name), 0.0)


def flops_per_token(model: nn.Module) -> int:
    """Of an update, for each token that it reads."""
    return sum(p.numel() * (6 if p.requires_grad else 4) for p in model.parameters())


def of_stage(times: Times, flops: float = 0.0, peak: float = 0.0) -> dict[str, float]:
    """What a stage reports: seconds by kind of work, tokens per second of its updates, on a GPU its
    peak memory in GB. All counts then start anew.

    `flops` are those of a token, `peak` what all processes could do in a second; where that is
    known (above 0), the share of it that the updates reached is reported too.
    """
    tokens, report = times.tokens, times.take()
    seconds = report.get("seconds_updates")
    if tokens and seconds:
        report["tokens_per_second"] = round(tokens / seconds, 1)
        if peak:
            report["share_of_peak"] = round(tokens * flops / seconds / peak, 4)
    if torch.cuda.is_available():
        report["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        torch.cuda.reset_peak_memory_stats()
    return report
