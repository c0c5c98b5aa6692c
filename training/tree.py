"""Step trees: one expert trajectory as a trunk, practice actions as branches, one forward for all.

Step i of a trajectory pairs the state s_i = ids[:start_i] with the expert's action (a reply in the
trunk) and with the agent's own actions (branches), as eqs. 4-6 of the paper need them. All those
sequences share their prefix. A tree holds the trunk once and hangs every branch on it:

    trunk    system · obs 1 · reply 1 · obs 2 · reply 2 · …
    branch                 └ a₁                └ a₂

A branch token sees the trunk up to the start of its step's reply, and its own branch up to itself;
its position goes on from there. That is what it would see in a sequence of its own, so log-probs,
hidden states and gradients are those of the plain way at a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from stepagent.training.attention import FLEX_BLOCK, Chunk, TreePlan, TreeSpan
from stepagent.training.support import check_path, unwrap

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Attention = Literal["auto", "blocks", "flex"]
CHUNK_TOKENS = 256
"""Branches are attended in chunks of about this many tokens (see `TreePlan`)."""


@dataclass(frozen=True)
class Branch:
    """An action other than the expert's, in the state of step `step` (counted from 0)."""

    step: int
    ids: tuple[int, ...]
    """Token ids of the reply, its end-of-turn token included."""


@dataclass(frozen=True)
class StepTree:
    """An expert trajectory and the branches on it.

    Raises:
        ValueError: spans out of order, empty, or outside the trunk; a branch on no step, or empty.
    """

    ids: tuple[int, ...]
    """Token ids of the trunk."""
    replies: tuple[tuple[int, int], ...]
    """Half-open span [start, end) of each step's expert reply, end-of-turn token included."""
    branches: tuple[Branch, ...] = ()

    def __post_init__(self) -> None:
        before = 1  # a state has at least one token
        for step, (start, end) in enumerate(self.replies):
            if not before <= start < end <= len(self.ids):
                raise ValueError(
                    f"reply of step {step} spans [{start}, {end}), which must lie in "
                    f"[{before}, {len(self.ids)}) and hold at least one token"
                )
            before = end
        for number, branch in enumerate(self.branches):
            if not 0 <= branch.step < len(self.replies):
                raise ValueError(
                    f"branch {number} is on step {branch.step}, "
                    f"the trunk has {len(self.replies)} steps"
                )
            if not branch.ids:
                raise ValueError(f"branch {number} (step {branch.step}) has no tokens")

    @property
    def length(self) -> int:
        """Tokens of a forward pass: the trunk up to the last reply's end, and the branches."""
        return self.trunk_length + sum(len(branch.ids) for branch in self.branches)

    @property
    def trunk_length(self) -> int:
        """Tokens of the trunk up to the end of the last reply; nothing depends on those behind."""
        return self.replies[-1][1] if self.replies else 0

    @property
    def longest_path(self) -> int:
        """Tokens of the longest state together with an action of it."""
        paths = [self.replies[branch.step][0] + len(branch.ids) for branch in self.branches]
        return max([self.trunk_length, *paths])

    def trimmed(self) -> StepTree:
        """The tree without the steps behind its last branch; for losses over pairs only."""
        last = max((branch.step for branch in self.branches), default=-1)
        end = self.replies[last][1] if last >= 0 else 0
        return replace(self, ids=self.ids[:end], replies=self.replies[: last + 1])


def split_tree(tree: StepTree, max_tokens: int) -> list[StepTree]:
    """Split the branches over several trees of at most `max_tokens` each, for want of memory.

    Branches are taken in order of their step, as many as fit. Each part carries the trunk up to the
    reply of its last step, so a trunk reply is in several parts: sum over pairs, not over parts'
    steps. Branches keep their order within a step. A tree that fits is returned as it is.

    Raises:
        ValueError: the trunk up to some step, with one branch of that step, is over the limit.
    """
    if tree.length <= max_tokens:
        return [tree]
    if not tree.branches:
        raise ValueError(
            f"the trunk alone has {tree.trunk_length} tokens, over the limit of {max_tokens}: "
            "raise the limit or cut the trajectory"
        )
    parts: list[list[Branch]] = [[]]
    held = 0
    for branch in sorted(tree.branches, key=lambda branch: branch.step):
        end, size = tree.replies[branch.step][1], len(branch.ids)
        if end + size > max_tokens:
            raise ValueError(
                f"step {branch.step}: the trunk up to its reply has {end} tokens, a branch {size}, "
                f"together over the limit of {max_tokens}: raise the limit or cut the trajectory"
            )
        if end + held + size > max_tokens:
            parts.append([])
            held = 0
        parts[-1].append(branch)
        held += size
    return [replace(tree, branches=tuple(part)).trimmed() for part in parts]


@dataclass(frozen=True)
class PackedTrees:
    """Trees one after another in one sequence of S tokens, none seeing another.

    Actions are numbered tree by tree: first the expert's replies of all steps, then the branches in
    the order of `StepTree.branches`. P is the number of action tokens, A that of actions.
    """

    trees: tuple[StepTree, ...]
    input_ids: Tensor
    """int64 [1, S]"""
    position_ids: Tensor
    """int64 [1, S]: position on the token's own path"""
    tree_id: Tensor
    """int64 [S]; -1 for padding"""
    branch_id: Tensor
    """int64 [S]; -1 in a trunk, else the branch's action number"""
    attach: Tensor
    """int64 [S]: the token sees trunk positions below this"""
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
        tree, branch = self.tree_id, self.branch_id
        attach, position = self.attach, self.position_ids[0]

        def sees(batch: Tensor, head: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            trunk = (branch[kv] == -1) & (position[kv] < attach[q])
            own = (branch[kv] == branch[q]) & (position[kv] <= position[q])
            seen = (tree[q] == tree[kv]) & (trunk | own)
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
        size = self.input_ids.shape[1]
        device = str(self.input_ids.device)
        return create_block_mask(self.mask_mod(window), None, None, size, size, device=device)

    def plan(self, dense: Tensor, window: int | None = None) -> TreePlan:
        """The rule cut into its non-empty blocks; `dense` is `dense_mask(window)`."""
        spans = []
        for start, trunk_end, branches in self.spans:
            chunks, first = [], 0
            for i, (_, end, seen) in enumerate(branches):
                begin = branches[first][0]
                if i + 1 == len(branches) or branches[i + 1][1] - begin > CHUNK_TOKENS:
                    rows = dense[:, :, begin:end]
                    parts = [rows[..., start : start + seen], rows[..., begin:end]]
                    chunks.append(Chunk(end - begin, seen, torch.cat(parts, dim=-1)))
                    first = i + 1
            own = slice(start, trunk_end)
            slides = window is not None and trunk_end - start > window
            trunk_mask = dense[:, :, own, own] if slides else None
            spans.append(TreeSpan(trunk_end - start, tuple(chunks), trunk_mask))
        return TreePlan(tuple(spans), int((self.tree_id < 0).sum()))


def pack(
    trees: Sequence[StepTree],
    device: torch.device | str = "cpu",
    multiple_of: int | None = None,
) -> PackedTrees:
    """Pack `trees` into one sequence, padded to `multiple_of` tokens (128 on CUDA, else 1).

    Within a tree the trunk comes first, then its branches in order of their step.

    Raises:
        ValueError: no tree, or a tree without steps.
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
    columns = torch.tensor([*packer.tokens, *[(0, -1, -1, 0, 1)] * padding], device=device)
    ids, tree_id, branch_id, position, attach = columns.unbind(dim=1)
    predict_at, target, action = torch.tensor(packer.predicted, device=device).unbind(dim=1)
    pairs = torch.tensor(packer.pairs, dtype=torch.long, device=device).reshape(-1, 2)
    return PackedTrees(
        trees=tuple(trees),
        input_ids=ids[None],
        position_ids=position[None],
        tree_id=tree_id.contiguous(),
        branch_id=branch_id.contiguous(),
        attach=attach.contiguous(),
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
        self.tokens: list[tuple[int, int, int, int, int]] = []  # id, tree, branch, position, attach
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
        self.tokens += [(tree.ids[i], number, -1, i, i + 1) for i in range(size)]
        for step, (start, end) in enumerate(tree.replies):
            self._predict(expert + step, tree.ids[start:end], offset + start - 1, offset + start)
        places = []
        for i in sorted(range(len(tree.branches)), key=lambda i: tree.branches[i].step):
            branch, begin, action = tree.branches[i], len(self.tokens), agent + i
            start = tree.replies[branch.step][0]
            self.tokens += [
                (token, number, action, start + t, start) for t, token in enumerate(branch.ids)
            ]
            self._predict(action, branch.ids, offset + start - 1, begin)
            places.append((begin, len(self.tokens), start))
        self.pairs += [(expert + b.step, agent + i) for i, b in enumerate(tree.branches)]
        self.spans.append((offset, offset + size, tuple(places)))

    def _predict(self, action: int, ids: tuple[int, ...], state_end: int, begin: int) -> None:
        """Note where the logits of an action's tokens lie: the first at the end of its state."""
        self.first[action], self.last_at[action] = len(self.predicted), begin + len(ids) - 1
        places = [state_end, *range(begin, begin + len(ids) - 1)]
        self.predicted += [(at, token, action) for at, token in zip(places, ids, strict=True)]


@dataclass(frozen=True)
class TreeScores:
    """What one forward over packed trees gives; see `PackedTrees` for the numbering of actions."""

    packed: PackedTrees
    token_log_probs: Tensor
    """float32 [P]: log π(token | all before it), of every action token, unreduced"""
    log_probs: Tensor
    """float32 [A]: log π(action | state), the sum over the action's tokens"""
    state_hidden: Tensor | None = None
    """[A, hidden]: last hidden state of the state each action answers"""
    action_hidden: Tensor | None = None
    """[A, hidden]: last hidden state at the end of each action"""
    token_hidden: Tensor | None = None
    """[P, hidden]: last hidden state before every action token (what it is predicted from)"""
    token_entropy: Tensor | None = None
    """float32 [P]: entropy of the distribution that every action token was drawn from, in nats"""

    @property
    def chosen(self) -> Tensor:
        """float32 [branches]: the expert's log-prob in the state of each branch."""
        return self.log_probs[self.packed.chosen]

    @property
    def rejected(self) -> Tensor:
        """float32 [branches]: each branch's own log-prob."""
        return self.log_probs[self.packed.rejected]

    def per_tree(self) -> list[tuple[Tensor, Tensor]]:
        """For each tree the log-probs of its steps [n_steps] and of its branches [n_branches]."""
        sizes = [n for tree in self.packed.trees for n in (len(tree.replies), len(tree.branches))]
        parts = self.log_probs.split(sizes)
        return list(zip(parts[::2], parts[1::2], strict=True))


def score_trees(
    model: nn.Module,
    packed: PackedTrees,
    *,
    hidden: bool = False,
    entropy: bool = False,
    attention: Attention = "auto",
) -> TreeScores:
    """Log-probabilities of all actions of the packed trees, in one forward of `model`.

    The language-model head runs only where an action token is predicted. On a CPU pack one tree at
    a time unless trees are short: packing saves calls, not work.

    Args:
        model: any decoder of transformers on the device of `packed`; also wrapped by peft or
            accelerate. It is switched to the step-tree attention and stays there.
        hidden: also return hidden states (behind the final norm), for heads on top of the model.
        entropy: also return the entropy behind every action token.
        attention: `flex` FlexAttention, `blocks` SDPA over the mask's blocks, `auto` the first on
            CUDA and the second elsewhere.

    Raises:
        ValueError: a path longer than the model's context, or a model that cannot run step trees.
    """
    keep = torch.cat([packed.predict_at, packed.last_at]) if hidden else packed.predict_at
    logits, states = _forward(model, packed, keep, attention)
    logits = logits[: len(packed.target)].float()
    tokens = -F.cross_entropy(logits, packed.target, reduction="none")
    zeros = tokens.new_zeros(packed.n_actions)
    scores = TreeScores(packed, tokens, zeros.index_add(0, packed.action, tokens))
    if entropy:
        log_probs = logits.log_softmax(dim=-1)
        scores = replace(scores, token_entropy=-(log_probs.exp() * log_probs).sum(dim=-1))
    if not hidden:
        return scores
    return replace(
        scores,
        state_hidden=states[packed.first],
        action_hidden=states[len(packed.target) :],
        token_hidden=states[: len(packed.target)],
    )


def action_states(model: nn.Module, packed: PackedTrees, attention: Attention = "auto") -> Tensor:
    """[A, hidden]: last hidden state at the end of each action, without its log-probabilities.

    Raises ValueError as `score_trees` does.
    """
    return _forward(model, packed, packed.last_at, attention)[1]


def _forward(
    model: nn.Module, packed: PackedTrees, keep: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Logits [n, vocabulary] and last hidden states [n, hidden] at the n places `keep`."""
    base = unwrap(model)
    window = check_path(model, max(tree.longest_path for tree in packed.trees))
    inputs: dict[str, object] = {}
    if attention == "flex" or (attention == "auto" and packed.input_ids.is_cuda):
        inputs["attention_mask"] = packed.block_mask(window)
    else:
        inputs["attention_mask"] = dense = packed.dense_mask(window)
        inputs["step_tree"] = packed.plan(dense, window)
    kept: list[Tensor] = []
    head = base.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    try:
        logits = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            logits_to_keep=keep,
            use_cache=False,
            **inputs,
        ).logits[0]
    finally:
        hook.remove()
    return logits, kept[0][0]
