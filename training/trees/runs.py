"""Attention of a trunk that branches, run by run: each run of tokens reads its whole path at once.

Any device, window and dropout will do. But a run copies the keys of its path and has a mask: on a
CPU `trees/cascade.py` is faster where it applies.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stepagent.agents.encoded import Joins, depths, ranges

RUN_TOKENS = 1024
"""Tokens attend in runs of no more than this, but for the first."""


@dataclass(frozen=True)
class Run:
    """Tokens of a trunk that follow one another."""

    size: int
    pieces: tuple[int, ...]
    """The pieces of the trunk that are their path, of n tokens in all: their own are at the end"""
    mask: Tensor | None
    """bool [1, 1, size, n]; None where it is causal: the path is these tokens alone"""


@dataclass(frozen=True)
class Runs:
    """The tokens of a trunk, in order."""

    pieces: tuple[int, ...]
    """Sizes of what the trunk is cut into, so that each run reads complete pieces. (Pieces cost
    less than a choice of columns, whose gradient is added up token by token.)"""
    runs: tuple[Run, ...]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """[1, H, S, D] each."""
        sdpa = functools.partial(F.scaled_dot_product_attention, scale=scale, dropout_p=dropout)
        keys, values = (x.split(self.pieces, dim=2) for x in (key, value))
        rows = query.split([run.size for run in self.runs], dim=2)
        parts = [
            sdpa(
                own,
                torch.cat([keys[i] for i in run.pieces], dim=2),
                torch.cat([values[i] for i in run.pieces], dim=2),
                attn_mask=run.mask,
                is_causal=run.mask is None,
            )
            for own, run in zip(rows, self.runs, strict=True)
        ]
        return torch.cat(parts, dim=2)


def trunk_runs(joins: Joins, size: int, window: int | None, device: torch.device) -> Runs:
    """How the `size` tokens of a trunk that branches see one another; `window` as in
    `sliding_window`. Long runs are cut, so that few of their tokens read columns that only later
    ones see."""
    depth = torch.tensor(depths(joins, size), device=device)
    starts = {0, *(start for start, _ in joins if start < size)}
    ends = sorted({*starts, size})
    starts |= {at for a, b in itertools.pairwise(ends[1:]) for at in range(a, b, RUN_TOKENS)}
    cuts = sorted({*starts, size, *(at for start, at in joins if start < size)})
    bounds = list(itertools.pairwise(cuts))
    runs = []
    for start, end in itertools.pairwise(sorted({*starts, size})):
        on_path = ranges(joins, end)
        pieces = [
            i for i, (a, b) in enumerate(bounds) if any(c <= a and b <= d for c, d in on_path)
        ]
        mask = None
        if window is not None or on_path != [(start, end)]:
            columns = torch.cat([torch.arange(a, b, device=device) for a, b in on_path])
            rows = torch.arange(start, end, device=device)
            mask = columns[None, :] <= rows[:, None]
            if window is not None:
                mask &= depth[rows][:, None] - depth[columns][None, :] < window
            mask = mask[None, None]
        runs.append(Run(end - start, tuple(pieces), mask))
    return Runs(tuple(b - a for a, b in bounds), tuple(runs))
