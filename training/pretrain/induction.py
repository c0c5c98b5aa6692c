"""A start at which the model copies: induction heads, made instead of waited for.

Reading means finding where a row of tokens stood before and going on as it went on there. Small
models learn it late and suddenly, after many more tokens than an hour of two cores holds (Olsson et
al., "In-context Learning and Induction Heads", 2022). But the circuit is simple enough to be
written down, and training then only has to refine it:

    layer 0    attends to the token before, and adds that token's code to the residual stream
    layer 1    attends to where the token before was the current one, and adds what stands there

**The token before.** All embeddings share their first component, so that queries and keys can be
constant vectors. Rotary positions turn a constant query and a key that is ahead by one step into a
score that is largest at a distance of one. The pairs that rotate fast do this best.

**Where it stood.** Queries read the current token, keys the code of the one before, through the
same random map; the pairs that rotate slowly compare them whatever the distance.

All other output maps begin at 0. Shapes, as everywhere, are the model's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

ROPE_THETA = 5e5
"""Base of the rotary positions: half of the pairs turn by less than a radian in 500 tokens."""

_EMBEDDING, _SHARED = 0.06, 4.0
"""Standard deviation of the embeddings, and their shared component in units of it."""
_BEFORE, _CODE, _MATCH, _COPY = 1.8, 1.5, 2.5, 8.0
"""How sharply layer 0 looks one token back, and the size of what it adds; the same of layer 1."""
_FAST = 8
"""Pairs that tell a distance of one from others."""


@torch.no_grad()
def start_with_induction(model: LlamaForCausalLM, seed: int = 0) -> None:
    """Sets half of the heads of the first two layers, and embeddings, in place.

    Raises ValueError for a model of fewer than two layers or heads.
    """
    config: Any = model.config
    if min(config.num_hidden_layers, config.num_attention_heads) < 2:
        raise ValueError("induction heads need at least two layers and two heads")
    draw = torch.Generator().manual_seed(seed)
    width, heads = config.hidden_size, config.num_attention_heads // 2
    size = width // config.num_attention_heads
    half = size // 2
    embeddings = model.model.embed_tokens.weight
    embeddings.normal_(std=_EMBEDDING, generator=draw)
    embeddings[:, 0] = _SHARED * _EMBEDDING
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.zero_()
        layer.self_attn.o_proj.weight.zero_()
    first, second = (model.model.layers[i].self_attn for i in (0, 1))
    codes, places, copied = (_directions(heads * size, width, draw) for _ in range(3))
    query, key = _one_step_back(size, config.rope_parameters["rope_theta"])
    slow = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, size)])
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        for weight, constant in ((first.q_proj.weight, query), (first.k_proj.weight, key)):
            weight[rows] = 0
            weight[rows, 0] = _BEFORE * constant
        first.v_proj.weight[rows] = codes[rows]
        first.o_proj.weight[:, rows] = _CODE * _EMBEDDING * places[rows].T
        for weight, read in ((second.q_proj.weight, codes), (second.k_proj.weight, places)):
            weight[rows] = 0
            weight[head * size + slow] = _MATCH * read[rows][slow]
        second.v_proj.weight[rows] = copied[rows]
        second.o_proj.weight[:, rows] = _COPY * _EMBEDDING * copied[rows].T


def _one_step_back(size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Constant query and key of a head, float32 [size] each: their score is largest where the key
    stands one token before the query."""
    half = size // 2
    fast = min(_FAST, half)
    angle = theta ** (-torch.arange(fast) / half)
    query, key = torch.zeros(size), torch.zeros(size)
    query[:fast] = 1
    key[:fast], key[half : half + fast] = angle.cos(), angle.sin()
    return query, key


def _directions(count: int, width: int, draw: torch.Generator) -> Tensor:
    """float32 [count, width]: orthonormal rows, 0 at the shared component."""
    random = torch.randn(width - 1, count, generator=draw)
    return torch.nn.functional.pad(torch.linalg.qr(random)[0].T, (1, 0))
