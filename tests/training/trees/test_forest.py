"""Forests of conversations against every conversation by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from stepagent.training.trees import cascade, runs
from stepagent.training.trees.forest import forests
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree
from tests.training.toys import (
    TREES,
    plain_scores,
    random_tree,
    rewriting_tree,
    tiny_model,
    ways_taken,
)


def cut_short(tree: StepTree, steps: int) -> StepTree:
    return replace(tree, ids=tree.ids[: tree.replies[steps - 1][1]], replies=tree.replies[:steps])


def diverging(tree: StepTree, at: int, seed: int) -> StepTree:
    """The same tokens up to `at`, then others: in the same turns."""
    other = torch.randint(0, 96, (len(tree.ids),), generator=torch.Generator().manual_seed(seed))
    ids = (*tree.ids[:at], *other[at:].tolist())
    return replace(tree, ids=ids)


FIRST = random_tree(11, 5, [])
START, END = FIRST.replies[2]
GROUPS = {
    "nothing in common": [random_tree(seed, 3, []) for seed in (1, 2, 3)],
    "one alone": [FIRST],
    "the same twice": [FIRST, FIRST],
    "one is the beginning of another": [FIRST, cut_short(FIRST, 2), cut_short(FIRST, 3)],
    "apart from a reply's first token on": [FIRST, diverging(FIRST, START, 1)],
    "apart within a reply": [FIRST, *(diverging(FIRST, END - 1, seed) for seed in (2, 3))],
    "apart in an observation": [FIRST, diverging(FIRST, END + 1, 4), diverging(FIRST, START, 5)],
    "history rewritten": [
        rewriting_tree(6, 4, []),
        rewriting_tree(6, 4, [], anew=2),
        rewriting_tree(6, 3, []),
    ],
}


def by_themselves(model: PreTrainedModel, group: list[StepTree]) -> list[Tensor]:
    """Log-probabilities [P_i] of the replies' tokens, each reply in a sequence of its own."""
    rows = []
    for tree in group:
        parts = []
        for step, (start, end) in enumerate(tree.replies):
            ids = torch.tensor([[*tree.state(step), *tree.ids[start:end]]])
            logits = model(ids).logits[0].log_softmax(-1)
            at = torch.arange(ids.shape[1] - (end - start) - 1, ids.shape[1] - 1)
            parts.append(logits[at, ids[0, at + 1]])
        rows.append(torch.cat(parts))
    return rows


def gradients(model: PreTrainedModel) -> Tensor:
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return gradient


@pytest.mark.parametrize("attention", ["runs", "short runs", "cascade"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("limit", [10_000, 45, 1])
@pytest.mark.parametrize("name", GROUPS)
def test_scores_and_gradients_are_those_of_single_sequences(
    kind: str, limit: int, name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention == "short runs":
        monkeypatch.setattr(runs, "RUN_TOKENS", 7)
    monkeypatch.setattr(cascade, "MIN_SHARED", 0 if attention == "cascade" else 10**9)
    taken = ways_taken(monkeypatch)
    model, group = tiny_model(kind), GROUPS[name]
    expected = by_themselves(model, group)
    weights = [
        torch.randn(len(row), generator=torch.Generator().manual_seed(i))
        for i, row in enumerate(expected)
    ]
    sum((w * row).sum() for w, row in zip(weights, expected, strict=True)).backward()
    expected_gradient = gradients(model)

    parts = forests(group, limit)
    assert sorted(i for part in parts for i in part.members) == list(range(len(group)))
    assert all(part.tree.length <= limit or len(part.members) == 1 for part in parts)
    scores = score_trees(model, pack([part.tree for part in parts]))
    sizes = [sum(end - start for start, end in part.tree.replies) for part in parts]
    for part, column in zip(parts, scores.token_log_probs.split(sizes), strict=True):
        for i, at in zip(part.members, part.tokens, strict=True):
            torch.testing.assert_close(column[at], expected[i], atol=1e-4, rtol=0)
            (weights[i] * column[at]).sum().backward(retain_graph=True)
    difference = (gradients(model) - expected_gradient).norm()
    assert difference <= 1e-4 * expected_gradient.norm()
    shared = any(at for part in parts for _, at in part.tree.joins)
    assert ("cascade" in taken) == (shared and attention == "cascade")


def test_joins_and_branches_of_one_tree_in_a_cascade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "MIN_SHARED", 0)
    taken, model = ways_taken(monkeypatch), tiny_model("llama")
    trees = [rewriting_tree(6, 4, [0, 1, 1, 3]), rewriting_tree(7, 4, [2, 3], anew=2)]
    assert all(tree.joins and tree.branches for tree in trees)
    ours = score_trees(model, pack(trees)).log_probs
    expected = torch.cat([plain_scores(model, tree)[0] for tree in trees])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert "cascade" in taken
    weights = torch.randn(len(ours), generator=torch.Generator().manual_seed(0))
    (weights * ours).sum().backward()
    gradient = gradients(model)
    (weights * expected).sum().backward()
    expected_gradient = gradients(model)
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()


def test_what_is_shared_is_there_once() -> None:
    lengths = {name: forests(group, 10_000)[0].tree.length for name, group in GROUPS.items()}
    assert lengths["the same twice"] == lengths["one alone"] == FIRST.trunk_length
    assert lengths["one is the beginning of another"] == FIRST.trunk_length
    after = FIRST.trunk_length - START
    assert lengths["apart from a reply's first token on"] == FIRST.trunk_length + after
    assert lengths["nothing in common"] == sum(
        tree.trunk_length for tree in GROUPS["nothing in common"]
    )


def test_neighbours_are_those_that_share_most() -> None:
    one, other = random_tree(1, 3, []), random_tree(2, 3, [])
    limit = max(one.trunk_length, other.trunk_length)
    parts = forests([one, other, one, other], limit)
    assert sorted(part.members for part in parts) == [(0, 2), (1, 3)]


def test_no_conversation_no_forest() -> None:
    assert forests([], 100) == []


@pytest.mark.parametrize("window", [None, 6])
def test_branches_on_a_reply_at_which_the_trunk_branches(window: int | None) -> None:
    """The reply of step 1 begins a branch of the trunk, so its state ends elsewhere."""
    model = tiny_model("mistral", sliding_window=window)
    tree = StepTree(
        (1, 2, 3, 4, 5, 6, 7, 8, 9),
        ((3, 5), (5, 9)),
        (Branch(0, (11, 12)), Branch(1, (13,)), Branch(1, (14, 15, 16))),
        joins=((5, 3),),
    )
    assert tree.state(1) == (1, 2, 3)
    assert tree.longest_path == 7
    expected = plain_scores(model, tree)[0]
    scores = score_trees(model, pack([tree, TREES["no branch"]]))
    torch.testing.assert_close(scores.log_probs[: len(expected)], expected, atol=1e-4, rtol=0)


def test_a_reply_must_answer_something() -> None:
    with pytest.raises(ValueError, match="reply of step 1 answers no token"):
        StepTree((1, 2, 3, 4), ((1, 2), (3, 4)), joins=((3, 0),))
