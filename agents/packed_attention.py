"""Attention of a pass in which each token belongs to one of many conversations.

On a CPU a pass costs what its tokens cost, so conversations that read an observation and others
that generate a token share one without padding: all new tokens are one row, and only attention
tells them apart. Conversations with one new token are decoded together, each from its own slot of
the cache (a view; nothing is copied); a prefill of several tokens attends alone.
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
class Prefill:
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
    """Of each slot of `span`, the column of its new token, int64 (span,); arbitrary where it is
    inactive"""
    active: Tensor
    """Which slots of `span` have a new token, bool (span,)"""
    mask: Tensor
    """Which tokens of its slot each may attend to, bool (span, 1, 1, longest); at least one"""
    prefills: Sequence[Prefill]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """query (1, heads, tokens, size); key and value (slots, key heads, length, size), with the
        pass's own already in them. Returns (1, tokens, heads, size) in the query's type."""
        heads, tokens, size = query.shape[1:]
        groups = heads // key.shape[1]
        # Heads that share a key head are queries of it.
        grouped = query[0].view(key.shape[1], groups, tokens, size)
        out = query.new_empty(tokens, key.shape[1], groups, size)
        if self.span:
            longest, slots = self.mask.shape[-1], slice(self.span.start, self.span.stop)
            decoded = scaled_dot_product_attention(
                grouped[:, :, self.columns].permute(2, 0, 1, 3),
                key[slots, :, :longest].to(query.dtype),
                value[slots, :, :longest].to(query.dtype),
                attn_mask=self.mask,
                scale=scale,
            )
            out[self.columns[self.active]] = decoded[self.active]
        for row in self.prefills:
            count, filled = row.end - row.start, row.before + row.end - row.start
            causal = torch.ones(count, filled, dtype=torch.bool).tril(row.before)
            read = scaled_dot_product_attention(
                as_float32(grouped[:, :, row.start : row.end].flatten(1, 2)[None]),
                as_float32(key[row.slot : row.slot + 1, :, :filled]),
                as_float32(value[row.slot : row.slot + 1, :, :filled]),
                attn_mask=causal.repeat(groups, 1),
                scale=scale,
            ).to(out.dtype)
            out[row.start : row.end] = read[0].unflatten(1, (groups, count)).permute(2, 0, 1, 3)
        return out.flatten(1, 2)[None]


def as_float32(tensor: Tensor) -> Tensor:
    """On a CPU, attention of several tokens in 16 bits is slower than in float32."""
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
    """The function behind `NAME`. Raises ValueError for attention that is more than a softmax, and
    without a packing."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("packed passes need plain attention")
    if packing is None:
        raise ValueError("a packed pass needs a packing: the model did not hand it on")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary positions leave queries and keys in float32
        query = query.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return packing.attend(query, key, value, scaling).contiguous(), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
