"""A conversation as tokens, in which every reply follows the state that it answers.

With most chat templates a conversation is one row of tokens: history is written as the prompts
were, and each state extends the one before. Others rewrite history (they drop earlier thoughts,
say), so that a later state is no continuation of an earlier reply. The row then holds every token
once and *joins* say where it branches:

    state 1 · reply 1 (with its thought)
          └ reply 1 (without it) · observation 2 · reply 2 (with its thought)
                                              └ …

A token sees what is on its own path alone, and its position is its place on that path.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Joins = Sequence[tuple[int, int]]
"""(start, at) in order of start: the token with index `start` follows the one with index `at` - 1
instead of `start` - 1; `at` 0 begins a conversation anew. A join is to a token on the path of the
token before it, so whatever comes between the two is a complete subtree."""

_FEW = 8
"""A state that shares fewer tokens with the path before begins anew."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    ids: list[int]
    replies: list[tuple[int, int]] = field(default_factory=list)
    """Half-open spans [start, end) of the replies, the end-of-turn token included (but see `cut_at`
    of `ChatCodec.encode`). The state that the i-th reply answers is `state(i)`."""
    joins: list[tuple[int, int]] = field(default_factory=list)
    """Where the row branches (see `Joins`); empty where each state is all that comes before it."""
    experts: list[list[int]] = field(default_factory=list)
    """The expert's reply in each state, where the conversation is not the expert's own; empty: it
    is."""

    def expert(self, step: int) -> list[int]:
        """The expert's reply in the state of a step, counted from 0."""
        start, end = self.replies[step]
        return self.experts[step] if self.experts else self.ids[start:end]

    def path(self, end: int) -> list[int]:
        """The ids that lead to the token with index `end` - 1, that one included."""
        return path(self.ids, self.joins, end)

    def state(self, step: int) -> list[int]:
        """The ids that the reply of a step, counted from 0, answers."""
        return self.path(self.replies[step][0])

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max(depths(self.joins, len(self.ids)), default=-1) + 1

    def part(self, first: int, last: int) -> Encoded:
        """The steps from `first` up to but not including `last`, with what leads to them."""
        end = self.replies[last - 1][1]
        begin = max(start for start in self._beginnings() if start <= self.replies[first][0])
        return Encoded(
            self.ids[begin:end],
            [(start - begin, stop - begin) for start, stop in self.replies[first:last]],
            [(start - begin, at - begin) for start, at in self.joins if begin < start < end],
            self.experts[first:last],
        )

    def parts(self) -> list[tuple[int, Encoded]]:
        """(first step, part) for each group of steps whose states share their beginning."""
        beginnings = self._beginnings()
        if len(beginnings) == 1:
            return [(0, self)]
        bounds = [sum(start < begin for start, _ in self.replies) for begin in beginnings]
        bounds.append(len(self.replies))
        pairs = itertools.pairwise(bounds)
        return [(first, self.part(first, last)) for first, last in pairs if first < last]

    def alone(self, step: int) -> Encoded:
        """A step's state and reply without any other."""
        start, end = self.replies[step]
        ids = self.path(end)
        return Encoded(
            ids, [(len(ids) - (end - start), len(ids))], experts=self.experts[step : step + 1]
        )

    def _beginnings(self) -> list[int]:
        return [0, *(start for start, at in self.joins if at == 0)]


def encode_paths(paths: Iterable[tuple[list[int], list[int]]]) -> Encoded:
    """One row of (state, reply) pairs: what a state shares with the path before is not repeated.

    >>> encode_paths([([1, 2, 3, 4, 5, 6, 7, 8], [9]), ([1, 2, 3, 4, 5, 6, 7, 8, 0, 3], [4])])
    Encoded(ids=[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 3, 4], replies=[(8, 9), (11, 12)], joins=[(9, 8)])
    """
    ids: list[int] = []
    replies: list[tuple[int, int]] = []
    joins: list[tuple[int, int]] = []
    before: list[int] = []  # the last path, and where its tokens are
    places: list[int] = []
    for state, reply in paths:
        # At least the last token of a state is its own: a reply follows it in the row.
        shared = _shared(before, state[:-1])
        if shared < min(_FEW, len(before)):
            shared = 0
        start, at = len(ids), places[shared - 1] + 1 if shared else 0
        if start != at:
            joins.append((start, at))
        ids += state[shared:]
        if reply:
            replies.append((len(ids), len(ids) + len(reply)))
            ids += reply
        before, places = state + reply, places[:shared] + list(range(start, len(ids)))
    return Encoded(ids, replies, joins=joins)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return min(len(one), len(other))


def ranges(joins: Joins, end: int) -> list[tuple[int, int]]:
    """The half-open ranges of indices, in order, on the path to the token with index `end` - 1.

    >>> ranges([(9, 8)], 12), ranges([(9, 8)], 9), ranges([(9, 0)], 12)
    ([(0, 8), (9, 12)], [(0, 9)], [(9, 12)])
    """
    backwards = []
    for start, at in reversed(joins):
        if start < end:
            backwards.append((start, end))
            end = at
    return ([(0, end)] if end else []) + backwards[::-1]


def path(ids: Sequence[int], joins: Joins, end: int) -> list[int]:
    """The ids on the path to the token with index `end` - 1."""
    return [token for start, stop in ranges(joins, end) for token in ids[start:stop]]


def depths(joins: Joins, size: int) -> list[int]:
    """Each of `size` tokens' position on its path.

    >>> depths([(3, 1)], 5)
    [0, 1, 2, 1, 2]
    """
    positions: list[int] = []
    bounds = [*(start for start, _ in joins), size]
    positions += range(bounds[0])
    for (start, at), end in zip(joins, bounds[1:], strict=True):
        first = positions[at - 1] + 1 if at else 0
        positions += range(first, first + end - start)
    return positions[:size]


def reaches(joins: Joins, size: int) -> list[int]:
    """Where each of `size` tokens' subtree ends: token i sees token j where j ≤ i < reaches[j].

    >>> reaches([(3, 1)], 5)
    [5, 3, 3, 5, 5]
    """
    reach = [size] * size
    for start, at in reversed(joins):
        reach[at:start] = [min(start, end) for end in reach[at:start]]
    return reach
