"""Variants of eq. 6, judges and advantages against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from stepagent.training.methods.losses import (
    PREFERENCE_VARIANTS,
    PreferenceLoss,
    discriminator_loss,
    group_advantages,
    logit_reward,
    pairwise_judge_loss,
    smoothed_discriminator_loss,
    step_dpo_loss,
    step_preference_loss,
    turn_advantages,
)

# Pair 1: Δ⁺ = -1 + 3 = 2, Δ⁻ = -4 + 1 = -3, margin 5.
# Pair 2: Δ⁺ = -5 + 3 = -2, Δ⁻ = 0, margin -2.
COLUMNS = tuple(torch.tensor(x) for x in ([-1.0, -5.0], [-4.0, -1.0], [-3.0, -3.0], [-1.0, -1.0]))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_sigmoid_variant_is_eq_6() -> None:
    ours = step_preference_loss("sigmoid", *COLUMNS, beta=0.5)
    assert ours.loss.item() == step_dpo_loss(*COLUMNS, beta=0.5).loss.item()


def test_length_normalised_by_hand() -> None:
    lengths = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 5.0])
    out = step_preference_loss("length_normalised", *COLUMNS, beta=2.0, lengths=lengths)
    # margins per token: 2/2 - (-3)/3 = 2 and -2/4 - 0 = -0.5; times β = 2: 4 and -1
    assert out.loss.item() == pytest.approx((softplus(-4) + softplus(1)) / 2, abs=1e-6)
    assert out.margin.item() == pytest.approx(1.5)


def test_positive_by_hand() -> None:
    out = step_preference_loss("positive", *COLUMNS, beta=0.5, penalty=3.0)
    # the first pair's Δ⁺ rose: no penalty, σ of 2.5; the second fell by 2: 0.5 (-2 - 3·2) = -4
    assert out.loss.item() == pytest.approx((softplus(-2.5) + softplus(4)) / 2, abs=1e-6)


def test_positive_pushes_a_fallen_action_up_harder_than_eq_6() -> None:
    slopes = {}
    for variant in ("sigmoid", "positive"):
        chosen = COLUMNS[0].clone().requires_grad_()
        step_preference_loss(variant, chosen, *COLUMNS[1:], beta=0.5).loss.backward()
        slopes[variant] = -chosen.grad
    assert slopes["positive"][1] > 2 * slopes["sigmoid"][1]
    assert slopes["positive"][0] == slopes["sigmoid"][0]


def test_ipo_by_hand_and_at_its_goal() -> None:
    out = step_preference_loss("ipo", *COLUMNS, beta=0.25)
    assert out.loss.item() == pytest.approx(((5 - 2) ** 2 + (-2 - 2) ** 2) / 2)
    chosen = torch.tensor([0.0], requires_grad=True)
    zeros = torch.zeros(1)
    at_goal = step_preference_loss("ipo", chosen + 2.0, zeros, zeros, zeros, beta=0.25)
    at_goal.loss.backward()
    assert chosen.grad.item() == 0.0


@pytest.mark.parametrize("variant", PREFERENCE_VARIANTS)
def test_weights_are_a_repetition(variant: str) -> None:
    lengths = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 5.0])
    weighted = step_preference_loss(
        variant, *COLUMNS, beta=0.3, weights=torch.tensor([2.0, 1.0]), lengths=lengths
    )
    rows = [0, 0, 1]
    repeated = step_preference_loss(
        variant,
        *(column[rows] for column in COLUMNS),
        beta=0.3,
        lengths=(lengths[0][rows], lengths[1][rows]),
    )
    torch.testing.assert_close(weighted.loss, repeated.loss)


@pytest.mark.parametrize("variant", PREFERENCE_VARIANTS)
def test_values_multiply_the_loss_of_each_pair(variant: str) -> None:
    """The mean stays that over the draws: 2 of the first pair, 1 of the second."""
    lengths = torch.tensor([2.0, 4.0]), torch.tensor([3.0, 5.0])
    weights = torch.tensor([2.0, 1.0])

    def loss(rows: list[int], **more: torch.Tensor) -> PreferenceLoss:
        of_rows = lengths[0][rows], lengths[1][rows]
        return step_preference_loss(
            variant, *(column[rows] for column in COLUMNS), beta=0.3, lengths=of_rows, **more
        )

    first, second = (loss([row]).loss.item() for row in (0, 1))
    both = loss([0, 1], weights=weights, values=torch.tensor([0.25, 0.5]))
    assert both.loss.item() == pytest.approx((2 * 0.25 * first + 1 * 0.5 * second) / 3, rel=1e-5)
    assert both.health == loss([0, 1], weights=weights).health, "of the pairs as they were drawn"
    ones = loss([0, 1], weights=weights, values=torch.ones(2)).loss
    torch.testing.assert_close(ones, loss([0, 1], weights=weights).loss)
    assert loss([0, 1], weights=weights, values=torch.zeros(2)).loss.item() == 0


def test_what_a_variant_refuses() -> None:
    with pytest.raises(ValueError, match="unknown variant 'kto': one of sigmoid"):
        step_preference_loss("kto", *COLUMNS, beta=0.1)
    with pytest.raises(ValueError, match="needs the lengths"):
        step_preference_loss("length_normalised", *COLUMNS, beta=0.1)
    with pytest.raises(ValueError, match="must not be negative"):
        step_preference_loss("positive", *COLUMNS, beta=0.1, penalty=-1.0)
    for values in (torch.tensor([1.0, -0.1]), torch.ones(3)):
        with pytest.raises(ValueError, match="as many as there are pairs"):
            step_preference_loss("sigmoid", *COLUMNS, beta=0.1, values=values)


def test_label_smoothing_by_hand() -> None:
    logit, agent, expert = (
        torch.tensor([2.0, -1.0]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, 1.0]),
    )
    out = smoothed_discriminator_loss(logit, agent, expert, 0.1)
    sure = softplus(-2) + softplus(-1)
    wrong = softplus(2) + softplus(1)
    assert out.loss.item() == pytest.approx(0.9 * sure + 0.1 * wrong, abs=1e-6)
    plain = discriminator_loss(logit, agent, expert)
    assert smoothed_discriminator_loss(logit, agent, expert, 0.0).loss == plain.loss
    assert out.agent_accuracy == plain.agent_accuracy


def test_label_smoothing_has_its_least_loss_at_the_smoothed_odds() -> None:
    logit = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    smoothed_discriminator_loss(logit, torch.ones(1), torch.zeros(1), 0.1).loss.backward()
    assert logit.grad.item() == pytest.approx(0.0, abs=1e-6)


def test_pairwise_judge_by_hand() -> None:
    agent, expert = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 3.0])
    loss = pairwise_judge_loss(agent, expert, torch.tensor([2.0, 1.0]))
    assert loss.item() == pytest.approx(2 * softplus(-2) + softplus(3), abs=1e-6)
    shifted = pairwise_judge_loss(agent + 5, expert + 5, torch.tensor([2.0, 1.0]))
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-5)


def test_the_logits_reward_is_high_for_the_experts_actions() -> None:
    assert logit_reward(torch.tensor([2.0, -3.0])).tolist() == [-2.0, 3.0]


def test_group_advantages_by_hand() -> None:
    # Group 0: rewards 1 and 3, mean 2, differences ∓1. Group 1: two draws of 5, one of 2, mean 4.
    rewards = torch.tensor([1.0, 3.0, 5.0, 2.0])
    weights, groups = torch.tensor([1.0, 1.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 1])
    spread = math.sqrt((1 + 1 + 2 * 1 + 4) / 5)
    ours = group_advantages(rewards, weights, groups)
    torch.testing.assert_close(ours, torch.tensor([-1.0, 1.0, 1.0, -2.0]) / spread)


def test_groups_without_spread_neither_count_nor_move() -> None:
    rewards = torch.tensor([1.0, 3.0, 9.0, 9.0, 4.0])
    weights, groups = torch.ones(5), torch.tensor([0, 0, 1, 1, 2])
    ours = group_advantages(rewards, weights, groups)
    torch.testing.assert_close(ours, torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0]))


def test_noise_is_not_blown_up() -> None:
    rewards, groups = torch.tensor([0.001, 0.003]), torch.tensor([0, 0])
    ours = group_advantages(rewards, torch.ones(2), groups, floor=0.1)
    torch.testing.assert_close(ours, torch.tensor([-0.01, 0.01]))


def test_nothing_informative_gives_zeros() -> None:
    assert group_advantages(torch.ones(3), torch.ones(3), torch.tensor([0, 0, 1])).tolist() == [
        0,
        0,
        0,
    ]
    assert group_advantages(torch.zeros(0), torch.zeros(0), torch.zeros(0).long()).tolist() == []
    with pytest.raises(ValueError, match="above 0"):
        group_advantages(torch.ones(1), torch.ones(1), torch.zeros(1).long(), floor=0.0)


def test_an_action_that_was_never_drawn_does_not_move_the_mean() -> None:
    rewards, weights = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    ours = group_advantages(rewards, weights, torch.tensor([0, 0, 0]))
    torch.testing.assert_close(ours[:2], torch.tensor([-1.0, 1.0]))


def test_a_success_of_three_turns_of_fifty_tokens_pushes_none_of_its_actions_down() -> None:
    advantages = turn_advantages(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3), 1.0, 0.95)
    assert advantages.tolist() == pytest.approx([0.9025, 0.95, 1.0])


def test_turns_with_a_critic_by_hand() -> None:
    # δ = (0 + 0.5 - 0.2, 1 - 0.5) = (0.3, 0.5); A_2 = 0.5, A_1 = 0.3 + 0.9·0.5
    ours = turn_advantages(torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.5]), 1.0, 0.9)
    assert ours.tolist() == pytest.approx([0.75, 0.5])
