"""Trees that share a forward pass have the losses and gradients of trees one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepagent.training.config import Config
from stepagent.training.methods import discriminator, implicit
from stepagent.training.methods.discriminator import Discriminator, attach
from stepagent.training.methods.practice import Practice
from stepagent.training.trees.compat import unwrap
from tests.training.methods import toy_problem
from tests.training.toys import TREES, tiny_model

TREES_WITH_BRANCHES = [tree for tree in TREES.values() if tree.branches]


def _pairs():
    for i, tree in enumerate(TREES_WITH_BRANCHES):
        count = len(tree.branches)
        yield implicit.TreePairs(
            tree, (1.0 + i,) * count, (-5.0 - i,) * count, tuple(-7.0 - j for j in range(count))
        )


def _practices():
    for tree in TREES_WITH_BRANCHES:
        agent = (0.0,) * len(tree.replies) + (2.0,) * len(tree.branches)
        expert = (1.0,) * len(tree.replies) + (0.0,) * len(tree.branches)
        yield Practice(tree, agent, expert)


def _judge():
    torch.manual_seed(1)
    return Discriminator(tiny_model())


@pytest.mark.parametrize(
    ("make", "loss", "items"),
    [
        (tiny_model, implicit.loss(0.1, 0.5), list(_pairs())),
        (_judge, discriminator.loss, list(_practices())),
    ],
    ids=["implicit", "discriminator"],
)
def test_packed_equals_single(make, loss, items):
    sides = []
    for groups in ([items], [[item] for item in items]):
        model, totals = make(), {}
        for group in groups:
            total, figures = loss(model, group)
            total.backward()
            for name, value in {"loss": float(total.detach()), **figures}.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        sides.append((totals, {n: p.grad for n, p in model.named_parameters()}))
    (packed, packed_grads), (single, single_grads) = sides
    assert packed == pytest.approx(single, rel=1e-5, abs=1e-5)
    for name, gradient in single_grads.items():
        if gradient is not None:
            torch.testing.assert_close(packed_grads[name], gradient, atol=1e-4, rtol=1e-3)


def test_all_that_a_discriminator_trains_gets_a_gradient():
    """Its backbone's output layer, untied here, would not: DDP refuses that."""
    judge = _judge()
    total, _ = discriminator.loss(judge, list(_practices()))
    total.backward()
    without = [n for n, p in judge.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_separate_backbone_has_the_policy_s_gradient_checkpointing(tmp_path, checkpointing):
    policy = toy_problem.policy()
    policy.config = replace(policy.config, gradient_checkpointing=checkpointing)
    policy.model.save_pretrained(tmp_path)
    settings = Config(output="x").inverse.discriminator
    settings.rank = 0
    with attach(policy, settings, tmp_path, 0) as judge:
        assert unwrap(judge.backbone).is_gradient_checkpointing is checkpointing
