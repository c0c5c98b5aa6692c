"""Step trees as tensors: several trees in one sequence, and who sees whom in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from stepagent.agents.encoded import depths, reaches
from stepagent.training.trees.attention import (
    FLEX_BLOCK,
    Branching,
    Chunk,
    TreePattern,
    TreeSpan,
)
from stepagent.training.trees.tree import StepTree

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
CHUNK_TOKENS = 256
"""Branches attend in chunks of about this many tokens (see `TreePattern`)."""


@dataclass(frozen=True)
class PackedTrees:
    """Trees one after another in one sequence of S tokens, none seeing another.

    Actions are numbered tree by tree: first the expert's replies of all steps (wherever they are),
    then the branches in the order of `StepTree.branches`. P is the number of action tokens, A that
    of actions.
    """

    trees: tuple[StepTree, ...]
    input_ids: Tensor
    """int64 [1, S]"""
    position_ids: Tensor
    """int64 [1, S]: position on the token's own path"""
    tree_id: Tensor
    """int64 [S]; -1 for padding"""
    attach: Tensor
    """int64 [S]: the token sees trunk tokens before this place in the sequence, on its own path"""
    reach: Tensor
    """int64 [S]: a trunk token is on the path of places up to this one; 0 in branches, padding"""
    begin: Tensor
    """int64 [S]: the token sees what comes from this place on up to itself"""
    predict_at: Tensor
    """int64 [P]: where in the sequence the logits for each action token are"""
    target: Tensor
    """int64 [P]: the action tokens"""
    action: Tensor
    """int64 [P]: the action each belongs to"""
    first: Tensor
    """int64 [A]: row of `predict_at` of each action's first token, predicted by its state"""
    last_at: Tensor
    """int64 [A]: where in the sequence each action ends"""
    chosen: Tensor
    """int64 [branches]: action number of the expert's reply in the state of each branch"""
    rejected: Tensor
    """int64 [branches]: action number of each branch"""
    spans: tuple[tuple[int, int, tuple[tuple[int, int, int], ...]], ...]
    """Per tree: trunk start and end in the sequence; per branch its start, end, attach point."""

    @property
    def n_actions(self) -> int:
        return len(self.last_at)

    def mask_mod(self, window: int | None = None) -> MaskMod:
        """The mask rule, as FlexAttention takes it; `window` as in `sliding_window`."""
        attach, reach, begin = self.attach, self.reach, self.begin
        position = self.position_ids[0]

        def sees(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            trunk = (kv < attach[q]) & (attach[q] <= reach[kv])
            own = (begin[q] <= kv) & (kv <= q)
            seen = trunk | own
            if window is not None:
                seen = seen & (position[q] - position[kv] < window)
            return seen

        return sees

    def dense_mask(self, window: int | None = None) -> Tensor:
        """The rule as a bool mask [1, 1, S, S], true where the row's token sees the column's."""
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        zero = place[:1]
        return self.mask_mod(window)(zero, zero, place[:, None], place[None, :])[None, None]

    def block_mask(self, window: int | None = None) -> BlockMask:
        """The rule as FlexAttention's block mask; S should be a multiple of 128."""
        size, device = self.input_ids.shape[1], self.input_ids.device
        # Compiled, it is made block by block; else a boolean of S² comes first (268 MB at 16k).
        compiled = {"_compile": True} if device.type == "cuda" else {}
        rule = self.mask_mod(window)
        return create_block_mask(rule, None, None, size, size, device=str(device), **compiled)

    def pattern(self, window: int | None = None) -> TreePattern:
        """The rule cut into its non-empty blocks; `window` as in `sliding_window`."""
        sees = self.mask_mod(window)
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)

        def block(rows: Tensor, columns: Tensor) -> Tensor:
            return sees(place[:1], place[:1], rows[:, None], columns[None, :])[None, None]

        spans = []
        for tree, (start, trunk_end, branches) in zip(self.trees, self.spans, strict=True):
            trunk = place[start:trunk_end]
            chunks, first = [], 0
            for i, (_, end, seen) in enumerate(branches):
                chunk_start = branches[first][0]
                if i + 1 == len(branches) or branches[i + 1][1] - chunk_start > CHUNK_TOKENS:
                    rows = place[chunk_start:end]
                    read: slice | Tensor = slice(0, seen)
                    if tree.joins:  # no more than the paths of these branches
                        read = block(rows, trunk)[0, 0].any(dim=0).nonzero()[:, 0]
                    columns = torch.cat([trunk[read], rows])
                    chunks.append(Chunk(end - chunk_start, read, block(rows, columns)))
                    first = i + 1
            slides = window is not None and trunk_end - start > window
            trunk_mask = block(trunk, trunk) if slides and not tree.joins else None
            branching = None
            if tree.joins:
                branching = Branching(tree.joins, len(trunk), window, trunk.device)
            spans.append(TreeSpan(trunk_end - start, tuple(chunks), trunk_mask, branching))
        return TreePattern(tuple(spans), int((self.tree_id < 0).sum()))


def pack(
    trees: Sequence[StepTree],
    device: torch.device | str = "cpu",
    multiple_of: int | None = None,
) -> PackedTrees:
    """Pack `trees` into one sequence, padded to `multiple_of` tokens (128 on CUDA, else 1).

    Within a tree the trunk comes first, then its branches in order of their step.

    Raises:
        ValueError: no trees, or a tree without steps.
    """
    if not trees or not all(tree.replies for tree in trees):
        raise ValueError("pack takes at least one tree, each with at least one step")
    packer = _Packer()
    for tree in trees:
        packer.add(tree)
    device = torch.device(device)
    if multiple_of is None:
        multiple_of = FLEX_BLOCK if device.type == "cuda" else 1
    padding = -len(packer.tokens) % multiple_of
    size = len(packer.tokens)
    blank = [(0, -1, 0, 0, 0, place) for place in range(size, size + padding)]
    columns = torch.tensor([*packer.tokens, *blank], device=device)
    ids, tree_id, position, attach, reach, begin = columns.unbind(dim=1)
    predict_at, target, action = torch.tensor(packer.predicted, device=device).unbind(dim=1)
    pairs = torch.tensor(packer.pairs, dtype=torch.long, device=device).reshape(-1, 2)
    return PackedTrees(
        trees=tuple(trees),
        input_ids=ids[None],
        position_ids=position[None],
        tree_id=tree_id.contiguous(),
        attach=attach.contiguous(),
        reach=reach.contiguous(),
        begin=begin.contiguous(),
        predict_at=predict_at,
        target=target.contiguous(),
        action=action.contiguous(),
        first=torch.tensor(packer.first, device=device),
        last_at=torch.tensor(packer.last_at, device=device),
        chosen=pairs[:, 0],
        rejected=pairs[:, 1],
        spans=tuple(packer.spans),
    )


class _Packer:
    """Collects the rows of `PackedTrees`' columns, tree by tree."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int, int, int, int, int]] = []
        """id, tree, position, attach, reach, begin"""
        self.predicted: list[tuple[int, int, int]] = []  # predict_at, target, action
        self.first: list[int] = []
        self.last_at: list[int] = []
        self.pairs: list[tuple[int, int]] = []
        self.spans: list[tuple[int, int, tuple[tuple[int, int, int], ...]]] = []

    def add(self, tree: StepTree) -> None:
        number, offset, size = len(self.spans), len(self.tokens), tree.trunk_length
        expert = len(self.first)
        agent = expert + len(tree.replies)
        self.first += [0] * (len(tree.replies) + len(tree.branches))
        self.last_at += [0] * (len(tree.replies) + len(tree.branches))
        depth, reach = depths(tree.joins, size), reaches(tree.joins, size)
        self.tokens += [
            (tree.ids[i], number, depth[i], offset + i + 1, offset + reach[i], offset + i)
            for i in range(size)
        ]
        hanging = [(b.step, agent + i, b.ids) for i, b in enumerate(tree.branches)]
        if tree.experts:
            hanging += [(step, expert + step, ids) for step, ids in enumerate(tree.experts)]
        else:
            for step, (start, end) in enumerate(tree.replies):
                state_end = offset + tree.state_end(step)
                self._predict(expert + step, tree.ids[start:end], state_end - 1, offset + start)
        places = []
        for step, action, ids in sorted(hanging, key=lambda item: item[0]):
            begin, state = len(self.tokens), tree.state_end(step)
            first = depth[state - 1] + 1
            self.tokens += [
                (token, number, first + t, offset + state, 0, begin) for t, token in enumerate(ids)
            ]
            self._predict(action, ids, offset + state - 1, begin)
            places.append((begin, len(self.tokens), state))
        self.pairs += [(expert + b.step, agent + i) for i, b in enumerate(tree.branches)]
        self.spans.append((offset, offset + size, tuple(places)))

    def _predict(self, action: int, ids: tuple[int, ...], state_end: int, begin: int) -> None:
        """Note where the logits of an action's tokens are: the first at the end of its state."""
        self.first[action], self.last_at[action] = len(self.predicted), begin + len(ids) - 1
        places = [state_end, *range(begin, begin + len(ids) - 1)]
        self.predicted += [(at, token, action) for at, token in zip(places, ids, strict=True)]
