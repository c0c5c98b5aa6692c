"""Step trees: how they are split and trimmed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree, split_tree
from tests.training.toys import random_tree, rewriting_tree, tiny_model


@pytest.mark.parametrize("make", [random_tree, rewriting_tree])
def test_split_keeps_every_pair_within_the_budget(make: Callable[..., StepTree]) -> None:
    model, tree = tiny_model(), make(8, 6, [5, 0, 0, 1, 3, 4, 4, 2, 5])
    limit = tree.trunk_length + 9
    parts = split_tree(tree, limit)
    assert len(parts) > 1
    assert all(part.length <= limit for part in parts)
    kept = sorted(b.ids for part in parts for b in part.branches)
    assert kept == sorted(b.ids for b in tree.branches)
    pairs = {}
    for part in parts:
        scores = score_trees(model, pack([part]))
        for branch, chosen, rejected in zip(
            part.branches, scores.chosen, scores.rejected, strict=True
        ):
            pairs[branch] = (chosen.item(), rejected.item())
    scores = score_trees(model, pack([tree]))
    for branch, chosen, rejected in zip(tree.branches, scores.chosen, scores.rejected, strict=True):
        assert pairs[branch] == pytest.approx((chosen.item(), rejected.item()), abs=1e-4)
    assert split_tree(tree, tree.length) == [tree]


@pytest.mark.parametrize("make", [random_tree, rewriting_tree])
def test_trimmed_drops_the_steps_behind_the_last_branch(make: Callable[..., StepTree]) -> None:
    tree = make(9, 5, [1, 0])
    trimmed = tree.trimmed()
    assert trimmed.replies == tree.replies[:2]
    assert trimmed.ids == tree.ids[: tree.replies[1][1]]
    full, short = (score_trees(tiny_model(), pack([t])) for t in (tree, trimmed))
    torch.testing.assert_close(full.chosen, short.chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(full.rejected, short.rejected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("replies", "branches", "says"),
    [
        (((0, 2),), (), "step 0 spans"),
        (((2, 4), (3, 5)), (), "step 1 spans"),
        (((2, 2),), (), "step 0 spans"),
        (((2, 9),), (), "step 0 spans"),
        (((2, 4),), (Branch(1, (3,)),), "on step 1, the trunk has 1"),
        (((2, 4),), (Branch(0, ()),), "branch 0"),
    ],
)
def test_bad_trees_are_refused(replies: tuple, branches: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StepTree((1, 2, 3, 4, 5), replies, branches)


@pytest.mark.parametrize("joins", [((3, 4),), ((0, 0),), ((3, 1), (4, 2)), ((4, 1), (3, 1))])
def test_joins_that_lead_nowhere_are_refused(joins: tuple) -> None:
    with pytest.raises(ValueError, match="is not to a token on the path before it"):
        StepTree((1, 2, 3, 4, 5, 6), ((1, 2),), joins=joins)


def test_what_cannot_run_is_refused() -> None:
    tree = random_tree(10, 3, [0])
    with pytest.raises(ValueError, match="trunk alone has"):
        split_tree(StepTree(tree.ids, tree.replies), 10)
    with pytest.raises(ValueError, match="over the limit of 10"):
        split_tree(tree, 10)
    with pytest.raises(ValueError, match="at least one tree"):
        pack([])
    short = tiny_model(max_position_embeddings=16)
    with pytest.raises(ValueError, match="the model's context is 16"):
        score_trees(short, pack([tree]))
