"""Attention of a trunk that branches, in which what branches share is read once for all of them.

    A ─┬─ B        each piece sees itself, a causal block of its own tokens;
       ├─ C        B, C and D together see all of A, one block without a mask
       └─ D

A token's softmax then spreads over several blocks. Each block b gives an output o_b and the
logarithm l_b of what its weights are divided by; the whole is

    l = log Σ_b exp(l_b),   o = Σ_b exp(l_b - l) · o_b

as in FlashDecoding and in FlashInfer's Cascade Inference. Backwards, a block that is given o and l
in place of its own has exactly its share of the gradients.

Unlike runs (`trees/runs.py`) it reads no mask and copies no keys, neither those of a path nor those
that query heads share. PyTorch has no public attention on a CPU that gives l; its private one may
be missing or take other arguments, and `can_cascade` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepagent.agents.encoded import Joins, reaches

MIN_SHARED = 256
"""A merge must bring a token this many others to read, on average, for the cascade to be taken.
Measured forward and backward on a CPU with AVX-512: from here on it takes 0.70 to 0.98 of the runs'
time with 9 heads of width 64 on 3 of keys, and 0.84 to 1.06 with 4 of width 32 on 4. With 100 it
takes up to 1.06 and 1.22, with 20 up to 1.44 and 1.93: merging a short block costs as much as a
long one."""


@dataclass(frozen=True)
class Piece:
    """Tokens of a trunk that follow one another, and that the same later tokens see."""

    start: int
    end: int
    below: int
    """The tokens from `end` up to this one see the whole piece; where it is `end`, none do."""


def pieces_of(joins: Joins, size: int) -> tuple[Piece, ...]:
    """The pieces of a trunk of `size` tokens.

    >>> pieces_of([(5, 3), (7, 3)], 9)  # doctest: +NORMALIZE_WHITESPACE
    (Piece(start=0, end=3, below=9), Piece(start=3, end=5, below=5), Piece(start=5, end=7, below=7),
     Piece(start=7, end=9, below=9))
    """
    reach = reaches(joins, size)
    cuts = {place for join in joins if join[0] < size for place in join}
    bounds = sorted({0, size} | cuts)
    return tuple(Piece(a, b, reach[a]) for a, b in itertools.pairwise(bounds))


def pays(pieces: Sequence[Piece]) -> bool:
    """Whether a cascade over these pieces is faster than runs."""
    merges = sum(piece.below - piece.end for piece in pieces)
    read = sum((piece.below - piece.end) * (piece.end - piece.start) for piece in pieces)
    return merges > 0 and read >= MIN_SHARED * merges


def _operator(name: str, arguments: str) -> Callable[..., Any] | None:
    """A private operator of PyTorch, if it is there and takes these arguments."""
    found: Any = getattr(getattr(torch.ops.aten, name, None), "default", None)
    schema = getattr(found, "_schema", None)
    if schema is None or " ".join(a.name for a in schema.arguments) != arguments:
        return None
    return found  # type: ignore[no-any-return]


_NAME = "_scaled_dot_product_flash_attention_for_cpu"
_forward = _operator(_NAME, "query key value dropout_p is_causal attn_mask scale")
_backward = _operator(
    f"{_NAME}_backward",
    "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale",
)


def can_cascade(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `cascade` takes these tensors, in this PyTorch."""
    return (
        _forward is not None
        and _backward is not None
        and query.dtype in (torch.float32, torch.float64)
        and query.shape[0] == 1
        and query.shape[-1] == value.shape[-1]
        and all(x.device.type == "cpu" and x.stride(-1) == 1 for x in (query, key, value))
    )


def cascade(
    query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float
) -> Tensor:
    """What the tokens of a trunk in these pieces read: queries [1, H, S, D], keys and values
    [1, Hkv, S, D], of which `can_cascade` holds; returns [1, H, S, D]."""
    groups = query.shape[1] // key.shape[1]
    heads = query[0].unflatten(0, (-1, groups)), key[0][:, None], value[0][:, None]
    out: Tensor = _Cascade.apply(*heads, _Blocks.of(pieces, scale))
    return out.flatten(0, 1)[None]


@dataclass(frozen=True)
class _Blocks:
    """What reads what, in the order in which outputs are merged."""

    blocks: tuple[tuple[slice, slice], ...]
    """(rows, columns): causal where they are the same, as each token's first block is"""
    scale: float
    """What products of queries and keys are multiplied by."""

    @staticmethod
    def of(pieces: Sequence[Piece], scale: float) -> _Blocks:
        own = [slice(piece.start, piece.end) for piece in pieces]
        below = [slice(piece.end, piece.below) for piece in pieces]
        shared = [pair for pair in zip(below, own, strict=True) if pair[0].start < pair[0].stop]
        return _Blocks((*zip(own, own, strict=True), *shared), scale)


class _Cascade(torch.autograd.Function):
    """Queries [Hkv, G, S, D], of which G share each of the keys and values [Hkv, 1, S, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Blocks) -> Tensor:
        assert _forward is not None
        out, log_sum = torch.empty_like(query), query.new_empty(query.shape[:3])
        for rows, columns in plan.blocks:
            keys, values = (_for_groups(x[:, :, columns], query) for x in (key, value))
            causal = rows == columns
            read, log = _forward(query[:, :, rows], keys, values, 0.0, causal, scale=plan.scale)
            out_so_far, log_so_far = out[:, :, rows], log_sum[:, :, rows]
            if causal:
                out_so_far.copy_(read)
                log_so_far.copy_(log)
            else:
                out_so_far.lerp_(read, torch.sigmoid(log - log_so_far)[..., None])
                torch.logaddexp(log_so_far, log, out=log_so_far)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        assert _backward is not None
        query, key, value, out, log_sum = ctx.saved_tensors
        of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
        for rows, columns in ctx.plan.blocks:
            g, q, o, log = (x[:, :, rows] for x in (gradient, query, out, log_sum))
            k, v = (_for_groups(x[:, :, columns], query) for x in (key, value))
            shares = _backward(g, q, k, v, o, log, 0.0, rows == columns, scale=ctx.plan.scale)
            of_query[:, :, rows] += shares[0]
            of_key[:, :, columns] += shares[1].sum(dim=1, keepdim=True)
            of_value[:, :, columns] += shares[2].sum(dim=1, keepdim=True)
        return of_query, of_key, of_value, None


def _for_groups(x: Tensor, query: Tensor) -> Tensor:
    """[Hkv, 1, n, D] keys or values as [Hkv, G, n, D], without a copy."""
    return x.expand(-1, query.shape[1], -1, -1)
