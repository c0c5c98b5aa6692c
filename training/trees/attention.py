"""The attention of step trees: `attn_implementation="step_tree"` for any transformers model.

The implementation is SDPA for every ordinary call (`generate`, SFT, …). Three callers pass it more:

* on CUDA a FlexAttention `BlockMask`, made from a tree's mask rule (`trees/packing.py`);
* elsewhere a `TreePattern`: the same mask cut into its non-empty blocks. The trunk is a plain
  causal block, or where it branches itself a cascade of blocks (`trees/cascade.py`) or runs
  (`trees/runs.py`); branches go in chunks that look at no more of the trunk than they are attached
  to. A dense mask costs (trunk + branches)² however empty it is;
* while practising, a `Prefill` of each trunk, then a `Decode` pattern (`trees/sampling.py`): keys
  and values of a trunk are stored once and shared by every row that decodes behind it.

Patterns travel as the keyword argument `step_tree`, which transformers models pass on to their
attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stepagent.agents.encoded import Joins, depths, reaches
from stepagent.training.trees.cascade import Piece, can_cascade, cascade, pays, pieces_of
from stepagent.training.trees.runs import Runs, trunk_runs

NAME = "step_tree"
FLEX_BLOCK = 128
"""Sequence lengths are padded to multiples of this for FlexAttention (its block size)."""

_ROOM = 16
_LOW = (torch.bfloat16, torch.float16)


class AttentionPattern(Protocol):
    """How the tokens of one packed sequence see one another."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """Attend with [1, H, S, D] queries and [1, Hkv, S, D] keys; returns [1, H, S, D]."""
        ...


def repeat_heads(x: Tensor, query: Tensor) -> Tensor:
    """[1, Hkv, S, D] keys or values, repeated to the queries' number of heads H."""
    groups = query.shape[1] // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


@dataclass(frozen=True)
class Chunk:
    """Neighbouring branches of a tree."""

    size: int
    """Tokens of the branches together."""
    columns: slice | Tensor
    """The n tokens of the trunk that they see."""
    mask: Tensor
    """bool [1, 1, size, n + size]: columns of the trunk, then the chunk's own."""


@dataclass(frozen=True)
class Branching:
    """A trunk that branches itself. What its attention needs is made when it is first asked for."""

    joins: Joins
    size: int
    """Tokens of the trunk."""
    window: int | None
    """As in `sliding_window`."""
    device: torch.device

    @functools.cached_property
    def runs(self) -> Runs:
        return trunk_runs(self.joins, self.size, self.window, self.device)

    @functools.cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Of the cascade; none where it does not apply, or runs are faster."""
        pieces = pieces_of(self.joins, self.size) if self.window is None else ()
        return pieces if pays(pieces) else ()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """[1, H, size, D] queries, [1, Hkv, size, D] keys and values; returns [1, H, size, D]."""
        if self.pieces and not dropout and can_cascade(query, key, value):
            return cascade(query, key, value, self.pieces, scale)
        key, value = repeat_heads(key, query), repeat_heads(value, query)
        return self.runs.attend(query, key, value, scale, dropout)


@dataclass(frozen=True)
class TreeSpan:
    """One tree in the packed sequence: its trunk, then its chunks."""

    trunk: int
    """Tokens of the trunk."""
    chunks: tuple[Chunk, ...]
    trunk_mask: Tensor | None = None
    """bool [1, 1, trunk, trunk] where a sliding window makes the trunk more than causal."""
    branching: Branching | None = None

    def attend_trunk(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        """The trunk's own attention: [1, H, trunk, D] queries, [1, Hkv, trunk, D] keys, values."""
        if self.branching is not None:
            return self.branching.attend(query, key, value, scale, dropout)
        key, value, mask = repeat_heads(key, query), repeat_heads(value, query), self.trunk_mask
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
        )


@dataclass(frozen=True)
class TreePattern:
    """Block-wise attention over packed trees; equal to SDPA with the dense mask."""

    spans: tuple[TreeSpan, ...]
    padding: int
    """Tokens after the last tree, which nothing attends to."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        sdpa = functools.partial(F.scaled_dot_product_attention, scale=scale, dropout_p=dropout)
        sizes = [n for span in self.spans for n in (span.trunk, *(c.size for c in span.chunks))]
        sizes.append(self.padding)
        blocks = zip(*(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
        parts = []
        for span in self.spans:
            q, trunk_k, trunk_v = next(blocks)
            parts.append(span.attend_trunk(q, trunk_k, trunk_v, scale, dropout))
            for chunk in span.chunks:
                q, k, v = next(blocks)
                k = repeat_heads(torch.cat([trunk_k[:, :, chunk.columns], k], dim=2), q)
                v = repeat_heads(torch.cat([trunk_v[:, :, chunk.columns], v], dim=2), q)
                parts.append(sdpa(q, k, v, attn_mask=chunk.mask))
        parts.append(torch.zeros_like(next(blocks)[0]))
        return torch.cat(parts, dim=2)


@dataclass
class Prefill:
    """Attention over the trunk, of L tokens, that keeps each layer's keys and values."""

    window: int | None = None
    joins: Joins = ()
    """Where the trunk branches."""
    keys: dict[int, Tensor] = field(default_factory=dict)
    """layer -> [Hkv, L, D]"""
    values: dict[int, Tensor] = field(default_factory=dict)
    span: TreeSpan | None = None
    """Made at the first layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        self.keys[layer], self.values[layer] = key[0], value[0]
        return self._span(query).attend_trunk(query, key, value, scale, dropout)

    def _span(self, query: Tensor) -> TreeSpan:
        size, mask = query.shape[2], None
        if self.span is None or self.span.trunk != size:
            branching = None
            if self.joins:
                branching = Branching(self.joins, size, self.window, query.device)
            elif self.window is not None and size > self.window:
                position = torch.arange(size, device=query.device)
                back = position[:, None] - position[None, :]
                mask = ((back >= 0) & (back < self.window))[None, None]
            self.span = TreeSpan(size, (), mask, branching)
        return self.span


class Decode:
    """Rows that decode in step, each on its own prefix of a trunk that several share.

    A row's newest token sees the first `prefix` tokens of its trunk, where that branches those of
    them on its path, and the row's own tokens. Keys and values of a trunk are never copied per row.
    Rows come in order of trunk and prefix, and a trunk is read by blocks of neighbouring rows, each
    no further than it needs.

    Args:
        trunks: the prefills, all with the same window.
        trunk_of: [R], ascending: number of the trunk that each row sees.
        prefix: int64 [R], ascending within a trunk: how much of it each row sees.
    """

    block_rows = 16
    """Rows per block: more rows mean fewer calls, fewer rows read less of the trunk in vain."""

    def __init__(self, trunks: Sequence[Prefill], trunk_of: Sequence[int], prefix: Tensor) -> None:
        self.trunks, self.prefix = trunks, prefix
        self.window = trunks[0].window
        self._trunk_of, self._limits = list(trunk_of), prefix.tolist()
        device = prefix.device
        places = list(zip(self._trunk_of, self._limits, strict=True))
        longest = dict(places)  # of each trunk that rows see: its last row sees the most of it
        read = [(trunk.joins, longest.get(number, 0)) for number, trunk in enumerate(trunks)]
        depth = [depths(joins, size) for joins, size in read]
        self._depth = [torch.tensor(x, device=device) for x in depth]  # [L] of each trunk's tokens
        self._reach = [torch.tensor(reaches(joins, size), device=device) for joins, size in read]
        self._start = torch.tensor([depth[of][p - 1] + 1 for of, p in places], device=device)
        self.length = 0
        """Tokens that every row has been fed."""
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.seen: set[int] = set()
        self._cut_blocks()

    def _cut_blocks(self) -> None:
        """Cut the rows into blocks; each has an additive mask over the trunk tokens it reads."""
        self.blocks: list[tuple[Prefill, int, int, int, int, Tensor | None]] = []
        start = 0
        for number, group in groupby(self._trunk_of):
            stop = start + len(list(group))
            for first in range(start, stop, self.block_rows):
                self._cut_block(number, first, min(first + self.block_rows, stop))
            start = stop

    def _cut_block(self, number: int, start: int, end: int) -> None:
        trunk = self.trunks[number]
        branches = bool(trunk.joins)
        longest, first = self._limits[end - 1], 0
        if self.window is not None and not branches:
            # A row at position p sees positions above p - window, its own tokens included.
            first = max(0, self._limits[start] + self.length + 1 - self.window)
            longest = max(longest, first)
        mask = None
        if self._limits[start] != longest or first or branches:
            place = torch.arange(first, longest, device=self.prefix.device)
            prefix = self.prefix[start:end, None]
            hidden = (place >= prefix) | (self._reach[number][first:longest] < prefix)
            if self.window is not None:
                position = self.position[start:end, None]
                hidden |= self._depth[number][first:longest] <= position - self.window
            mask = torch.zeros(hidden.shape, device=hidden.device)
            mask.masked_fill_(hidden, float("-inf"))
        self.blocks.append((trunk, start, end, first, longest, mask))

    @property
    def position(self) -> Tensor:
        """int64 [R]: the newest token's position on its row's path"""
        return self._start + self.length

    def keep(self, rows: Tensor) -> None:
        """Continue with `rows` (int64 indices, ascending) only."""
        self.prefix, self._start = self.prefix[rows], self._start[rows]
        self._limits = self.prefix.tolist()
        self._trunk_of = [self._trunk_of[i] for i in rows.tolist()]
        self.keys = {layer: x[rows] for layer, x in self.keys.items()}
        self.values = {layer: x[rows] for layer, x in self.values.items()}
        self._cut_blocks()

    def advance(self) -> None:
        """Close a decoding step.

        Raises:
            RuntimeError: the model did not pass the pattern on to all of its attention layers.
        """
        if self.seen != set(self.trunks[0].keys):
            raise RuntimeError("the model does not pass keyword arguments on to its attention")
        self.seen.clear()
        self.length += 1
        if self.window is not None:
            self._cut_blocks()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float
    ) -> Tensor:
        rows, heads, width = query.shape[2], key.shape[1], key.shape[3]
        self.seen.add(layer)
        if layer not in self.keys:
            self.keys[layer] = key.new_empty(rows, heads, 0, width)
            self.values[layer] = value.new_empty(rows, heads, 0, width)
        if self.length == self.keys[layer].shape[2]:
            room = (0, 0, 0, max(_ROOM, self.length // 2))
            self.keys[layer] = F.pad(self.keys[layer], room)
            self.values[layer] = F.pad(self.values[layer], room)
        now = self.length + 1
        self.keys[layer][:, :, self.length] = key[0].transpose(0, 1)
        self.values[layer][:, :, self.length] = value[0].transpose(0, 1)
        own_keys, own_values = self.keys[layer][:, :, :now], self.values[layer][:, :, :now]
        if self.window is not None and now > self.window:
            own_keys = own_keys[:, :, -self.window :]
            own_values = own_values[:, :, -self.window :]

        # [R, Hkv, G, D]: the G query heads that share a key head.
        query = (query[0] * scale).transpose(0, 1).unflatten(1, (heads, -1))
        own = query @ own_keys.transpose(-1, -2)  # [R, Hkv, G, t]
        out = torch.empty_like(query)
        for trunk, start, end, first, longest, mask in self.blocks:
            keys = trunk.keys[layer][:, first:longest]
            values = trunk.values[layer][:, first:longest]
            block = query[start:end].transpose(0, 1).flatten(1, 2)  # [Hkv, rG, D]
            scores = (block @ keys.transpose(-1, -2)).unflatten(1, (end - start, -1))
            if mask is not None:
                scores += mask[:, None]
            both = torch.cat([scores, own[start:end].transpose(0, 1)], dim=-1).float()
            weights = both.softmax(dim=-1).to(query.dtype)  # [Hkv, r, G, trunk + t]
            read = longest - first
            trunk_part = weights[..., :read].flatten(1, 2) @ values
            own_part = weights[..., read:].transpose(0, 1) @ own_values[start:end]
            out[start:end] = trunk_part.unflatten(1, (end - start, -1)).transpose(0, 1) + own_part
        return out.flatten(1, 2).transpose(0, 1)[None]


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # FlexAttention shares key heads only among a power of two
        key, value, groups = repeat_heads(key, query), repeat_heads(value, query), 1
    flex: Any = _compiled_flex() if query.is_cuda else flex_attention
    return flex(query, key, value, block_mask=mask, scale=scale, enable_gqa=groups > 1)


def step_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    step_tree: AttentionPattern | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function behind `attn_implementation="step_tree"`.

    On a CPU, attention over several tokens of a 16-bit model is computed in float32: we measured it
    to be three times as fast there, and it is more exact.

    Shapes: query [B, H, S, D]; key, value [B, Hkv, S', D]; returns [B, S, H, D].
    """
    has_pattern = step_tree is not None or isinstance(attention_mask, BlockMask)
    for name in ("softcap", "s_aux", "position_bias"):
        if has_pattern and kwargs.get(name) is not None:
            raise ValueError(f"step trees do not support attention with {name}")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary positions leave queries and keys in float32
        low = torch.get_autocast_dtype(device)
        query, key, value = query.to(low), key.to(low), value.to(low)
    dtype = query.dtype
    if device == "cpu" and dtype in _LOW and (has_pattern or query.shape[2] > 1):
        query, key, value = query.float(), key.float(), value.float()
        if isinstance(attention_mask, Tensor) and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(device, enabled=False):
        if isinstance(attention_mask, BlockMask):
            out = _flex(query, key, value, attention_mask, scale).transpose(1, 2)
        elif step_tree is not None:
            layer: int = module.layer_idx  # type: ignore[assignment]
            out = step_tree.attend(layer, query, key, value, scale, dropout).transpose(1, 2)
        else:
            out = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, **kwargs
            )[0]
    return out.to(dtype).contiguous(), None


AttentionInterface.register(NAME, step_tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
