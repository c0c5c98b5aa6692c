"""Attention of a pass in which each token belongs to one of many conversations.

On a CPU a pass costs what its tokens cost, so conversations that read an observation and others
that generate a token share one without padding: all new tokens are one row, and only attention
tells them apart. Conversations with one new token are answered together, each from its own slot of
the cache (a view; nothing is copied); one that reads several attends alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "packed_slots"
"""The attention implementation of such a pass."""


@dataclass(frozen=True)
class Reading:
    """A conversation with several new tokens."""

    slot: int
    start: int
    """Its first column of the pass"""
    end: int
    before: int
    """Tokens in its slot before the pass"""


@dataclass(frozen=True)
class Packing:
    """Which tokens of a pass attend to which slots."""

    span: range
    """Adjacent slots, those of all conversations with one new token among them"""
    columns: Tensor
    """Of each slot of `span`, the column of its new token, int64 (span,); any where it has none"""
    takes_part: Tensor
    """Which slots of `span` have one, bool (span,)"""
    mask: Tensor
    """Which tokens of its slot each may attend to, bool (span, 1, 1, longest); never none"""
    readings: Sequence[Reading]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query (1, heads, tokens, size); key and value (slots, key heads, length, size), with the
        pass's own already in them. Returns (1, tokens, heads, size)."""
        heads, tokens, size = query.shape[1:]
        groups = heads // key.shape[1]
        # Heads that share a key head are queries of it.
        grouped = query[0].view(key.shape[1], groups, tokens, size)
        out = query.new_empty(tokens, key.shape[1], groups, size)
        if self.span:
            longest, slots = self.mask.shape[-1], slice(self.span.start, self.span.stop)
            answered = scaled_dot_product_attention(
                grouped[:, :, self.columns].permute(2, 0, 1, 3),
                key[slots, :, :longest],
                value[slots, :, :longest],
                attn_mask=self.mask,
                scale=scale,
            )
            out[self.columns[self.takes_part]] = answered[self.takes_part]
        for row in self.readings:
            count, filled = row.end - row.start, row.before + row.end - row.start
            seen = torch.ones(count, filled, dtype=torch.bool).tril(row.before)
            read = scaled_dot_product_attention(
                exact(grouped[:, :, row.start : row.end].flatten(1, 2)[None]),
                exact(key[row.slot : row.slot + 1, :, :filled]),
                exact(value[row.slot : row.slot + 1, :, :filled]),
                attn_mask=seen.repeat(groups, 1),
                scale=scale,
            ).to(out.dtype)
            out[row.start : row.end] = read[0].unflatten(1, (groups, count)).permute(2, 0, 1, 3)
        return out.flatten(1, 2)[None]


def exact(tensor: Tensor) -> Tensor:
    """In float32, which is the faster on a CPU where several tokens attend (`trees.attention`)."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function behind `NAME`. Raises ValueError for attention that is more than a softmax."""
    if packing is None or any(kwargs.get(n) is not None for n in ("softcap", "s_aux")):
        raise ValueError("packed conversations need plain attention, and a packing")
    with torch.autocast(query.device.type, enabled=False):
        out = packing.attend(query.to(key.dtype), key, value, scaling)
    return out.to(query.dtype).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
