"""Replies of a language model to conversations that keep their key-value cache.

In every turn the model reads only what a conversation has gained since its last turn: the longest
common prefix of the prompt and a cache slot stays, the rest is prefilled (ragged over the batch, in
chunks). The first of several conversations that share a beginning reads it; the others copy it.

Batching is continuous: a conversation joins when it arrives and leaves as soon as its reply has
ended, in the middle of the others' replies. Each pass of `Generator.step` feeds every active
conversation what it has not read yet, a chunk of its prompt or its last token, so that prefill and
decoding are not separate phases. `Generator.generate` does the same for a fixed batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stepagent.agents import packed_attention
from stepagent.agents.kv_cache import KVCache

_WORTH_COPYING = 32
"""Shared tokens for which a conversation waits until another one has read them."""
log = logging.getLogger(__name__)
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class Request:
    """A conversation that waits for a reply."""

    key: Hashable
    ids: list[int]
    rng: np.random.Generator
    """Sampling draws one number per token from it; unused when decoding is greedy."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Temperature 0 is greedy; top_p is nucleus sampling."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(f"{self}: needs temperature ≥ 0, 0 < top_p ≤ 1, max_new_tokens ≥ 1")


@dataclass
class Counts:
    """Running totals, in tokens."""

    read: int = 0
    """Prompt tokens that went through the model."""
    cached: int = 0
    """Prompt tokens that were in the cache already."""
    generated: int = 0


@dataclass
class _BatchRow:
    """A request while it is being answered."""

    request: Request
    slot: int = -1
    reply: list[int] = field(default_factory=list)
    ended: bool = False

    def unread(self, filled: int) -> list[int]:
        """The tokens that the model has not seen yet, if the slot holds `filled` tokens."""
        size = len(self.request.ids)
        return self.request.ids[filled:] if filled < size else self.reply[filled - size :]


_Unread = list[tuple[_BatchRow, list[int]]]
"""Rows, and the tokens of each that the next pass is to read."""


def choose(logits: torch.Tensor, decoding: Decoding, draws: Sequence[float]) -> list[int]:
    """One token per row of `logits` (rows, vocabulary), by the row's uniform draw in [0, 1).

    A row's choice depends on its logits and its draw only, not on the other rows.
    """
    uniform = torch.tensor(draws, dtype=torch.float64, device=logits.device)
    return pick(logits, decoding, uniform).tolist()


def pick(logits: torch.Tensor, decoding: Decoding, draws: torch.Tensor) -> torch.Tensor:
    """`choose` without leaving the device: draws float64 (rows), returns int64 (rows)."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.double() / decoding.temperature).softmax(-1)
    draw = draws[:, None]
    if decoding.top_p == 1:
        total = probabilities.cumsum(-1)
        picked = torch.searchsorted(total, draw * total[:, -1:], right=True)
        return picked.clamp_(max=logits.shape[-1] - 1).squeeze(-1)
    probabilities, order = probabilities.sort(dim=-1, descending=True, stable=True)
    total = probabilities.cumsum(-1)
    # The most likely token always stays.
    last = (total - probabilities < decoding.top_p).sum(-1, keepdim=True) - 1
    picked = torch.searchsorted(total, draw * total.gather(-1, last), right=True)
    return order.gather(-1, torch.minimum(picked, last)).squeeze(-1)


class Generator:
    """Answers requests with one model: `admit` them and `step`, or `generate` a batch.

    Parameters
    ----------
    model: a causal language model with attention layers (see `why_uncacheable`).
    ends: token ids that end a reply (included as its last token).
    stopped: called with a reply's ids after each token; True ends the reply.
    slots: conversations whose cache is kept.
    limit: tokens of context, including replies.
    packed: whether a pass has no padding (`agents.packed_attention`), which needs a CPU and full
        attention other than eager; None: where the model gives the same logits so.
    """

    def __init__(
        self,
        model: Any,
        *,
        ends: frozenset[int],
        stopped: Callable[[list[int]], bool],
        slots: int,
        limit: int,
        packed: bool | None = None,
    ):
        self.model, self.ends, self.stopped = model, ends, stopped
        self.counts = Counts()
        self.device = model.get_input_embeddings().weight.device
        self.cache = KVCache(slots, limit, self.device)
        self._queue: list[_BatchRow] = []  # waiting for a slot
        self._active: list[_BatchRow] = []
        fast = self.device.type != "cpu"
        self._floor = 1024 if fast else 64  # below so many tokens a pass gets no cheaper
        self._chunk = 16384 if fast else 2048  # tokens per forward pass
        config = model.config.get_text_config()
        self._eager = config._attn_implementation == "eager"
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        self._window = window if window and window < limit else None
        self._mixed = kinds if len(kinds) > 1 else None
        if kinds == {"full_attention"}:
            self._window = None
        plain = self._window is None and not self._mixed and not self._eager and not fast
        self.packed = plain and (can_be_packed(model) if packed is None else packed)

    def forget(self, key: Hashable) -> None:
        """The conversation is over, answered or not: its slot is free."""
        self._drop([row for row in (*self._queue, *self._active) if row.request.key == key])
        self.cache.release(key)

    def clear(self) -> None:
        """Drops all caches and all requests."""
        self._queue, self._active = [], []
        self.cache.clear()

    def _drop(self, rows: Sequence[_BatchRow]) -> None:
        gone = set(map(id, rows))
        self._queue = [row for row in self._queue if id(row) not in gone]
        self._active = [row for row in self._active if id(row) not in gone]

    # Continuous batching ------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[list[int]]:
        """The ids of each request's reply, in order."""
        rows = self.admit(requests)
        try:
            while not all(row.ended for row in rows):
                self.step(decoding)
        finally:
            self._drop(rows)
        return [row.reply for row in rows]

    def admit(self, requests: Sequence[Request]) -> list[_BatchRow]:
        """Accepts requests; those that find no free slot wait for one."""
        rows = [_BatchRow(request) for request in requests]
        self._queue += rows
        return rows

    @torch.no_grad()
    def step(self, decoding: Decoding) -> list[tuple[Hashable, list[int]]]:
        """Advances all active requests: each reads a chunk, or generates one token. Returns (key,
        reply) of those that ended.

        This takes one pass through the model, or several where widths differ much (see `_groups`).
        """
        self._seat()
        unread = [(row, row.unread(self.cache.filled(row.slot))) for row in self._active]
        reading = sum(len(ids) > 1 for _, ids in unread)
        width = max(1, self._chunk // max(1, reading))
        todo = [(row, ids[:width]) for row, ids in unread]
        for group in [todo] if self.packed else _groups(todo, self._floor):
            if group:
                self._pass(group, decoding)
        ended = [row for row in self._active if row.ended]
        self._drop(ended)
        return [(row.request.key, row.reply) for row in ended]

    def _seat(self) -> None:
        """Gives each waiting request a slot, and there the longest cached prefix of its prompt."""
        waiting, self._queue = self._queue, []
        for row in waiting:
            # The last token is always read, because its logits are needed.
            ids, key = row.request.ids, row.request.key
            here = int(self.cache.shared(ids[:-1]).max(initial=0))
            if len(self._active) == self.cache.max_slots or any(
                _common(ids, other.request.ids) - here >= _WORTH_COPYING
                for other in self._active
                if self.cache.filled(other.slot) < len(other.request.ids)
            ):
                self._queue.append(row)
                continue
            row.slot = slot = self.cache.acquire(key, ids, {r.request.key for r in self._active})
            shared = self.cache.shared(ids[:-1])
            source = slot if shared[slot] == here else int(shared.argmax())
            self.cache.copy_prefix(source, slot, here)
            self.counts.cached += here
            self._active.append(row)

    def _pass(self, group: _Unread, decoding: Decoding) -> None:
        """One pass over some rows; those that have read everything generate their next token."""
        for row, ids in group:
            left = len(row.request.ids) - self.cache.filled(row.slot)
            self.counts.read += max(0, min(left, len(ids)))
        logits = self._packed_logits(group) if self.packed else self._padded_logits(group)
        done = [
            (i, row)
            for i, (row, _) in enumerate(group)
            if not row.unread(self.cache.filled(row.slot))
        ]
        if done:
            self._extend([row for _, row in done], logits[[i for i, _ in done]], decoding)

    def _packed_logits(self, group: _Unread) -> torch.Tensor:
        """Float32 logits after the last token of each row, (rows, vocabulary)."""
        answering = [row for row, ids in group if len(ids) == 1]
        span = self._span(answering) if answering else range(0)
        return self._forward_packed([row.slot for row, _ in group], [ids for _, ids in group], span)

    def _padded_logits(self, group: _Unread) -> torch.Tensor:
        """As `_packed_logits`."""
        if all(len(ids) == 1 for _, ids in group):  # adjacent slots are read without a copy
            span = self._span([row for row, _ in group])
            new: list[list[int]] = [[] for _ in span]
            for row, ids in group:
                new[row.slot - span[0]] = ids
            return self._forward(span, new)[[row.slot - span[0] for row, _ in group]]
        order = sorted(range(len(group)), key=lambda i: group[i][0].slot)
        logits = self._forward([group[i][0].slot for i in order], [group[i][1] for i in order])
        return logits[np.argsort(order)]

    def _extend(self, rows: list[_BatchRow], logits: torch.Tensor, decoding: Decoding) -> None:
        """Appends the next token to each reply, and marks those that have ended."""
        draws = [row.request.rng.random() if decoding.temperature else 0.0 for row in rows]
        for row, token in zip(rows, choose(logits, decoding, draws), strict=True):
            row.reply.append(token)
            self.counts.generated += 1
            row.ended = (
                token in self.ends
                or len(row.reply) == decoding.max_new_tokens
                or self.stopped(row.reply)
            )

    def _span(self, active: list[_BatchRow]) -> range:
        """Adjacent slots that include the active rows; rows that are far apart are moved.

        Inactive slots in between cost little, whereas moving copies an entire slot.
        """
        slots = [row.slot for row in active]
        if max(slots) - min(slots) >= 2 * len(slots):
            self.cache.gather(slots)
            for row in self._active:  # other rows may have moved, too
                row.slot = self.cache.slot(row.request.key)
            slots = [row.slot for row in active]
        return range(min(slots), max(slots) + 1)

    def _forward(self, slots: Sequence[int], new: Sequence[Sequence[int]]) -> torch.Tensor:
        """Appends tokens to slots; returns float32 logits after the last one of each row, (rows,
        vocabulary)."""
        batch = self.cache.begin(slots, new, None if self._mixed else self._window)
        mask: Any = self._as_mask(batch.pop("mask"))
        if self._mixed:
            near = self.cache.begin(slots, new, self._window)["mask"]
            mask = {"full_attention": mask, "sliding_attention": self._as_mask(near)}
        out = self.model(
            **batch,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.commit()
        return out.logits[:, -1].float()

    def _forward_packed(
        self, slots: Sequence[int], new: Sequence[Sequence[int]], span: range
    ) -> torch.Tensor:
        """As `_forward`, without padding: `KVCache.begin_packed`."""
        batch = self.cache.begin_packed(slots, new, span)
        last = torch.tensor([len(tokens) for tokens in new]).cumsum(0) - 1
        config = self.model.config.get_text_config()
        usual, config._attn_implementation = config._attn_implementation, packed_attention.NAME
        try:
            out = self.model(
                **batch,
                attention_mask=_NO_MASK,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=last,
            )
        finally:
            config._attn_implementation = usual
        self.cache.commit()
        return out.logits[0].float()

    def _as_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        """SDPA takes a boolean mask; eager attention adds a mask to the scores."""
        if not self._eager:
            return allowed
        dtype = self.model.dtype
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


_NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)
"""Of four dimensions, so that a model makes none of its own."""


def _common(one: list[int], two: list[int]) -> int:
    """Length of the common prefix."""
    n = min(len(one), len(two))
    differs = np.asarray(one[:n]) != np.asarray(two[:n])
    return int(differs.argmax()) if differs.any() else n


def _groups(todo: _Unread, floor: int) -> list[_Unread]:
    """Splits ragged rows into passes, at the lowest total cost.

    A pass over w columns and b rows costs b · w, and at least `floor`.
    """
    todo = sorted(todo, key=lambda entry: -len(entry[1]))
    widths = [len(ids) for _, ids in todo]
    starts = [i for i, width in enumerate(widths) if i == 0 or width < widths[i - 1]]
    best, last_start = [0], [0]  # of the first n rows: cost, and where the last pass begins
    for end in range(1, len(todo) + 1):
        cost = {i: best[i] + max(floor, (end - i) * widths[i]) for i in starts if i < end}
        start = min(cost, key=lambda i: cost[i])
        best.append(cost[start])
        last_start.append(start)
    groups, end = [], len(todo)
    while end:
        groups.append(todo[last_start[end] : end])
        end = last_start[end]
    return groups[::-1]


def why_uncacheable(model: Any) -> str:
    """Why a model's cache cannot be kept in slots; "" if it can.

    Checks the config first, then the model itself: a ragged batch read in two passes through the
    slots must give the logits of ordinary passes.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if others:
        return f"it has layers other than attention: {', '.join(sorted(others))}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its positions ({rope['rope_type']}) change with the length of the text"
    return _why_not(model, packed=False)


def can_be_packed(model: Any) -> bool:
    """Whether passes without padding give the model's logits."""
    why_not = _why_not(model, packed=True)
    if why_not:
        log.debug("passes of %s are padded: %s", type(model).__name__, why_not)
    return not why_not


def _why_not(model: Any, packed: bool) -> str:
    """Why passes through the slots, packed or padded, are not the model's own; "" if they are."""
    try:
        worst = _probe(model, packed)
    except Exception as error:  # whatever a model raises here, another way still works
        what = "a packing" if packed else "a mask and positions"
        return f"its forward pass does not take {what} ({type(error).__name__})"
    dtype = getattr(model, "compute_dtype", model.dtype)  # of a model under autocast
    rounding = 1e-3 if dtype == torch.float32 else 0.1
    return "" if worst < rounding else f"its logits change by {worst:.2g} when the cache is kept"


@torch.no_grad()
def _probe(model: Any, packed: bool) -> float:
    """Root mean square difference of logits, slots against ordinary passes, over their spread."""
    ends: frozenset[int] = frozenset()
    generator = Generator(
        model, ends=ends, stopped=lambda ids: True, slots=3, limit=64, packed=packed
    )
    size = model.config.get_text_config().vocab_size
    texts = [[(7 * i + 3 * row + 1) % size for i in range(n)] for row, n in enumerate((9, 5, 13))]
    slots = [generator.cache.acquire(row, ids, ()) for row, ids in enumerate(texts)]
    parts = [[ids[: n - 1] for n, ids in zip((5, 5, 7), texts, strict=True)]]
    parts.append([ids[len(read) :] for ids, read in zip(texts, parts[0], strict=True)])
    cached = torch.empty(0)
    for part in parts:  # of the second text one token is left, of the others more
        if packed:
            cached = generator._forward_packed(slots, part, range(slots[1], slots[1] + 1))
        else:
            cached = generator._forward(slots, part)
    worst = 0.0
    for row, ids in enumerate(texts):
        logits = model(input_ids=torch.tensor([ids], device=generator.device)).logits[0, -1].float()
        difference = (cached[row] - logits).pow(2).mean().sqrt() / logits.std().clamp_min(1e-6)
        worst = max(worst, float(difference))
    return worst
