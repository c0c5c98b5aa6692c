"""Step trees: an expert trajectory as the trunk, practice actions as its branches.

Step i of a trajectory pairs the state s_i = ids[:start_i] with the expert's action (a reply in the
trunk) and with the agent's own actions (branches), as eqs. 4-6 of the paper need them. All those
sequences share their prefix. A tree holds the trunk once and hangs every branch on it:

    trunk    system · obs 1 · reply 1 · obs 2 · reply 2 · …
    branch                 └ a₁                └ a₂

A branch token sees the trunk up to the start of its step's reply, and its own branch up to itself;
its position continues from there. That is what it would see in a sequence of its own, so
log-probabilities, hidden states and gradients equal those of separate sequences, for a fraction of
the tokens.

Under a chat template that rewrites history the trunk itself branches (`agents.encoded`): "up to"
then means on the same path.

The trunk may also be a trajectory of the agent's own. Then the expert's replies hang on it, too
(`StepTree.experts`), and what the agent did there is no action of the tree, only part of the later
states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from stepagent.agents.encoded import Encoded, depths, path, ranges


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
        ValueError: spans out of order, empty, or outside the trunk; a branch on no step, or empty;
            a join to a token that is not on the path before it.
    """

    ids: tuple[int, ...]
    """Token ids of the trunk."""
    replies: tuple[tuple[int, int], ...]
    """Half-open span [start, end) of each step's expert reply, end-of-turn token included."""
    branches: tuple[Branch, ...] = ()
    joins: tuple[tuple[int, int], ...] = ()
    """Where the trunk branches itself (`agents.encoded.Joins`)."""
    experts: tuple[tuple[int, ...], ...] = ()
    """The expert's reply of each step, where the trunk's are not the expert's; empty: they are."""

    @staticmethod
    def of(encoded: Encoded, branches: Sequence[Branch] = ()) -> StepTree:
        """The tree of a conversation."""
        return StepTree(
            tuple(encoded.ids),
            tuple(encoded.replies),
            tuple(branches),
            tuple(encoded.joins),
            tuple(map(tuple, encoded.experts)),
        )

    def state(self, step: int) -> tuple[int, ...]:
        """The ids that the actions of a step answer."""
        return tuple(path(self.ids, self.joins, self.state_end(step)))

    def state_end(self, step: int) -> int:
        """Where in the trunk the state of a step ends: where its reply starts, if not elsewhere
        because the trunk branches there."""
        start = self.replies[step][0]
        return self._joined_to.get(start, start)

    @cached_property
    def _joined_to(self) -> dict[int, int]:
        return dict(self.joins)

    @property
    def action_steps(self) -> list[int]:
        """[A]: the step of each action, numbered as in `PackedTrees`: the expert's of every step,
        then the branches."""
        return [*range(len(self.replies)), *(branch.step for branch in self.branches)]

    def per_step(self, of_actions: Sequence[float]) -> list[float]:
        """[steps]: the sums over each step's actions of a number [A] that each action has."""
        sums = [0.0] * len(self.replies)
        for step, number in zip(self.action_steps, of_actions, strict=True):
            sums[step] += number
        return sums

    def expert(self, step: int) -> tuple[int, ...]:
        """Token ids of the expert's reply of a step."""
        start, end = self.replies[step]
        return self.experts[step] if self.experts else self.ids[start:end]

    def __post_init__(self) -> None:
        before = 1  # a state has at least one token
        for step, (start, end) in enumerate(self.replies):
            if not before <= start < end <= len(self.ids):
                raise ValueError(
                    f"reply of step {step} spans [{start}, {end}), which must be within "
                    f"[{before}, {len(self.ids)}) and hold at least one token"
                )
            if not self.state_end(step):
                raise ValueError(f"reply of step {step} answers no token")
            before = end
        if self.experts and (len(self.experts) != len(self.replies) or not all(self.experts)):
            raise ValueError(
                f"{len(self.experts)} replies of the expert for {len(self.replies)} steps: each "
                "needs one with at least one token"
            )
        for number, branch in enumerate(self.branches):
            if not 0 <= branch.step < len(self.replies):
                raise ValueError(
                    f"branch {number} is on step {branch.step}, "
                    f"the trunk has {len(self.replies)} steps"
                )
            if not branch.ids:
                raise ValueError(f"branch {number} (step {branch.step}) has no tokens")
        end = 0
        for number, (start, at) in enumerate(self.joins):
            on_path = any(a < at <= b for a, b in ranges(self.joins[:number], start))
            if not (end < start < len(self.ids) and (at == 0 or on_path)):
                raise ValueError(
                    f"join {number}, of token {start} to what ends before token {at}, is not to a "
                    "token on the path before it"
                )
            end = start

    @property
    def length(self) -> int:
        """Tokens of a forward pass: the trunk up to the last reply's end, and what hangs on it."""
        return self.length_to(len(self.replies) - 1) + sum(len(b.ids) for b in self.branches)

    def length_to(self, step: int) -> int:
        """Tokens of the trunk up to the end of a step's reply, and of the expert's on it."""
        return (self.replies[step][1] if self.replies else 0) + sum(
            len(ids) for ids in self.experts[: step + 1]
        )

    @property
    def trunk_length(self) -> int:
        """Tokens of the trunk up to the end of the last reply; nothing depends on later ones."""
        return self.replies[-1][1] if self.replies else 0

    @property
    def longest_path(self) -> int:
        """Tokens of the longest state plus one of its actions."""
        place = depths(self.joins, self.trunk_length)
        hanging = [(b.step, b.ids) for b in self.branches] + list(enumerate(self.experts))
        ends = [place[self.state_end(step) - 1] + 1 + len(ids) for step, ids in hanging]
        return max([*place, -1]) + 1 if not ends else max(max(place) + 1, *ends)

    def trimmed(self) -> StepTree:
        """The tree without the steps after its last branch; for losses over pairs only."""
        last = max((branch.step for branch in self.branches), default=-1)
        end = self.replies[last][1] if last >= 0 else 0
        joins = tuple(join for join in self.joins if join[0] < end)
        return replace(
            self,
            ids=self.ids[:end],
            replies=self.replies[: last + 1],
            joins=joins,
            experts=self.experts[: last + 1],
        )


def split_tree(tree: StepTree, max_tokens: int) -> list[StepTree]:
    """Split the branches over several trees of at most `max_tokens` each, to save memory.

    Branches are taken in order of their step, as many as fit. Each part carries the trunk up to the
    reply of its last step, so a trunk reply can be in several parts: sum over pairs, not over the
    parts' steps. Branches keep their order within a step. A tree that fits is returned unchanged.

    Raises:
        ValueError: the trunk up to some step, with one branch of that step, is over the limit.
    """
    if tree.length <= max_tokens:
        return [tree]
    if not tree.branches:
        raise ValueError(
            f"the trunk alone has {tree.length} tokens, over the limit of {max_tokens}: "
            "raise the limit or cut the trajectory"
        )
    parts: list[list[Branch]] = [[]]
    branch_tokens = 0
    for branch in sorted(tree.branches, key=lambda branch: branch.step):
        end, size = tree.length_to(branch.step), len(branch.ids)
        if end + size > max_tokens:
            raise ValueError(
                f"step {branch.step}: the trunk up to its reply has {end} tokens, a branch {size}, "
                f"together over the limit of {max_tokens}: raise the limit or cut the trajectory"
            )
        if end + branch_tokens + size > max_tokens:
            parts.append([])
            branch_tokens = 0
        parts[-1].append(branch)
        branch_tokens += size
    return [replace(tree, branches=tuple(part)).trimmed() for part in parts]
