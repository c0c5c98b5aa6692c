"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import reply_nll, step_dpo_loss


def test_step_dpo_by_hand() -> None:
    # β = 0.5. Pair 1: rewards 0.5·(-1 + 3) = 1 and 0.5·(-4 + 2) = -1, margin 2.
    # Pair 2: rewards 0.5·(-5 + 3) = -1 and 0.5·(-1 + 1) = 0, margin -1.
    chosen, rejected = torch.tensor([-1.0, -5.0]), torch.tensor([-4.0, -1.0])
    reference = torch.tensor([-3.0, -3.0]), torch.tensor([-2.0, -1.0])
    result = step_dpo_loss(chosen, rejected, *reference, beta=0.5)
    # log(1 + e^-2) = 0.126928, log(1 + e^1) = 1.313262; mean 0.720095
    assert result.loss.item() == pytest.approx(0.720095, abs=1e-6)
    assert result.accuracy.item() == 0.5
    assert result.margin.item() == pytest.approx(0.5)
    assert result.chosen_reward.item() == pytest.approx(0.0)
    assert result.rejected_reward.item() == pytest.approx(-0.5)
    expected = {"accuracy": 0.5, "margin": 0.5, "chosen_reward": 0.0, "rejected_reward": -0.5}
    assert result.health == pytest.approx(expected)


def test_step_dpo_at_the_reference() -> None:
    log_probs = torch.tensor([-2.0, -7.0], requires_grad=True), torch.tensor([-1.0, -3.0])
    result = step_dpo_loss(*log_probs, log_probs[0].detach(), log_probs[1], beta=0.1)
    assert result.loss.item() == pytest.approx(math.log(2))
    assert result.accuracy.item() == 0.5
    assert result.margin.item() == 0.0


def test_step_dpo_gradient_by_hand() -> None:
    # dL/d log π(â|s) = -β σ(-margin) / n, and the opposite for the agent's action.
    chosen = torch.tensor([-1.0, -5.0], requires_grad=True)
    rejected = torch.tensor([-4.0, -1.0], requires_grad=True)
    reference = torch.tensor([-3.0, -3.0]), torch.tensor([-2.0, -1.0])
    step_dpo_loss(chosen, rejected, *reference, beta=0.5).loss.backward()
    slope = torch.tensor([0.5 * 0.119203 / 2, 0.5 * 0.731059 / 2])
    torch.testing.assert_close(chosen.grad, -slope, atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected.grad, slope, atol=1e-6, rtol=0)


def test_step_dpo_weights_are_a_repetition() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(4, 3, generator=generator)
    weighted = step_dpo_loss(*columns, beta=0.3, weights=torch.tensor([2.0, 0.0, 1.0]))
    repeated = step_dpo_loss(*columns[:, [0, 0, 2]], beta=0.3)
    for name in ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name))


def test_step_dpo_survives_extremes() -> None:
    far = torch.tensor([-2000.0])
    near = torch.tensor([-1.0], requires_grad=True)
    result = step_dpo_loss(far, near, near.detach(), far, beta=1.0)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(2 * 1999.0)
    assert near.grad is not None
    assert near.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("beta", "size", "weights", "says"),
    [
        (0.0, 1, None, "beta must be greater than 0"),
        (float("nan"), 1, None, "beta must be greater than 0"),
        (0.1, 0, None, "at least 1"),
        (0.1, 2, [1.0], "shapes"),
        (0.1, 2, [1.0, -1.0], "weights"),
        (0.1, 2, [0.0, 0.0], "weights"),
    ],
)
def test_step_dpo_refuses(beta: float, size: int, weights: list[float] | None, says: str) -> None:
    given = None if weights is None else torch.tensor(weights)
    with pytest.raises(ValueError, match=says):
        step_dpo_loss(*torch.zeros(4, size), beta=beta, weights=given)


def test_reply_nll_by_hand() -> None:
    # Probabilities 1/2, 1/4 and 1/8: -(ln ½ + ln ¼ + ln ⅛) / 3 = 2 ln 2
    log_probs = torch.tensor([0.5, 0.25, 0.125]).log()
    assert reply_nll(log_probs).item() == pytest.approx(2 * math.log(2))
    with pytest.raises(ValueError, match="no reply token"):
        reply_nll(torch.zeros(0))
