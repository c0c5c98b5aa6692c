"""Practice (eq. 5): the agent's own actions in every state of an expert trajectory, in one go.

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

The trajectory is read once. Its keys and values are then shared by all n·K replies, which are
decoded together: each decoding step feeds one token a row, as one sequence of as many tokens, and
a row sees its own prefix of the trajectory and its own tokens (`training.attention.Decode`). A
reply's first token comes from the reading itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from stepagent.agents.generation import Decoding, choose
from stepagent.agents.models import context_length
from stepagent.training.attention import Decode, Prefill
from stepagent.training.support import check_path, unwrap

MAX_ROWS = 256
"""Rows decoded together; more go in groups, which share the reading of the trajectory."""
_LEAVE = 8
"""Rows that have ended are dropped once they are one in so many."""


@dataclass
class _Row:
    """One reply in the making."""

    step: int
    prefix: int
    """Tokens of the state it answers."""
    limit: int
    """The most tokens it may have."""
    draws: np.ndarray
    """float64 [limit], uniform in [0, 1): one a token"""
    ids: list[int] = field(default_factory=list)
    ended: bool = False


@torch.no_grad()
def practice(
    model: nn.Module,
    ids: Sequence[int],
    replies: Sequence[tuple[int, int]],
    *,
    k: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    eos_ids: Collection[int],
    seed: int,
) -> list[list[list[int]]]:
    """K replies in every state of a trajectory, from one prefill.

    The t-th token of the j-th reply in the i-th state is chosen by a random number that depends on
    (seed, i, j, t) alone: not on the other rows, their number, nor on K. (Logits may still differ
    in their last digits with the shape of a batch.) Greedy tokens are those of `generate` on each
    state.

    Args:
        ids: tokens of the trajectory.
        replies: half-open spans of the expert's replies; the i-th state is `ids[: replies[i][0]]`.
        k: replies a state.
        temperature: 0 is greedy, and takes k = 1.
        top_p: sample from the likeliest tokens that have this much probability together; 1: all.
        max_new_tokens: a reply is cut at this many tokens, or at the end of the model's context.
        eos_ids: tokens that end a reply and are kept as its last.
        seed: of the sampling.

    Returns:
        `found[i][j]`: token ids of the j-th reply in the i-th state, at least one. The last one is
        not in `eos_ids` where the reply was cut.

    Raises:
        ValueError: a state that fills the model's context; k, temperature or top_p out of range; a
            model that cannot run step trees.
    """
    decoding = Decoding(temperature, top_p, max_new_tokens)
    if k < 1 or (temperature == 0 and k > 1):
        raise ValueError(
            f"k is {k} at temperature {temperature}: it must be at least 1, and 1 where greedy "
            "(all replies in a state would be the same)"
        )
    if not replies:
        return []
    base = unwrap(model)
    last, context = replies[-1][0], context_length(base)
    check_path(model, last + 1)
    window = check_path(model, min(last + max_new_tokens, context))
    rows = []
    for step, (start, _) in enumerate(replies):
        limit = min(max_new_tokens, context - start)
        for j in range(k):
            draws = np.random.default_rng([seed % 2**63, step, j]).random(limit)
            rows.append(_Row(step, start, limit, draws))
    training = model.training
    model.eval()
    try:
        trunk, logits = _read(model, ids, [start for start, _ in replies], window)
        for first in range(0, len(rows), MAX_ROWS):
            group = rows[first : first + MAX_ROWS]
            _decode(model, trunk, group, logits[[row.step for row in group]], decoding, eos_ids)
    finally:
        model.train(training)
    return [[row.ids for row in rows[step * k : step * k + k]] for step in range(len(replies))]


def _read(
    model: nn.Module, ids: Sequence[int], starts: Sequence[int], window: int | None
) -> tuple[Prefill, Tensor]:
    """Prefill up to the last state; also float32 logits [n_steps, vocabulary] after each state."""
    base = unwrap(model)
    device = base.device
    trunk = Prefill(window)
    out = model(
        input_ids=torch.tensor([list(ids[: starts[-1]])], device=device),
        logits_to_keep=torch.tensor(starts, device=device) - 1,
        use_cache=False,
        step_tree=trunk,
    )
    layers = base.config.get_text_config(decoder=True).num_hidden_layers
    if len(trunk.keys) != layers:
        raise RuntimeError(
            f"{type(base).__name__} handed the plan of its attention to {len(trunk.keys)} of its "
            f"{layers} layers: it cannot practise from a shared trajectory"
        )
    return trunk, out.logits[0].float()


def _decode(
    model: nn.Module,
    trunk: Prefill,
    rows: list[_Row],
    logits: Tensor,
    decoding: Decoding,
    eos_ids: Collection[int],
) -> None:
    """Writes the rows' replies, all in step; `logits` [R, vocabulary] predict the first tokens."""
    plan = Decode(trunk, torch.tensor([row.prefix for row in rows], device=logits.device))
    while True:
        draws = [0.0 if row.ended else row.draws[len(row.ids)] for row in rows]
        for row, token in zip(rows, choose(logits, decoding, draws), strict=True):
            if not row.ended:
                row.ids.append(token)
                row.ended = token in eos_ids or len(row.ids) == row.limit
        going = [i for i, row in enumerate(rows) if not row.ended]
        if not going:
            return
        if len(rows) - len(going) > len(rows) // _LEAVE:
            plan.keep(torch.tensor(going, device=logits.device))
            rows = [rows[i] for i in going]
        newest = torch.tensor([[row.ids[-1] for row in rows]], device=logits.device)
        everyone = torch.ones(1, 1, len(rows), len(rows), dtype=torch.bool, device=logits.device)
        logits = (
            model(
                input_ids=newest,
                position_ids=(plan.prefix + plan.length)[None],
                # The plan decides who sees what; a mask of four dimensions keeps the model from
                # making one of its own.
                attention_mask=everyone,
                use_cache=False,
                step_tree=plan,
            )
            .logits[0]
            .float()
        )
        plan.advance()
