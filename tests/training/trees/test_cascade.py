"""The cascade against attention with the dense mask, and against the runs that stand in for it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stepagent.agents.encoded import Joins, ranges, reaches
from stepagent.training.trees import cascade
from stepagent.training.trees.attention import Branching, Prefill
from stepagent.training.trees.cascade import pieces_of
from stepagent.training.trees.forest import forests
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree
from tests.training.toys import random_tree, tiny_model, ways_taken

CPU = torch.device("cpu")
HEADS = {"grouped": (6, 2), "one for each": (3, 3), "one for all": (4, 1)}
"""Heads of queries, and of keys."""


def random_joins(seed: int, size: int, longest: int) -> Joins:
    """Branches of up to `longest` tokens, each from any token of the path before or from none."""
    rng, start = random.Random(seed), 0
    joins: list[tuple[int, int]] = []
    while (start := start + rng.randint(1, longest)) < size:
        on_path = [at for a, b in ranges(joins, start) for at in range(a, b)]
        joins.append((start, rng.choice([0, *on_path])))
    return joins


TRIES: dict[str, tuple[Joins, int]] = {
    "no branch": ([], 9),
    "two": ([(7, 4)], 10),
    "several from one place": ([(7, 4), (9, 4), (14, 4)], 16),
    "a branch of a branch": ([(7, 4), (12, 9)], 15),
    "out of a branch, farther up": ([(7, 5), (10, 5), (13, 2), (16, 13)], 20),
    "history rewritten": ([(6, 4), (11, 8), (15, 14), (19, 17)], 24),
    "anew": ([(6, 4), (9, 0), (14, 11), (17, 11)], 20),
    "one token each": ([(2, 1), (3, 1), (4, 1)], 5),
    "long": ([(700, 600), (1300, 600), (1500, 100)], 1800),
    **{f"random {seed}": (random_joins(seed, 60, 7), 60) for seed in range(8)},
    "random, longer": (random_joins(8, 900, 150), 900),
}


def dense_mask(joins: Joins, size: int, window: int | None = None) -> Tensor:
    """bool [size, size]"""
    place, reach = torch.arange(size), torch.tensor(reaches(joins, size))
    sees = (place <= place[:, None]) & (place[:, None] < reach)
    if window is not None:
        sees &= sees.cumsum(dim=1) > sees.sum(dim=1, keepdim=True) - window
    return sees


def tensors(size: int, heads: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a gradient, laid out as a model does: token by token."""
    draw = torch.Generator().manual_seed(size)
    own, shared = heads
    return [
        torch.randn(1, size, n, 16, generator=draw, dtype=dtype).transpose(1, 2)
        for n in (own, shared, shared, own)
    ]


def dense(query: Tensor, key: Tensor, value: Tensor, sees: Tensor, scale: float) -> Tensor:
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~sees, -torch.inf)
    return scores.softmax(dim=-1) @ value


def with_gradients(attend: Any, query: Tensor, key: Tensor, value: Tensor, g: Tensor) -> Any:
    inputs = [x.clone().requires_grad_() for x in (query, key, value)]
    out = attend(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, g)


@pytest.mark.parametrize("name", TRIES)
def test_blocks_are_what_tokens_see_each_once(name: str) -> None:
    joins, size = TRIES[name]
    count = torch.zeros(size, size, dtype=torch.int)
    for piece in pieces_of(joins, size):
        own = slice(piece.start, piece.end)
        count[own, own] += torch.ones(piece.end - piece.start, piece.end - piece.start).tril().int()
        count[piece.end : piece.below, own] += 1
    assert torch.equal(count, dense_mask(joins, size).int())


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", TRIES)
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    name: str, heads: str, dtype: torch.dtype, limit: float
) -> None:
    joins, size = TRIES[name]
    given = tensors(size, HEADS[heads], dtype)
    pieces, sees = pieces_of(joins, size), dense_mask(joins, size)
    ours = with_gradients(lambda q, k, v: cascade.cascade(q, k, v, pieces, 0.3), *given)
    plain = with_gradients(lambda q, k, v: dense(q, k, v, sees, 0.3), *given)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=limit, rtol=limit)


def test_scores_far_apart_and_other_layouts() -> None:
    """Blocks of which one outweighs the other by far; tensors of contiguous heads, and slices."""
    joins, size = TRIES["history rewritten"]
    pieces, sees = pieces_of(joins, size), dense_mask(joins, size)
    given = [x.contiguous() for x in tensors(size, (4, 2), torch.float64)]
    wider = [torch.cat([x, x], dim=2)[:, :, :size] for x in given]
    ours = with_gradients(lambda q, k, v: cascade.cascade(q, k, v, pieces, 40.0), *wider)
    plain = with_gradients(lambda q, k, v: dense(q, k, v, sees, 40.0), *given)
    for a, b in zip(ours, plain, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


# Where it is taken ------------------------------------------------------------------------------


JOINS, SIZE = [(500, 400), (600, 400)], 700


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ways_taken(monkeypatch)


def check(window: int | None = None, dtype: torch.dtype = torch.float32) -> None:
    q, k, v, g = tensors(SIZE, (4, 2), dtype)
    branching, sees = Branching(JOINS, SIZE, window, CPU), dense_mask(JOINS, SIZE, window)
    ours = with_gradients(lambda *x: branching.attend(*x, 0.3, 0.0), q, k, v, g)
    for a, b in zip(ours, with_gradients(lambda *x: dense(*x, sees, 0.3), q, k, v, g), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_shared_beginning_takes_it(taken: list[str], dtype: torch.dtype) -> None:
    check(dtype=dtype)
    assert taken == ["cascade"]


@pytest.mark.parametrize("missing", ["_forward", "_backward"])
def test_runs_where_an_operator_is_missing(
    taken: list[str], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, missing, None)
    check()
    assert taken == ["runs"]


def test_an_operator_is_known_by_its_arguments() -> None:
    assert cascade._operator("no_such_operator", "query") is None
    assert cascade._operator(cascade._NAME, "query key value") is None
    assert cascade._operator("relu", "self") is torch.ops.aten.relu.default


@pytest.mark.parametrize("window", [50, 10_000])
def test_runs_where_a_window_slides(taken: list[str], window: int) -> None:
    check(window)
    assert taken == ["runs"]


def test_runs_with_dropout(taken: list[str]) -> None:
    q, k, v, _ = tensors(SIZE, (4, 2), torch.float32)
    branching = Branching(JOINS, SIZE, None, CPU)
    without, some = (branching.attend(q, k, v, 0.3, dropout) for dropout in (0.0, 0.5))
    assert taken == ["cascade", "runs"]
    assert (some - without).abs().max() > 0.1


def test_runs_where_the_operator_takes_no_such_tensors(taken: list[str]) -> None:
    branching, sees = Branching(JOINS, SIZE, None, CPU), dense_mask(JOINS, SIZE)
    q, k, v, _ = tensors(SIZE, (4, 2), torch.float32)
    narrow = v[..., :8]
    across = q.transpose(2, 3).contiguous().transpose(2, 3)
    for query, value in ((q, narrow), (across, v)):
        out = branching.attend(query, k, value, 0.3, 0.0)
        torch.testing.assert_close(out, dense(query, k, value, sees, 0.3), atol=1e-5, rtol=1e-5)
    branching.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.3, 0.0)
    assert taken == ["runs"] * 3


@pytest.mark.parametrize(
    ("joins", "size"),
    [([(25, 20), (30, 20)], 40), ([(500, 0), (900, 0)], 1200), (random_joins(1, 1000, 20), 1000)],
    ids=["a short beginning", "nothing in common", "many short branches"],
)
def test_runs_where_merging_costs_more(joins: Joins, size: int) -> None:
    assert Branching(joins, size, None, CPU).pieces == ()


# In a model -------------------------------------------------------------------------------------


def rollouts(shared: int) -> list[StepTree]:
    """As in the benchmark of GRPO: they part after a prompt and some steps, and end anywhere."""
    first = random_tree(3, 60, [])
    at = next(start for start, _ in first.replies if start >= shared)
    group = []
    for seed in range(4):
        other = random_tree(20 + seed, 60, []).ids
        end = first.replies[-1 - seed][1]
        ids = (*first.ids[:at], *other[: end - at])
        group.append(replace(first, ids=ids, replies=first.replies[: 60 - seed]))
    return group


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_of_a_group_takes_it_in_every_layer(
    taken: list[str], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(max_position_embeddings=1024)
    [forest] = forests(rollouts(shared=300), 10_000)
    packed = pack([forest.tree, random_tree(1, 2, [0])])

    def update() -> Tensor:
        model.zero_grad()
        score_trees(model, packed).log_probs.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    with monkeypatch.context() as patch:
        patch.setattr(cascade, "MIN_SHARED", 10**9)
        expected = update()
    assert taken == ["runs", "runs"]
    if checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    difference = (update() - expected).norm()
    assert taken[2:] == ["cascade"] * (4 if checkpointing else 2)
    assert 0 < difference <= 1e-5 * expected.norm()


def test_reading_before_practice_takes_it(taken: list[str]) -> None:
    q, k, v, _ = tensors(SIZE, (4, 2), torch.float32)
    with torch.no_grad():
        out = Prefill(None, JOINS).attend(0, q, k, v, 0.3, 0.0)
    assert taken == ["cascade"]
    expected = dense(q, k, v, dense_mask(JOINS, SIZE), 0.3)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
