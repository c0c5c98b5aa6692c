"""A key-value cache with one slot per conversation, kept from turn to turn.

Each layer has one tensor of keys and one of values, [slots, heads, length, head size], which grow
by doubling. A forward pass over some slots writes each row's new keys at that row's own offset, and
reads adjacent slots as a view, so that decoding copies nothing. The cache also records the token
ids that each slot holds, so that a new prompt can find how much of it is cached already: in the
conversation's own slot or (a shared system message) in another's.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from stepagent.agents.packed_attention import Packing, Prefill

_BLOCK = 64
"""Tokens per block: lengths are allocated and read in blocks."""


@dataclass(frozen=True)
class _Pass:
    """What the next forward pass writes (batch[i], column[i] → slot[i], position[i]) and reads."""

    batch: torch.Tensor
    column: torch.Tensor
    slot: torch.Tensor
    position: torch.Tensor
    read: slice | torch.Tensor
    length: int


class KVCache(Cache):
    """Slots for at most `max_slots` conversations of at most `max_length` tokens.

    A free slot keeps its tokens until it is reused, so that a new conversation may find its
    beginning there.
    """

    def __init__(self, max_slots: int, max_length: int, device: Any):
        super().__init__(layers=[])
        self.max_slots, self.max_length, self.device = max_slots, max_length, device
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._tokens = np.zeros((0, 0), np.int64)  # [slots, length]
        self._filled = np.zeros(0, np.int64)
        self._owner: list[Hashable | None] = []
        self._used: list[int] = []
        self._clock = 0
        self._pass: _Pass | None = None
        self._new: tuple[np.ndarray, np.ndarray, np.ndarray]

    # Slots and their tokens ---------------------------------------------------------------------

    def acquire(self, key: Hashable, ids: Sequence[int], busy: Collection[Hashable]) -> int:
        """The conversation's slot: its own, else a free one, else the least recently used one.

        Among free slots, the one that shares most of `ids` is taken, so that nothing is copied.
        Conversations in `busy` keep their slots.
        """
        self._clock += 1
        if key in self._owner:
            slot = self._owner.index(key)
        else:
            if None not in self._owner and len(self._owner) < self.max_slots:
                self._grow(len(self._owner) + 1, 1)
            free = [i for i, owner in enumerate(self._owner) if owner is None]
            if free:
                shared = self.shared(ids)
                slot = max(free, key=lambda i: (shared[i], -self._used[i], -i))
            else:
                idle = [i for i, owner in enumerate(self._owner) if owner not in busy]
                slot = min(idle, key=lambda i: self._used[i])
            self._owner[slot] = key
        self._used[slot] = self._clock
        return slot

    def slot(self, key: Hashable) -> int:
        """The conversation's slot. Raises ValueError if it has none."""
        return self._owner.index(key)

    def release(self, key: Hashable) -> None:
        """Frees a conversation's slot, if it has one."""
        if key in self._owner:
            self._owner[self._owner.index(key)] = None

    def clear(self) -> None:
        """Drops everything and frees the memory."""
        self.__init__(self.max_slots, self.max_length, self.device)  # type: ignore[misc]

    def filled(self, slot: int) -> int:
        """How many tokens a slot holds."""
        return int(self._filled[slot])

    def shared(self, ids: Sequence[int]) -> np.ndarray:
        """How many of the first tokens of `ids` each slot holds; shape (slots,)."""
        n = min(len(ids), self._tokens.shape[1])
        if not n:
            return np.zeros(len(self._owner), np.int64)
        differs = self._tokens[:, :n] != np.asarray(ids[:n])
        same = np.where(differs.any(axis=1), differs.argmax(axis=1), n)
        return np.minimum(same, self._filled)

    def copy_prefix(self, source: int, target: int, n: int) -> None:
        """Makes the target slot hold the first n tokens of the source slot, and nothing else."""
        if source != target:
            for tensor in (*self._keys, *self._values):
                tensor[target, :, :n] = tensor[source, :, :n]
            self._tokens[target, :n] = self._tokens[source, :n]
        self._filled[target] = n

    def gather(self, slots: Sequence[int]) -> list[int]:
        """Moves these slots to the front, next to each other; returns their new numbers, in
        order."""
        holes = [i for i in range(len(slots)) if i not in slots]
        at = []
        for slot in slots:
            if slot >= len(slots):
                self._swap(slot, hole := holes.pop())
                slot = hole
            at.append(slot)
        return at

    def _swap(self, a: int, b: int) -> None:
        n = int(max(self._filled[a], self._filled[b]))
        for tensor in (*self._keys, *self._values):
            saved = tensor[a, :, :n].clone()
            tensor[a, :, :n] = tensor[b, :, :n]
            tensor[b, :, :n] = saved
        self._tokens[[a, b]] = self._tokens[[b, a]]
        self._filled[[a, b]] = self._filled[[b, a]]
        self._owner[a], self._owner[b] = self._owner[b], self._owner[a]
        self._used[a], self._used[b] = self._used[b], self._used[a]

    def _grow(self, slots: int, length: int) -> None:
        """Makes room for `slots` slots of `length` tokens; what has to grow is at least doubled."""
        old_slots, old_length = self._tokens.shape
        if slots <= old_slots and length <= old_length:
            return
        if slots > old_slots:
            slots = max(slots, min(2 * old_slots, self.max_slots))
        if length > old_length:
            length = max(length, min(2 * old_length, self.max_length))
        slots, length = max(slots, old_slots), max(-(-length // _BLOCK) * _BLOCK, old_length)
        for tensors in (self._keys, self._values):
            for i, old in enumerate(tensors):
                tensors[i] = old.new_zeros(slots, old.shape[1], length, old.shape[3])
                tensors[i][:old_slots, :, :old_length] = old
        tokens = np.zeros((slots, length), np.int64)
        tokens[:old_slots, :old_length] = self._tokens
        self._tokens = tokens
        self._filled = np.concatenate([self._filled, np.zeros(slots - old_slots, np.int64)])
        self._owner += [None] * (slots - old_slots)
        self._used += [0] * (slots - old_slots)

    # One forward pass ---------------------------------------------------------------------------

    def begin(
        self, slots: Sequence[int], new: Sequence[Sequence[int]], window: int | None = None
    ) -> dict[str, torch.Tensor]:
        """Prepares a pass in which row i appends the tokens `new[i]` to slot `slots[i]`.

        Rows are padded on the left, so that the last column is every row's last token. Returns
        `input_ids` and `position_ids` (rows, width) and the boolean `mask` (rows, 1, width, read
        length), where True may be attended to; with `window`, only so many tokens back. `commit`
        must follow the pass.
        """
        width = max(1, *map(len, new))
        start = self._filled[list(slots)]
        self._grow(0, int(max(start + [len(tokens) for tokens in new])))
        ids = np.zeros((len(slots), width), np.int64)
        place = np.zeros((len(slots), width), np.int64)  # padding attends to token 0; it is dropped
        real = np.zeros((len(slots), width), bool)
        for row, tokens in enumerate(new):
            if tokens:
                ids[row, -len(tokens) :] = tokens
                place[row, -len(tokens) :] = np.arange(start[row], start[row] + len(tokens))
                real[row, -len(tokens) :] = True
        batch, column = np.nonzero(real)
        length = -(-int(place.max() + 1) // _BLOCK) * _BLOCK
        side_by_side = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        to = self._tensor
        read = slice(slots[0], slots[-1] + 1) if side_by_side else to(np.asarray(slots))
        position = place[batch, column]
        slot = np.asarray(slots)[batch]
        self._pass = _Pass(to(batch), to(column), to(slot), to(position), read, length)
        self._new = slot, position, ids[batch, column]
        places = to(place)
        keys = torch.arange(length, device=self.device)
        mask = keys <= places[:, None, :, None]
        if window is not None:
            mask &= keys > places[:, None, :, None] - window
        return {"input_ids": to(ids), "position_ids": places, "mask": mask}

    def begin_packed(
        self, slots: Sequence[int], new: Sequence[Sequence[int]], span: range
    ) -> dict[str, Any]:
        """As `begin`, with the tokens of all rows one after another: `input_ids` and `position_ids`
        (1, tokens), and the `packing`. `span` are adjacent slots that hold those of all rows with
        one token; each row has one or more. Full attention only."""
        sizes = np.array([len(tokens) for tokens in new])
        ends = sizes.cumsum()
        starts = ends - sizes
        before = self._filled[list(slots)]
        self._grow(0, int(max(before + sizes)))
        slot = np.repeat(np.asarray(slots), sizes)
        column = np.arange(ends[-1])
        position = column + np.repeat(before - starts, sizes)
        ids = np.concatenate([np.asarray(tokens, np.int64) for tokens in new])
        to = self._tensor
        first = to(np.zeros_like(column))
        everything = slice(None)
        self._pass = _Pass(
            first, to(column), to(slot), to(position), everything, self._tokens.shape[1]
        )
        self._new = slot, position, ids
        columns, visible = np.zeros(len(span), np.int64), np.zeros(len(span), np.int64)
        prefills = []
        for row, size in enumerate(sizes):
            if size == 1:
                place = slots[row] - span.start
                columns[place], visible[place] = starts[row], before[row] + 1
            else:
                here = int(starts[row]), int(ends[row]), int(before[row])
                prefills.append(Prefill(slots[row], *here))
        longest = -(-int(visible.max(initial=1)) // _BLOCK) * _BLOCK
        mask = torch.arange(longest) < to(np.maximum(visible, 1))[:, None]
        packing = Packing(span, to(columns), to(visible > 0), mask[:, None, None], prefills)
        return {
            "input_ids": to(ids)[None],
            "position_ids": to(position)[None],
            "packing": packing,
        }

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes a layer's new keys and values; returns what its attention reads.

        Shapes: new (rows, heads, width, head size); read (rows, heads, read length, head size).
        """
        now = self._pass
        assert now is not None, "KVCache.begin comes before a forward pass"
        if layer_idx == len(self._keys):  # a layer's first pass: its shapes are known now
            shape = self._tokens.shape
            for tensors, states in ((self._keys, key_states), (self._values, value_states)):
                heads, size = states.shape[1], states.shape[3]
                tensors.append(states.new_zeros(shape[0], heads, shape[1], size))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[now.slot, :, now.position] = key_states[now.batch, :, now.column]
        values[now.slot, :, now.position] = value_states[now.batch, :, now.column]
        return keys[now.read, :, : now.length], values[now.read, :, : now.length]

    def commit(self) -> None:
        """The pass is over: its tokens count as cached from now on."""
        slot, position, tokens = self._new
        self._tokens[slot, position] = tokens
        np.maximum.at(self._filled, slot, position + 1)
        self._pass = None

    # Models may call these; as positions and mask are explicit, the values only have to be
    # consistent.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self._filled.max(initial=0))

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        return (self._pass.length if self._pass else 0), 0
