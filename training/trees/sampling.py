"""Practice (eq. 5): the agent's own actions in every state of an expert trajectory, in one go.

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

The trajectory is read once. Its keys and values are then shared by all n·K replies, which are
decoded together: each decoding step feeds one token per row, as one sequence of as many tokens, and
a row sees its own prefix of the trajectory and its own tokens (`trees.attention.Decode`). A reply's
first token comes from the reading itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepagent.agents.encoded import Encoded, depths
from stepagent.agents.generation import Decoding, choose
from stepagent.agents.models import context_length
from stepagent.training.trees.attention import Decode, Prefill
from stepagent.training.trees.compat import check_path, unwrap
from stepagent.training.trees.tree import StepTree

MAX_ROWS = 256
"""Rows decoded together; more go in groups, which share the reading of the trajectory."""
_DROP_SHARE = 8
"""Rows that have ended are dropped once they are more than one in this many."""


@dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    k: int
    """Replies per state; 1 where the decoding is greedy."""
    decoding: Decoding
    """A reply is cut at its `max_new_tokens`, or at the end of the model's context."""
    eos_ids: Collection[int]
    """Tokens that end a reply; the one drawn is kept as its last token."""
    stopped: Callable[[Sequence[int]], bool] = lambda ids: False
    """Called with a reply's ids after each token; True ends the reply."""
    stops: Sequence[str] = ()
    """Texts that make `stopped` true, for engines that can look for texts alone."""

    def __post_init__(self) -> None:
        if self.k < 1 or (self.decoding.temperature == 0 and self.k > 1):
            raise ValueError(
                f"k is {self.k} at temperature {self.decoding.temperature}: it must be at least 1, "
                "and 1 where greedy (all replies in a state would be the same)"
            )


@dataclass
class _Row:
    """A reply that is being decoded."""

    step: int
    prefix: int
    """Where in the trajectory the state that it answers ends."""
    limit: int
    """The most tokens it may have."""
    draws: np.ndarray
    """float64 [limit], uniform in [0, 1): one per token"""
    ids: list[int] = field(default_factory=list)
    ended: bool = False


@torch.no_grad()
def practice(
    model: nn.Module, trajectory: Encoded | StepTree, sampling: Sampling, seed: int
) -> list[list[list[int]]]:
    """K replies in every state of a trajectory, from one prefill.

    The t-th token of the j-th reply in the i-th state is chosen by a random number that depends on
    (seed, i, j, t) alone: not on the other rows, their number, nor on K. (Logits may still differ
    in their last digits with the shape of a batch.) Greedy tokens are those of `generate` on each
    state.

    Args:
        trajectory: the expert's; branches of a tree have no part in it.
        sampling: how many replies, and how they are drawn.
        seed: of the draws.

    Returns:
        `drawn[i][j]`: token ids of the j-th reply in the i-th state, at least one. The last one is
        not in `eos_ids` where the reply was cut or stopped.

    Raises:
        ValueError: a state that fills the model's context; a model that cannot run step trees.
    """
    k, limit = sampling.k, sampling.decoding.max_new_tokens
    starts = [start for start, _ in trajectory.replies]
    if not starts:
        return []
    base = unwrap(model)
    context = context_length(base)
    place = depths(trajectory.joins, starts[-1])
    sizes = [place[start - 1] + 1 for start in starts]  # tokens of the states
    check_path(model, max(sizes) + 1)
    window = check_path(model, min(max(sizes) + limit, context))
    rows = []
    for step, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        longest = min(limit, context - size)
        for j in range(k):
            draws = np.random.default_rng([seed % 2**63, step, j]).random(longest)
            rows.append(_Row(step, start, longest, draws))
    was_training = model.training
    model.eval()
    try:
        trunk, logits = _read(model, trajectory, starts, window)
        for first in range(0, len(rows), MAX_ROWS):
            group = rows[first : first + MAX_ROWS]
            _decode(model, trunk, group, logits[[row.step for row in group]], sampling)
    finally:
        model.train(was_training)
    return [[row.ids for row in rows[step * k : step * k + k]] for step in range(len(starts))]


def _read(
    model: nn.Module, trajectory: Encoded | StepTree, starts: Sequence[int], window: int | None
) -> tuple[Prefill, Tensor]:
    """Prefill up to the last state; also float32 logits [n_steps, vocabulary] after each state."""
    base = unwrap(model)
    device = base.device
    size = starts[-1]
    trunk = Prefill(window, [join for join in trajectory.joins if join[0] < size])
    everyone = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    placed: dict[str, Any] = {}
    if trunk.joins:
        placed["position_ids"] = torch.tensor([depths(trunk.joins, size)], device=device)
        # Or the model would take positions that start again for several texts, and mask them.
        placed["attention_mask"] = everyone.expand(1, 1, size, size)
    out = model(
        input_ids=torch.tensor([list(trajectory.ids[:size])], device=device),
        **placed,
        logits_to_keep=torch.tensor(starts, device=device) - 1,
        use_cache=False,
        step_tree=trunk,
    )
    layers = base.config.get_text_config(decoder=True).num_hidden_layers
    if len(trunk.keys) != layers:
        raise RuntimeError(
            f"{type(base).__name__} passed its attention pattern to {len(trunk.keys)} of its "
            f"{layers} layers: it cannot practise from a shared trajectory"
        )
    return trunk, out.logits[0].float()


def _decode(
    model: nn.Module, trunk: Prefill, rows: list[_Row], logits: Tensor, sampling: Sampling
) -> None:
    """Writes the rows' replies, all in step; `logits` [R, vocabulary] predict the first tokens."""
    pattern = Decode(trunk, torch.tensor([row.prefix for row in rows], device=logits.device))
    while True:
        draws = [0.0 if row.ended else row.draws[len(row.ids)] for row in rows]
        for row, token in zip(rows, choose(logits, sampling.decoding, draws), strict=True):
            if not row.ended:
                row.ids.append(token)
                row.ended = (
                    token in sampling.eos_ids
                    or len(row.ids) == row.limit
                    or sampling.stopped(row.ids)
                )
        active = [i for i, row in enumerate(rows) if not row.ended]
        if not active:
            return
        if len(rows) - len(active) > len(rows) // _DROP_SHARE:
            pattern.keep(torch.tensor(active, device=logits.device))
            rows = [rows[i] for i in active]
        newest = torch.tensor([[row.ids[-1] for row in rows]], device=logits.device)
        everyone = torch.ones(1, 1, len(rows), len(rows), dtype=torch.bool, device=logits.device)
        logits = (
            model(
                input_ids=newest,
                position_ids=pattern.position[None],
                # The pattern decides who sees what; a mask of four dimensions keeps the model from
                # building another.
                attention_mask=everyone,
                use_cache=False,
                step_tree=pattern,
            )
            .logits[0]
            .float()
        )
        pattern.advance()
