"""Forests: conversations of one task as one tree, in which what they share is held once.

Episodes of one task begin with the same prompt, and go on alike until they take different actions,
often in the middle of a reply. A forest is the trie of their token ids, depth first:

    system · obs 1 · reply 1 · obs 2 · reply 2 · …      episode 1
                   └ reply 1 · obs 2 · …                episode 2
                           └ reply 1 · …               episode 3: it shares reply 1's first tokens

It is a step tree whose trunk branches (`StepTree.joins`), so a token sees its own path alone, and
log-probabilities and gradients equal those of separate sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepagent.training.trees.tree import StepTree


@dataclass(frozen=True)
class Forest:
    """Some conversations as one tree of P different tokens in replies."""

    tree: StepTree
    """Its replies are the pieces that those of the conversations share or have by themselves."""
    members: tuple[int, ...]
    """Numbers of the conversations"""
    tokens: tuple[Tensor, ...]
    """Of each member int64 [P_i]: which of the P tokens its replies consist of"""


def forests(conversations: Sequence[StepTree], max_tokens: int) -> list[Forest]:
    """The conversations as few forests of at most `max_tokens` each; a longer conversation is one
    by itself. Branches of a conversation have no part in it.

    >>> a, b = StepTree((5, 6, 7, 8), ((2, 4),)), StepTree((5, 6, 7, 9), ((2, 4),))
    >>> [forest] = forests([a, b], 100)
    >>> forest.tree.ids, forest.tree.joins, [row.tolist() for row in forest.tokens]
    ((5, 6, 7, 8, 9), ((4, 3),), [[0, 1], [0, 2]])
    """
    order = sorted(range(len(conversations)), key=lambda i: conversations[i].ids)
    return list(_split(conversations, order, max_tokens))


def _split(
    conversations: Sequence[StepTree], members: Sequence[int], max_tokens: int
) -> Iterator[Forest]:
    if not members:
        return
    forest = _merge(conversations, members)
    if forest.tree.length <= max_tokens or len(members) == 1:
        yield forest
        return
    half = len(members) // 2
    yield from _split(conversations, members[:half], max_tokens)
    yield from _split(conversations, members[half:], max_tokens)


def _merge(conversations: Sequence[StepTree], members: Sequence[int]) -> Forest:
    trie: list[dict[int, int]] = [{}]
    """Of each node, token → node; the first one is the root."""
    in_replies = [_insert(trie, conversations[i]) for i in members]
    ids, joins, place = _depth_first(trie)
    answered = sorted(place[node] for node in set().union(*in_replies))
    number = {at: n for n, at in enumerate(answered)}
    begins = {start for start, _ in joins}
    replies: list[tuple[int, int]] = []
    for at in answered:
        if replies and replies[-1][1] == at and at not in begins:
            replies[-1] = (replies[-1][0], at + 1)
        else:
            replies.append((at, at + 1))
    return Forest(
        StepTree(tuple(ids), tuple(replies), joins=tuple(joins)),
        tuple(members),
        tuple(torch.tensor([number[place[node]] for node in nodes]) for nodes in in_replies),
    )


def _insert(trie: list[dict[int, int]], tree: StepTree) -> list[int]:
    """Adds a conversation; the nodes of its replies' tokens."""
    nodes: list[int] = []
    joins = dict(tree.joins)
    for i, token in enumerate(tree.ids[: tree.trunk_length]):
        before = joins.get(i, i)
        children = trie[nodes[before - 1] if before else 0]
        if token not in children:
            children[token] = len(trie)
            trie.append({})
        nodes.append(children[token])
    return [node for start, end in tree.replies for node in nodes[start:end]]


def _depth_first(
    trie: Sequence[dict[int, int]],
) -> tuple[list[int], list[tuple[int, int]], dict[int, int]]:
    """Token ids and joins of a trie, and where each node is among them."""
    ids: list[int] = []
    joins: list[tuple[int, int]] = []
    place = {0: -1}
    stack = [(0, token, node) for token, node in reversed(trie[0].items())]
    while stack:
        parent, token, node = stack.pop()
        if place[parent] + 1 != len(ids):
            joins.append((len(ids), place[parent] + 1))
        place[node] = len(ids)
        ids.append(token)
        stack += [(node, *child) for child in reversed(trie[node].items())]
    return ids, joins, place
