"""Conversations as rows of a padded batch, for TRL's trainers.

Where a template rewrites history a row branches (`agents.encoded`). Positions and attention then
follow each token's path, so that its log-probability is that of a sequence of its own. The trainers
shift labels by one; that stays right, since a reply stands behind the last token of its state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stepagent.agents.encoded import Encoded, Joins, depths, reaches
from stepagent.training.trees.attention import repeat_heads
from stepagent.training.trees.compat import check_path


@dataclass(frozen=True)
class RowsPattern:
    """Attention in a batch of rows that branch."""

    mask: Tensor
    """bool [B, 1, S, S], true where the row's token sees the column's"""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        keys, values = repeat_heads(key, query), repeat_heads(value, query)
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=self.mask, scale=scale, dropout_p=dropout
        )

    def to(self, device: Any, **options: Any) -> RowsPattern:
        """As a tensor's, for accelerate."""
        return RowsPattern(self.mask.to(device, **options))


@dataclass(frozen=True)
class Rows:
    """How a model reads conversations that branch."""

    packed: bool
    """A row holds all steps that share their beginning; else each has a row of its own."""
    window: int | None = None
    """As in `sliding_window`."""

    @staticmethod
    def of(model: Any, conversations: Sequence[Encoded]) -> Rows:
        """Packed where none branches, or the model can run the paths as step trees."""
        branching = [encoded for encoded in conversations if encoded.joins]
        if not branching:
            return PLAIN
        try:
            return Rows(True, check_path(model, max(encoded.longest for encoded in branching)))
        except ValueError:
            return Rows(packed=False)

    def split(self, encoded: Encoded) -> list[Encoded]:
        """A conversation as the rows that it takes."""
        if not encoded.joins:
            return [encoded]
        if self.packed:
            return [part for _, part in encoded.parts()]
        return [encoded.alone(step) for step in range(len(encoded.replies))]

    def inputs(self, joins: Sequence[Joins], sizes: Sequence[int]) -> dict[str, Any]:
        """What a model needs besides ids and padding mask for B rows of `sizes` tokens: nothing, or
        position_ids int64 [B, longest] and the pattern of attention."""
        if not any(joins):
            return {}
        longest = max(sizes)
        positions = torch.zeros((len(sizes), longest), dtype=torch.long)
        reach = torch.arange(1, longest + 1).repeat(len(sizes), 1)  # padding sees itself
        for i, (of_row, size) in enumerate(zip(joins, sizes, strict=True)):
            positions[i, :size] = torch.tensor(depths(of_row, size))
            reach[i, :size] = torch.tensor(reaches(of_row, size))
        place = torch.arange(longest)
        query, key = place[:, None], place[None, :]
        mask = (key <= query) & (query < reach[:, None, :])
        if self.window is not None:
            mask &= positions[:, :, None] - positions[:, None, :] < self.window
        return {"position_ids": positions, "step_tree": RowsPattern(mask[:, None])}


PLAIN = Rows(packed=True)
"""Of conversations that do not branch."""
