"""Replies of a language model to a batch of conversations that keep their key-value cache.

At every turn only what a conversation gained since its last turn is read: the longest common prefix
of the prompt and what a cache slot holds stays, the rest is prefilled (ragged over the batch, in
chunks), then all conversations are decoded together, and those that have ended leave the batch.
The first of several conversations that share a beginning reads it; the others copy it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from agents.slots import SlotCache

_WORTH_COPYING = 32
"""Shared tokens for which a conversation waits until another one has read them."""
_PLAIN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass
class Prompt:
    """A conversation that waits for a reply."""

    key: Hashable
    ids: list[int]
    rng: np.random.Generator
    """Where sampling draws one number a token from; untouched when decoding is greedy."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. Temperature 0 is greedy; top_p keeps the likeliest tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.max_new_tokens < 1:
            raise ValueError(f"{self}: wants temperature ≥ 0, 0 < top_p ≤ 1, max_new_tokens ≥ 1")


@dataclass
class Counts:
    """Running totals, in tokens."""

    read: int = 0
    """Prompt tokens that went through the model."""
    kept: int = 0
    """Prompt tokens that a slot held already."""
    generated: int = 0


@dataclass
class _Row:
    """A conversation while it is being answered."""

    prompt: Prompt
    slot: int
    reply: list[int] = field(default_factory=list)


def choose(logits: torch.Tensor, decoding: Decoding, draws: Sequence[float]) -> list[int]:
    """One token a row of `logits` (rows, vocabulary), by the row's own uniform draw in [0, 1).

    A row's choice depends on its logits and its draw only, not on the other rows.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1).tolist()
    chance = (logits.double() / decoding.temperature).softmax(-1)
    draw = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None]
    if decoding.top_p == 1:
        total = chance.cumsum(-1)
        picked = torch.searchsorted(total, draw * total[:, -1:], right=True)
        return picked.clamp_(max=logits.shape[-1] - 1).squeeze(-1).tolist()
    chance, order = chance.sort(dim=-1, descending=True, stable=True)
    total = chance.cumsum(-1)
    last = (total - chance < decoding.top_p).sum(-1, keepdim=True) - 1  # the likeliest always stays
    picked = torch.searchsorted(total, draw * total.gather(-1, last), right=True)
    return order.gather(-1, torch.minimum(picked, last)).squeeze(-1).tolist()


class Generator:
    """Answers batches of prompts with one model.

    Parameters
    ----------
    model: a causal language model with attention layers (see `why_not`).
    ends: token ids that end a reply (kept as its last token).
    stopped: told a reply's ids after each token; True ends the reply.
    slots: conversations whose cache is kept.
    limit: tokens of context, replies included.
    """

    def __init__(
        self,
        model: Any,
        *,
        ends: frozenset[int],
        stopped: Callable[[list[int]], bool],
        slots: int,
        limit: int,
    ):
        self.model, self.ends, self.stopped = model, ends, stopped
        self.counts = Counts()
        self.device = model.get_input_embeddings().weight.device
        self.cache = SlotCache(slots, limit, self.device)
        fast = self.device.type != "cpu"
        self._floor = 1024 if fast else 64  # tokens that cost as much as fewer do
        self._chunk = 16384 if fast else 2048  # tokens of one forward pass
        config = model.config.get_text_config()
        self._eager = config._attn_implementation == "eager"
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        self._window = window if window and window < limit else None
        self._mixed = kinds if len(kinds) > 1 else None
        if kinds == {"full_attention"}:
            self._window = None

    def forget(self, key: Hashable) -> None:
        """The conversation is over: its slot is free."""
        self.cache.release(key)

    def clear(self) -> None:
        """Drops all that is kept."""
        self.cache.clear()

    # The plan of a batch ------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[list[int]]:
        """The ids of each prompt's reply, in order."""
        replies: list[list[int]] = []
        size = self.cache.max_slots
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size]
            busy = {prompt.key for prompt in part}
            rows = [_Row(p, self.cache.acquire(p.key, p.ids, busy)) for p in part]
            self._decode(rows, self._prefill(rows), decoding)
            replies += [row.reply for row in rows]
        return replies

    def _prefill(self, rows: list[_Row]) -> torch.Tensor:
        """Brings every slot up to its prompt; logits after it, (rows, vocabulary)."""
        found: dict[int, torch.Tensor] = {}
        waiting = list(range(len(rows)))
        while waiting:
            wave: list[int] = []
            later: list[int] = []
            for i in waiting:
                # The last token is always read: its logits are wanted.
                ids = rows[i].prompt.ids
                shared = self.cache.shared(ids[:-1])
                best = int(shared.argmax())
                here = int(shared[best])
                if any(_common(ids, rows[j].prompt.ids) - here >= _WORTH_COPYING for j in wave):
                    later.append(i)
                    continue
                slot = rows[i].slot
                self.cache.copy_prefix(slot if shared[slot] == here else best, slot, here)
                self.counts.kept += here
                wave.append(i)
            todo = [(i, rows[i].prompt.ids[self.cache.filled(rows[i].slot) :]) for i in wave]
            for group in _groups(todo, self._floor):
                found |= self._read(rows, group)
            waiting = later
        return torch.stack([found[i] for i in range(len(rows))])

    def _read(self, rows: list[_Row], todo: list[tuple[int, list[int]]]) -> dict[int, torch.Tensor]:
        """Reads the missing tokens of some rows, chunk by chunk; logits after the last one."""
        todo = sorted(todo, key=lambda entry: rows[entry[0]].slot)
        width = max(len(ids) for _, ids in todo)
        step = max(1, self._chunk // len(todo))
        for end in range(width - (width - 1) // step * step, width + 1, step):
            # Rows are lined up at their ends; a short one joins when its part comes.
            parts = []
            for i, ids in todo:
                upto = end - width + len(ids)
                if upto > 0:
                    parts.append((i, ids[max(0, upto - step) : upto]))
            logits = self._forward([rows[i].slot for i, _ in parts], [part for _, part in parts])
        self.counts.read += sum(len(ids) for _, ids in todo)
        return {i: logits[row] for row, (i, _) in enumerate(parts)}

    def _decode(self, rows: list[_Row], logits: torch.Tensor, decoding: Decoding) -> None:
        """Lets all rows reply together; a row that has ended leaves the batch."""
        active = list(rows)
        while True:
            draws = [row.prompt.rng.random() if decoding.temperature else 0.0 for row in active]
            going = []
            for row, token in zip(active, choose(logits, decoding, draws), strict=True):
                row.reply.append(token)
                self.counts.generated += 1
                if not (
                    token in self.ends
                    or len(row.reply) == decoding.max_new_tokens
                    or self.stopped(row.reply)
                ):
                    going.append(row)
            if not going:
                return
            active = going
            span = self._span(active)
            new: list[list[int]] = [[] for _ in span]
            for row in active:
                new[row.slot - span[0]] = [row.reply[-1]]
            logits = self._forward(span, new)[[row.slot - span[0] for row in active]]

    def _span(self, active: list[_Row]) -> range:
        """Neighbouring slots that hold the active rows; the rows are moved where they lie apart.

        Slots in between that are not active cost little, moving costs a copy of a whole slot.
        """
        slots = [row.slot for row in active]
        if max(slots) - min(slots) >= 2 * len(slots):
            for row, slot in zip(active, self.cache.gather(slots), strict=True):
                row.slot = slot
            slots = [row.slot for row in active]
        return range(min(slots), max(slots) + 1)

    def _forward(self, slots: Sequence[int], new: Sequence[Sequence[int]]) -> torch.Tensor:
        """Appends tokens to slots; float32 logits after each row's last one, (rows, vocabulary)."""
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

    def _as_mask(self, allowed: torch.Tensor) -> torch.Tensor:
        """SDPA takes a boolean mask; the eager way adds one to the scores."""
        if not self._eager:
            return allowed
        dtype = self.model.dtype
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def _common(one: list[int], two: list[int]) -> int:
    """Length of the common beginning."""
    n = min(len(one), len(two))
    differs = np.asarray(one[:n]) != np.asarray(two[:n])
    return int(differs.argmax()) if differs.any() else n


def _groups(todo: list[tuple[int, list[int]]], floor: int) -> list[list[tuple[int, list[int]]]]:
    """Splits ragged rows into batches where filling up costs less than a pass of its own.

    A pass over w columns and b rows costs b · w, and at least `floor`.
    """
    groups: list[list[tuple[int, list[int]]]] = []
    for entry in sorted(todo, key=lambda entry: -len(entry[1])):
        if groups:
            rows, width = len(groups[-1]), len(groups[-1][0][1])
            together = max(floor, (rows + 1) * width)
            if together <= max(floor, rows * width) + max(floor, len(entry[1])):
                groups[-1].append(entry)
                continue
        groups.append([entry])
    return groups


def why_not(model: Any) -> str:
    """Why a model's cache cannot be kept in slots; "" where it can.

    What the config says is checked first, then the model itself: a ragged batch read in two passes
    through the slots must give the logits of plain passes.
    """
    config = model.config.get_text_config()
    others = set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS
    if others:
        return f"it has layers of another kind than attention: {', '.join(sorted(others))}"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return f"its positions ({rope['rope_type']}) change with the length of the text"
    try:
        worst = _probe(model)
    except Exception as error:  # whatever a foreign model raises here, the plain way is left
        return f"its forward pass does not take a mask and positions ({type(error).__name__})"
    rounding = 1e-3 if model.dtype == torch.float32 else 0.1
    return "" if worst < rounding else f"its logits change by {worst:.2g} when the cache is kept"


@torch.no_grad()
def _probe(model: Any) -> float:
    """Root mean square difference of logits, slots against plain passes, over their spread."""
    generator = Generator(model, ends=frozenset(), stopped=lambda ids: True, slots=3, limit=64)
    size = model.config.get_text_config().vocab_size
    texts = [[(7 * i + 3 * row + 1) % size for i in range(n)] for row, n in enumerate((9, 5, 12))]
    slots = [generator.cache.acquire(row, ids, ()) for row, ids in enumerate(texts)]
    generator._forward(slots, [ids[: 2 * row + 2] for row, ids in enumerate(texts)])
    ours = generator._forward(slots, [ids[2 * row + 2 :] for row, ids in enumerate(texts)])
    worst = 0.0
    for row, ids in enumerate(texts):
        plain = model(input_ids=torch.tensor([ids], device=generator.device)).logits[0, -1].float()
        difference = (ours[row] - plain).pow(2).mean().sqrt() / plain.std().clamp_min(1e-6)
        worst = max(worst, float(difference))
    return worst
