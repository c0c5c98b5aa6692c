"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stepagent.training.methods.losses import (
    discriminator_loss,
    expert_is_high_reward,
    generalised_advantages,
    ppo_loss,
    step_dpo_loss,
)


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
    tensor = None if weights is None else torch.tensor(weights)
    with pytest.raises(ValueError, match=says):
        step_dpo_loss(*torch.zeros(4, size), beta=beta, weights=tensor)


def test_discriminator_by_hand() -> None:
    # D = 1/2, 3/4, 1/4; weights of agent and expert as given:
    # L = -(2 ln 1/2 + 2 ln 3/4 + 3 ln 3/4) = 1.386294 + 5 · 0.287682
    logit = torch.tensor([0.0, math.log(3), -math.log(3)], requires_grad=True)
    agent, expert = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 3.0])
    result = discriminator_loss(logit, agent, expert)
    assert result.loss.item() == pytest.approx(2.824704, abs=1e-5)
    assert result.agent_accuracy.item() == 2.5, "a tie counts half"
    assert result.expert_accuracy.item() == 3.5
    # entropies ln 2, 0.562335, 0.562335, weighted by (agent + expert) / 2 = 1, 1, 1.5
    assert result.entropy.item() == pytest.approx(2.098985, abs=1e-5)
    result.loss.backward()
    # dL/dlogit = -agent (1 - D) + expert D
    assert logit.grad is not None
    assert logit.grad.tolist() == pytest.approx([0.0, -0.5, 0.75])


def test_minimising_the_discriminators_loss_takes_d_to_1_on_the_agent() -> None:
    logit = torch.zeros(2, requires_grad=True)
    discriminator_loss(logit, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).loss.backward()
    assert logit.grad is not None
    agent_step, expert_step = (-logit.grad).tolist()
    assert agent_step > 0 > expert_step


def test_the_reward_is_high_where_d_says_expert() -> None:
    # D = 3/4 (rather the agent's): -ln 3/4; D = 1/4 (rather the expert's): -ln 1/4
    reward = expert_is_high_reward(torch.tensor([math.log(3), -math.log(3)]))
    assert reward.tolist() == pytest.approx([0.287682, 1.386294], abs=1e-5)
    assert expert_is_high_reward(torch.tensor([200.0, -200.0])).tolist() == [0.0, 200.0]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [1.0]])
def test_discriminator_refuses(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"weights|length"):
        discriminator_loss(torch.zeros(2), torch.tensor(weights), torch.tensor(weights))


def test_ppo_by_hand() -> None:
    # ratios 1.5, 1.5, 0.5 with advantages 1, -1, -1 and ε = 0.2:
    # -min(1.5, 1.2) = -1.2; -min(-1.5, -1.2) = 1.5; -min(-0.5, -0.8) = 0.8, twice
    ratio = torch.tensor([1.5, 1.5, 0.5])
    result = ppo_loss(
        ratio.log(),
        torch.zeros(3),
        torch.tensor([1.0, -1.0, -1.0]),
        torch.tensor([1.0, 1.0, 2.0]),
        torch.tensor([1.0, 1.0, 0.5]),
        clip=0.2,
        kl=0.1,
        entropy=0.01,
        values=torch.tensor([0.5, 9.0, 9.0]),
        returns=torch.tensor([1.0, 0.0, 0.0]),
        value_weights=torch.tensor([1.0, 0.0, 0.0]),
        value_coefficient=0.5,
    )
    assert result.surrogate.item() == pytest.approx(1.9)
    # r - 1 - ln r: 0.094535, 0.094535, 0.193147 (twice)
    assert result.kl.item() == pytest.approx(0.575364, abs=1e-5)
    assert result.entropy.item() == pytest.approx(3.0)
    assert result.value.item() == pytest.approx(0.25)
    assert result.loss.item() == pytest.approx(1.9 + 0.0575364 - 0.03 + 0.125, abs=1e-5)
    assert result.clipped.item() == 4.0
    assert result.ratio.item() == pytest.approx(4.0)


def test_ppo_at_the_old_policy_is_the_policy_gradient() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages, weights = torch.tensor([2.0, -1.0, 5.0]), torch.tensor([1.0, 3.0, 0.0])
    result = ppo_loss(
        log_probs, log_probs.detach(), advantages, weights, torch.zeros(3),
        clip=0.2, kl=0.5, entropy=0.0,
    )  # fmt: skip
    result.loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-2.0, 3.0, 0.0]), "-w A, and none of the KL's"
    assert result.kl.item() == 0.0
    assert result.clipped.item() == 0.0


def test_ppo_refuses() -> None:
    with pytest.raises(ValueError, match="some weight"):
        ppo_loss(*torch.zeros(5, 2), clip=0.2, kl=0.0, entropy=0.0)


def test_generalised_advantages_by_hand() -> None:
    # δ = 0, 0, 0.5 with γ = 1; A = δ + ½ A': 0.125, 0.25, 0.5
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.full((3,), 0.5)
    assert generalised_advantages(rewards, values, 1.0, 0.5).tolist() == [0.125, 0.25, 0.5]
    # γ = λ = ½ and no values: the reward shrinks by γλ = ¼ a token
    advantages = generalised_advantages(rewards, torch.zeros(3), 0.5, 0.5)
    assert advantages.tolist() == [0.0625, 0.25, 1.0]
    with pytest.raises(ValueError, match="differ"):
        generalised_advantages(rewards, torch.zeros(2), 1.0, 1.0)
