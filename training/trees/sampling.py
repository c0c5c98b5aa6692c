"""Practice (eq. 5): the agent's own actions in every state of an expert trajectory, in one go.

    a_i^θ ~ π_θ(· | ŝ_i),   i = 1 … n,   K times each

The trajectory is read once. Its keys and values are then shared by all n·K replies, which are
decoded together: each decoding step feeds one token per row, as one sequence of as many tokens, and
a row sees its own prefix of the trajectory and its own tokens (`trees.attention.Decode`). A reply's
first token comes from the reading itself. Replies to several short trajectories are decoded
together, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stepagent.agents.encoded import Encoded, depths
from stepagent.agents.generation import Decoding, pick
from stepagent.agents.models import context_length, evaluating
from stepagent.training.trees.attention import Decode, Prefill
from stepagent.training.trees.compat import check_path, unwrap
from stepagent.training.trees.tree import StepTree

Replies = list[list[list[int]]]
"""[i][j]: token ids of the j-th reply in the i-th state of a trajectory"""
MAX_ROWS = 256
"""Rows decoded together; a trajectory that has more goes in groups, which share its reading."""
MAX_BYTES = 2 * 1024**3
"""Keys and values of trajectories and replies that are decoded together, where there are several
trajectories."""
_DROP_SHARE = 8
"""Rows that have ended are dropped once they are more than one in this many."""


def draw_seed(*numbers: int) -> int:
    """One seed from several numbers, such as a stage's seed and a trajectory's number; as many in
    every call of a kind. They are mixed, not added: stages of neighbouring seeds would otherwise
    have noise in common.

    >>> draw_seed(0, 1) == draw_seed(1, 0), draw_seed(0, 1) == draw_seed(0, 1)
    (False, True)
    """
    mixed = np.random.SeedSequence([number % 2**63 for number in numbers])
    return int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1))


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

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether a reply that has these tokens so far ends with the last one."""
        return ids[-1] in self.eos_ids or self.stopped(ids)

    def __post_init__(self) -> None:
        if self.k < 1 or (self.decoding.temperature == 0 and self.k > 1):
            raise ValueError(
                f"k is {self.k} at temperature {self.decoding.temperature}: it must be at least 1, "
                "and 1 where greedy (all replies in a state would be the same)"
            )


@dataclass
class _Row:
    """A reply that is being decoded."""

    trunk: int
    """Number of the trajectory."""
    prefix: int
    """Where in the trajectory the state that it answers ends."""
    limit: int
    """The most tokens it may have."""
    draws: np.ndarray
    """float64 [limit], uniform in [0, 1): one per token"""
    ids: list[int] = field(default_factory=list)
    ended: bool = False


def practice(
    model: nn.Module, trajectory: Encoded | StepTree, sampling: Sampling, seed: int
) -> Replies:
    """K replies in every state of a trajectory, from one prefill: `practices` of a single one."""
    return practices(model, [(trajectory, seed)], sampling)[0]


@torch.no_grad()
def practices(
    model: nn.Module, jobs: Sequence[tuple[Encoded | StepTree, int]], sampling: Sampling
) -> list[Replies]:
    """K replies in every state of each trajectory, from one prefill each, all decoded together.

    The t-th token of the j-th reply in the i-th state is chosen by a random number that depends on
    (seed, i, j, t) alone: not on the other rows, their number, nor on K. Logits may still differ in
    their last digits with the shape of a batch, and now and then a token with them. Greedy tokens
    are those of `generate` on each state.

    Args:
        jobs: trajectories (the expert's; branches of a tree have no part in it), each with the seed
            of its draws. As many as `together` says.
        sampling: how many replies, and how they are drawn.

    Returns:
        The replies to each job, of one token or more. A reply's last token is not in `eos_ids`
        where it was cut or stopped.

    Raises:
        ValueError: a state that fills the model's context; a model that cannot run step trees.
    """
    k, limit = sampling.k, sampling.decoding.max_new_tokens
    acting = [_Reading(trajectory, seed) for trajectory, seed in jobs if trajectory.replies]
    if not acting:
        return [[] for _ in jobs]
    longest = max(max(reading.sizes) for reading in acting)
    context = context_length(unwrap(model))
    check_path(model, longest + 1)
    window = check_path(model, min(longest + limit, context))
    rows = []
    for number, reading in enumerate(acting):
        for step, (start, size) in enumerate(zip(reading.starts, reading.sizes, strict=True)):
            room = min(limit, context - size)
            for j in range(k):
                draws = np.random.default_rng([reading.seed % 2**63, step, j]).random(room)
                rows.append(_Row(number, start, room, draws))
    with evaluating(model):
        trunks, after = zip(*(_read(model, reading, window) for reading in acting), strict=True)
        logits = torch.cat(after)  # a row for each state
        del after
        for first in range(0, len(rows), MAX_ROWS):
            group = rows[first : first + MAX_ROWS]
            states = [i // k for i in range(first, first + len(group))]
            _decode(model, trunks, group, logits[states], sampling)
    ids = iter([row.ids for row in rows])
    return [[[next(ids) for _ in range(k)] for _ in trajectory.replies] for trajectory, _ in jobs]


def together(
    model: nn.Module, trajectories: Sequence[Encoded | StepTree], sampling: Sampling
) -> Iterator[range]:
    """Numbers of neighbours that `practices` should draw for in one go: as many as `MAX_ROWS` and
    `MAX_BYTES` allow, at least one trajectory."""
    room = MAX_BYTES // _bytes_per_token(model)
    start = rows = tokens = 0
    for i, trajectory in enumerate(trajectories):
        more_rows = sampling.k * len(trajectory.replies)
        read = trajectory.replies[-1][0] if trajectory.replies else 0
        more_tokens = read + more_rows * sampling.decoding.max_new_tokens
        if i > start and (rows + more_rows > MAX_ROWS or tokens + more_tokens > room):
            yield range(start, i)
            start, rows, tokens = i, 0, 0
        rows, tokens = rows + more_rows, tokens + more_tokens
    if start < len(trajectories):
        yield range(start, len(trajectories))


@torch.no_grad()
def _bytes_per_token(model: nn.Module) -> int:
    """Bytes that the keys and values of a token take, measured: where they are computed in float32,
    or models have their own shapes, no configuration says so."""
    check_path(model, 1)
    with evaluating(model):
        trunk, _ = _read(model, _Reading(Encoded([0, 0], [(1, 2)]), 0), None)
    kept = [*trunk.keys.values(), *trunk.values.values()]
    return sum(x.numel() * x.element_size() for x in kept)


class _Reading:
    """A trajectory with at least one state, as it is read up to the last one."""

    def __init__(self, trajectory: Encoded | StepTree, seed: int):
        self.seed = seed
        self.starts = [start for start, _ in trajectory.replies]
        """Where each state ends and its reply begins."""
        size = self.starts[-1]
        self.ids = list(trajectory.ids[:size])
        self.joins = [join for join in trajectory.joins if join[0] < size]
        place = depths(trajectory.joins, size)
        self.sizes = [place[start - 1] + 1 for start in self.starts]
        """Tokens of each state."""


def _read(model: nn.Module, reading: _Reading, window: int | None) -> tuple[Prefill, Tensor]:
    """Prefill up to the last state; also float32 logits [n_steps, vocabulary] after each state."""
    base = unwrap(model)
    device = base.device
    size, trunk = len(reading.ids), Prefill(window, reading.joins)
    everyone = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    placed: dict[str, Any] = {}
    if trunk.joins:
        placed["position_ids"] = torch.tensor([depths(trunk.joins, size)], device=device)
        # Or the model would take positions that start again for several texts, and mask them.
        placed["attention_mask"] = everyone.expand(1, 1, size, size)
    out = model(
        input_ids=torch.tensor([reading.ids], device=device),
        **placed,
        logits_to_keep=torch.tensor(reading.starts, device=device) - 1,
        use_cache=False,
        step_tree=trunk,
    )
    trunk.span = None  # only reading needs it
    layers = base.config.get_text_config(decoder=True).num_hidden_layers
    if len(trunk.keys) != layers:
        raise RuntimeError(
            f"{type(base).__name__} passed its attention pattern to {len(trunk.keys)} of its "
            f"{layers} layers: it cannot practise from a shared trajectory"
        )
    return trunk, out.logits[0].float()


def _decode(
    model: nn.Module,
    trunks: Sequence[Prefill],
    rows: list[_Row],
    logits: Tensor,
    sampling: Sampling,
) -> None:
    """Writes the rows' replies, all in step; `logits` [R, vocabulary] predict the first tokens."""
    device = logits.device
    prefix = torch.tensor([row.prefix for row in rows], device=device)
    pattern = Decode(trunks, [row.trunk for row in rows], prefix)
    unseen, last = _unseen_tokens(device), context_length(unwrap(model)) - 1
    while True:
        # No further than the shortest row that is still active may go.
        room = min(row.limit - len(row.ids) for row in rows if not row.ended)
        table = [_next_draws(row, min(unseen, room)) for row in rows]
        draws = torch.from_numpy(np.stack(table)).to(device)
        columns: list[Tensor] = []
        for t in range(draws.shape[1]):
            if t:
                logits = _decode_step(model, pattern, columns[-1], last)
            columns.append(pick(logits, sampling.decoding, draws[:, t]))
        for row, ids in zip(rows, torch.stack(columns, dim=1).tolist(), strict=True):
            _extend(row, ids, sampling)
        active = [i for i, row in enumerate(rows) if not row.ended]
        if not active:
            return
        newest = columns[-1]
        if len(rows) - len(active) > len(rows) // _DROP_SHARE:
            places = torch.tensor(active, device=device)
            pattern.keep(places)
            rows, newest = [rows[i] for i in active], newest[places]
        logits = _decode_step(model, pattern, newest, last)


def _unseen_tokens(device: torch.device) -> int:
    """Tokens that are decoded before the rows are looked at, which is to wait for a GPU; what
    follows a reply's end is thrown away."""
    return 1 if device.type == "cpu" else 16


def _next_draws(row: _Row, count: int) -> np.ndarray:
    """float64 [count]: what the row's next tokens are drawn with; of a row that has ended, any."""
    start = len(row.ids)
    return np.zeros(count) if row.ended else row.draws[start : start + count]


def _extend(row: _Row, ids: Sequence[int], sampling: Sampling) -> None:
    """Appends tokens up to the one that ends the reply."""
    for token in ids:
        if row.ended:
            return
        row.ids.append(token)
        row.ended = len(row.ids) == row.limit or sampling.ends(row.ids)


def _decode_step(model: nn.Module, pattern: Decode, newest: Tensor, last: int) -> Tensor:
    """float32 logits [R, vocabulary] behind the newest tokens, int64 [R]; no position is beyond
    `last`, at which rows that have ended at the end of the context are fed on until they are
    dropped."""
    rows = len(newest)
    everyone = torch.ones(1, 1, rows, rows, dtype=torch.bool, device=newest.device)
    out = model(
        input_ids=newest[None],
        position_ids=pattern.position.clamp(max=last)[None],
        # The pattern decides who sees what; a mask of four dimensions keeps the model from building
        # another.
        attention_mask=everyone,
        use_cache=False,
        step_tree=pattern,
    )
    pattern.advance()
    return out.logits[0].float()
