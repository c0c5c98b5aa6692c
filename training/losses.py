"""Losses as pure functions of log-probabilities; equation numbers are the paper's.

The log-probabilities of whole actions come from `training.tree.score_trees`: log π(a|s) is the sum
over the action's tokens, the end-of-turn token included, the prompt and observations not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PreferenceLoss:
    """Loss and health of a batch of preference pairs; all but `loss` are detached."""

    loss: Tensor
    """float32 []: to be minimised"""
    accuracy: Tensor
    """float32 []: share of pairs with chosen_reward > rejected_reward, weighted; ties count half.
    0.5 at the reference, rises towards 1 as the policy learns."""
    margin: Tensor
    """float32 []: mean of chosen_reward - rejected_reward; 0 at the reference, should rise"""
    chosen_reward: Tensor
    """float32 []: mean implicit reward β (log π(â|s) - log π_ref(â|s)) of the expert's action.
    Falls below 0 where the policy pays for the margin with the expert's likelihood."""
    rejected_reward: Tensor
    """float32 []: the same for the agent's own action; should fall"""

    @property
    def health(self) -> dict[str, float]:
        """All but the loss, as numbers to log."""
        names = ("accuracy", "margin", "chosen_reward", "rejected_reward")
        return {name: float(getattr(self, name)) for name in names}


def step_dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> PreferenceLoss:
    """Step-wise DPO, eq. 6: the expert's action is preferred to the agent's in the same state.

        L = -E[log σ(β (log π(â|s) - log π_ref(â|s)) - β (log π(a|s) - log π_ref(a|s)))]

    A pair of equal actions has no gradient and a loss of log 2: leave it out beforehand.

    Args:
        chosen: float [n], log π(â|s) of the expert's action in each pair, with gradient.
        rejected: float [n], log π(a|s) of the agent's own action.
        reference_chosen: float [n], log π_ref(â|s), π_ref the policy entering the iteration.
        reference_rejected: float [n], log π_ref(a|s).
        beta: β > 0. A larger one holds the policy closer to the reference; usual range 0.01 to 0.5.
        weights: float [n] ≥ 0, the weight of each pair in the expectation; None for equal weights.

    Raises:
        ValueError: β ≤ 0, no pair, shapes that differ, weights that are negative or all zero.
    """
    if not beta > 0:
        raise ValueError(f"beta must be greater than 0, got {beta}")
    columns = (chosen, rejected, reference_chosen, reference_rejected)
    shapes = [tuple(x.shape) for x in (*columns, *([] if weights is None else [weights]))]
    if len(set(shapes)) > 1 or chosen.ndim != 1 or not len(chosen):
        raise ValueError(f"step DPO takes vectors of one length, at least 1, got shapes {shapes}")
    share = torch.ones_like(chosen, dtype=torch.float32) if weights is None else weights.float()
    if not (share >= 0).all() or not share.sum() > 0:
        raise ValueError("pair weights must not be negative, and not all zero")
    share = share / share.sum()
    chosen_rewards = beta * (chosen.float() - reference_chosen.float())
    rejected_rewards = beta * (rejected.float() - reference_rejected.float())
    margins = chosen_rewards - rejected_rewards
    loss = -(share * F.logsigmoid(margins)).sum()
    detached = margins.detach()
    wins = (detached > 0).float() + 0.5 * (detached == 0).float()
    return PreferenceLoss(
        loss=loss,
        accuracy=(share * wins).sum(),
        margin=(share * detached).sum(),
        chosen_reward=(share * chosen_rewards.detach()).sum(),
        rejected_reward=(share * rejected_rewards.detach()).sum(),
    )


def reply_nll(token_log_probs: Tensor) -> Tensor:
    """Supervised fine-tuning, eqs. 2-3: mean negative log-likelihood of the expert's tokens.

        L = -1/P Σ log π(w_p | w_<p), over the tokens of the agent's replies only

    Eq. 3's sum runs over agent tokens alone (its indicator 1(w_j ∈ A)); prompt and observation
    tokens must not be among `token_log_probs`. Divided by the number of tokens, as usual for SFT.

    Args:
        token_log_probs: float [P], log-probability of each reply token, of any number of replies.

    Returns:
        float32 [], to be minimised.

    Raises:
        ValueError: there is no token.
    """
    if not token_log_probs.numel():
        raise ValueError("there is no reply token to take the loss of")
    return -token_log_probs.float().mean()
