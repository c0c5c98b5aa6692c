"""Losses as pure functions of log-probabilities; equation numbers are the paper's.

The log-probabilities of actions come from `trees.scoring.score_trees`: log π(a|s) is the sum
over the action's tokens, the end-of-turn token included, the prompt and observations not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

HEALTH = ("accuracy", "margin", "chosen_reward", "rejected_reward")
"""What a preference loss says of its pairs."""


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
        return {name: float(getattr(self, name)) for name in HEALTH}


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

    A pair of equal actions has no gradient and a loss of log 2: leave it out.

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


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Loss and health of a discriminator on a batch of actions, as sums: divide by the number of
    pairs (agent's action, expert's action). All but `loss` are detached."""

    loss: Tensor
    """float32 []: to be minimised; a pair costs 2 log 2 at chance, 0 where D is perfect"""
    agent_accuracy: Tensor
    """float32 []: weight of the agent's actions that D takes for the agent's (D > ½; ties half)"""
    expert_accuracy: Tensor
    """float32 []: weight of the expert's actions that D takes for the expert's (D < ½)"""
    entropy: Tensor
    """float32 []: entropy of D in nats, mean of both sides: log 2 a pair is undecided, 0 certain"""

    @property
    def health(self) -> dict[str, float]:
        """All but the loss, as numbers to log."""
        names = ("agent_accuracy", "expert_accuracy", "entropy")
        return {name: float(getattr(self, name)) for name in names}


def discriminator_loss(
    logit_agent_is_high: Tensor, agent_weights: Tensor, expert_weights: Tensor
) -> DiscriminatorLoss:
    """Eq. 11 as a loss: D = σ(logit) goes to 1 on the agent's actions and to 0 on the expert's.

        L = -Σ_agent log D(s, a) - Σ_expert log(1 - D(s, a))

    The paper writes what D maximises (as GAIL does); this is its negative, to be minimised.

    Args:
        logit_agent_is_high: float [A], D's logit of each action: positive says "the agent's".
        agent_weights: float [A] ≥ 0, how often the agent drew each action.
        expert_weights: float [A] ≥ 0, the same for the expert. An action can have both.

    Raises:
        ValueError: shapes that differ; weights that are negative or all zero.
    """
    shapes = {tuple(x.shape) for x in (logit_agent_is_high, agent_weights, expert_weights)}
    if len(shapes) > 1 or logit_agent_is_high.ndim != 1:
        raise ValueError(f"the discriminator's loss takes vectors of one length, got {shapes}")
    both = torch.stack([agent_weights, expert_weights])
    if bool((both < 0).any()) or not float(both.sum()) > 0:
        raise ValueError("the weights of the actions are negative or all zero")
    logit = logit_agent_is_high.float()
    seen = logit.detach()
    ties, d = 0.5 * (seen == 0).float(), seen.sigmoid()
    entropy = -(d * F.logsigmoid(seen) + (1 - d) * F.logsigmoid(-seen))
    says_agent, says_expert = F.logsigmoid(logit), F.logsigmoid(-logit)
    return DiscriminatorLoss(
        loss=-(agent_weights * says_agent + expert_weights * says_expert).sum(),
        agent_accuracy=(agent_weights * ((seen > 0).float() + ties)).sum(),
        expert_accuracy=(expert_weights * ((seen < 0).float() + ties)).sum(),
        entropy=((agent_weights + expert_weights) / 2 * entropy).sum(),
    )


def expert_is_high_reward(logit_agent_is_high: Tensor) -> Tensor:
    """The reward of an action, -log D(s, a): high where D takes it for the expert's.

    float32, the shape of the logits, never negative. See `methods.inverse` for the sign.
    """
    return F.softplus(-logit_agent_is_high.float())


@dataclass(frozen=True)
class PolicyLoss:
    """PPO's loss over a batch of action tokens and its parts, each a weighted sum over tokens."""

    loss: Tensor
    """float32 []: to be minimised"""
    surrogate: Tensor
    """float32 []: -min(ratio · A, clip(ratio) · A)"""
    value: Tensor
    """float32 []: squared error of the value baseline; 0 without one"""
    kl: Tensor
    """float32 []: estimate of KL(π_old ‖ π_θ), never negative"""
    entropy: Tensor
    """float32 []: entropy of the policy's choice of each token"""
    clipped: Tensor
    """float32 []: tokens whose ratio is outside [1 - clip, 1 + clip]"""
    ratio: Tensor
    """float32 []: π_θ / π_old; per unit of weight 1 before the first step"""


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    entropies: Tensor,
    *,
    clip: float,
    kl: float,
    entropy: float,
    values: Tensor | None = None,
    returns: Tensor | None = None,
    value_weights: Tensor | None = None,
    value_coefficient: float = 0.5,
) -> PolicyLoss:
    """PPO's clipped surrogate over action tokens, with a KL to the old policy and eq. 10's λ H(π).

        L = Σ w [ -min(r A, clip(r, 1-ε, 1+ε) A) + κ KL - λ H ] + c Σ v (V - R)²
        r = π_θ(token | before) / π_old(token | before)

    The tokens were drawn from the old policy, so KL(π_old ‖ π_θ) is estimated without bias by
    r - 1 - log r, which is never negative. At r = 1 the gradient is that of the policy gradient
    theorem, Σ w A ∇ log π_θ (section 5), with the loss summed over an action's tokens.

    Args:
        log_probs: float [P], log π_θ of each action token, with gradient.
        old_log_probs: float [P], under the policy that drew them.
        advantages: float [P]; the same for all tokens of an action where the action has one.
        weights: float [P] ≥ 0, how often the token's action was drawn; 0 leaves it out.
        entropies: float [P], entropy of π_θ where each token was drawn, with gradient.
        clip: ε; 0.1 to 0.3 is usual.
        kl: κ ≥ 0. entropy: λ ≥ 0.
        values, returns: float [P], V before each token and what it should be.
        value_weights: float [P] ≥ 0; 0 where there is nothing to predict.

    Raises:
        ValueError: shapes that differ, or no token with a weight.
    """
    columns = [log_probs, old_log_probs, advantages, weights, entropies]
    if values is not None and returns is not None and value_weights is not None:
        columns += [values, returns, value_weights]
    shapes = {tuple(x.shape) for x in columns}
    if len(shapes) > 1 or log_probs.ndim != 1 or not float(weights.sum()) > 0:
        raise ValueError(f"PPO takes vectors of one length with some weight, got {shapes}")
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    surrogate = -(weights * torch.minimum(ratio * advantages, bounded * advantages)).sum()
    divergence = (weights * (ratio - 1 - log_ratio)).sum()
    spread = (weights * entropies).sum()
    error = log_probs.new_zeros(())
    if values is not None and returns is not None and value_weights is not None:
        error = (value_weights * (values - returns) ** 2).sum()
    outside = ((ratio.detach() - 1).abs() > clip).float()
    return PolicyLoss(
        loss=surrogate + kl * divergence - entropy * spread + value_coefficient * error,
        surrogate=surrogate.detach(),
        value=error.detach(),
        kl=divergence.detach(),
        entropy=spread.detach(),
        clipped=(weights * outside).sum(),
        ratio=(weights * ratio.detach()).sum(),
    )


def generalised_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE (Schulman et al., 2016) over one trajectory's action tokens, observations left out.

        δ_t = r_t + γ V_{t+1} - V_t,   A_t = δ_t + γ λ A_{t+1},   V and A are 0 after the end

    With observation tokens in the recursion, each of them would cost a factor γ λ, and the credit
    of a final reward would be gone within an observation or two.

    Args: rewards, values: float [T], of the tokens the agent wrote, in order. Returns float [T].
    """
    if rewards.shape != values.shape or rewards.ndim != 1:
        raise ValueError(f"rewards and values differ: {rewards.shape} and {values.shape}")
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    following_value = following = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = float(rewards[t]) + gamma * following_value - float(values[t])
        following = delta + gamma * lam * following
        following_value = float(values[t])
        advantages[t] = following
    return advantages


# Variants of eq. 6 --------------------------------------------------------------------------------

PREFERENCE_VARIANTS = ("sigmoid", "length_normalised", "positive", "ipo")


def step_preference_loss(
    variant: str,
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    *,
    weights: Tensor | None = None,
    lengths: tuple[Tensor, Tensor] | None = None,
    penalty: float = 5.0,
    values: Tensor | None = None,
) -> PreferenceLoss:
    """Eq. 6 and three variants that keep the expert's likelihood from falling with the agent's.

    With Δ⁺ = log π(â|s) - log π_ref(â|s) and Δ⁻ the same for the agent's action:

        sigmoid             -log σ(β (Δ⁺ - Δ⁻))    eq. 6
        length_normalised   -log σ(β (Δ⁺ / |â| - Δ⁻ / |a|))    β is per token here, so that a long
                            action weighs no more than a short one (Meng et al., 2024)
        positive            -log σ(β (Δ⁺ - Δ⁻ - λ max(0, -Δ⁺)))    DPO-positive (Pal et al., 2024)
        ipo                 (Δ⁺ - Δ⁻ - 1 / 2β)²    a margin to reach (Azar et al., 2023)

    Args:
        variant: one of `PREFERENCE_VARIANTS`.
        chosen, rejected, reference_chosen, reference_rejected, beta, weights: see `step_dpo_loss`.
        lengths: float [n] each, tokens |â| and |a| of the actions; needed by length_normalised.
        penalty: λ ≥ 0 of `positive`.
        values: float [n] ≥ 0, what the loss of each pair is multiplied by; None: 1. The mean stays
            that over `weights`, and the health figures are of the pairs as they were drawn.

    Raises:
        ValueError: an unknown variant, no lengths where they are needed, a negative penalty or
            value, and what `step_dpo_loss` raises.
    """
    if variant not in PREFERENCE_VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: one of {', '.join(PREFERENCE_VARIANTS)}")
    if penalty < 0:
        raise ValueError(f"the penalty is {penalty}: it must not be negative")
    if variant == "length_normalised":
        if lengths is None:
            raise ValueError("length_normalised needs the lengths of the actions")
        chosen, reference_chosen = chosen / lengths[0], reference_chosen / lengths[0]
        rejected, reference_rejected = rejected / lengths[1], reference_rejected / lengths[1]
    if values is not None and (values.shape != chosen.shape or bool((values < 0).any())):
        raise ValueError("values must be as many as there are pairs, and not negative")
    out = step_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta, weights)
    if values is None and variant in ("sigmoid", "length_normalised"):
        return out
    share = torch.ones_like(chosen, dtype=torch.float32) if weights is None else weights.float()
    share = share / share.sum()
    gained = chosen.float() - reference_chosen.float()
    margins = gained - (rejected.float() - reference_rejected.float())
    if variant == "positive":
        loss = -F.logsigmoid(beta * (margins - penalty * F.relu(-gained)))
    elif variant == "ipo":
        loss = (margins - 1 / (2 * beta)) ** 2
    else:
        loss = -F.logsigmoid(beta * margins)
    if values is not None:
        loss = values.float() * loss
    return replace(out, loss=(share * loss).sum())


# Judges of single actions -------------------------------------------------------------------------


def smoothed_discriminator_loss(
    logit_agent_is_high: Tensor, agent_weights: Tensor, expert_weights: Tensor, smoothing: float
) -> DiscriminatorLoss:
    """`discriminator_loss` towards 1 - ε and ε instead of 1 and 0; ε = `smoothing`, in [0, ½).

    A judge that may not be sure keeps a slope where it is right, so its reward still ranks actions.
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"label smoothing is {smoothing}: it must be at least 0 and below 0.5")
    out = discriminator_loss(logit_agent_is_high, agent_weights, expert_weights)
    swapped = discriminator_loss(logit_agent_is_high, expert_weights, agent_weights)
    return replace(out, loss=(1 - smoothing) * out.loss + smoothing * swapped.loss)


def pairwise_judge_loss(
    agent_logit_agent_is_high: Tensor, expert_logit_agent_is_high: Tensor, weights: Tensor
) -> Tensor:
    """float32 []: a judge that compares two actions of the same state (Bradley and Terry, 1952).

        L = -Σ w log σ(logit(s, a) - logit(s, â))

    Only differences within a state matter, so what the state itself says (how hard it is, say)
    cannot be used to tell the sides apart. A pair costs log 2 at chance.

    Args:
        agent_logit_agent_is_high, expert_logit_agent_is_high: float [n], of the agent's and the
            expert's action in each pair's state.
        weights: float [n] ≥ 0, how often the agent drew the action.

    Raises:
        ValueError: shapes that differ; weights that are negative or all zero.
    """
    columns = (agent_logit_agent_is_high, expert_logit_agent_is_high, weights)
    shapes = {tuple(x.shape) for x in columns}
    if len(shapes) > 1 or weights.ndim != 1:
        raise ValueError(f"the judge's pairs are vectors of one length, got {shapes}")
    if bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ValueError("the weights of the pairs are negative or all zero")
    difference = agent_logit_agent_is_high.float() - expert_logit_agent_is_high.float()
    return -(weights * F.logsigmoid(difference)).sum()


def logit_reward(logit_agent_is_high: Tensor) -> Tensor:
    """The reward log(1 - D) - log D = -logit of AIRL (Fu et al., 2018), float32, of any sign.

    Unlike -log D it goes on falling where D is sure that an action is the agent's.
    """
    return -logit_agent_is_high.float()


# Advantages ---------------------------------------------------------------------------------------


def group_advantages(
    rewards: Tensor, weights: Tensor, groups: Tensor, floor: float = 0.1
) -> Tensor:
    """Each action's reward less the mean of its group, in units of the spread within all groups.

    The groups are the states: actions drawn in one state are compared with each other alone. Their
    differences are divided by one standard deviation, taken over the groups that have any spread
    (draws that are all alike say nothing about the scale), but never by less than `floor`, or noise
    would be blown up to the size of a signal. No mean is shifted across groups.

    Args:
        rewards: float [A].
        weights: float [A] ≥ 0, how often each action was drawn; 0 leaves it out.
        groups: int64 [A], the group of each action, from 0.
        floor: least standard deviation to divide by, > 0, in units of the reward.

    Returns:
        float32 [A]; 0 throughout a group whose rewards are all equal, or which has one draw.

    Raises:
        ValueError: shapes that differ, or a floor that is not positive.
    """
    if not floor > 0:
        raise ValueError(f"the floor under the spread is {floor}: it must be above 0")
    if len({tuple(x.shape) for x in (rewards, weights, groups)}) > 1 or rewards.ndim != 1:
        raise ValueError("rewards, weights and groups are vectors of one length")
    if not len(rewards):
        return rewards.float()
    rewards, weights = rewards.float(), weights.float()
    count = int(groups.max()) + 1
    drawn = torch.zeros(count).index_add(0, groups, weights)
    total = torch.zeros(count).index_add(0, groups, weights * rewards)
    centred = rewards - (total / drawn.clamp_min(1e-9))[groups]
    squares = torch.zeros(count).index_add(0, groups, weights * centred**2)
    informative = squares > 1e-12 * drawn.clamp_min(1.0)
    if not bool(informative.any()):
        return torch.zeros_like(rewards)
    spread = (squares[informative].sum() / drawn[informative].sum()).sqrt()
    return torch.where(informative[groups], centred / spread.clamp_min(floor), 0.0)


def turn_advantages(turn_rewards: Tensor, turn_values: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE over the turns of one episode: one advantage for each reply, whatever its length.

    Over tokens, γ λ < 1 is paid for each of them, and the credit of a final reward is gone within a
    reply or two. `generalised_advantages` is the same recursion; its rows are turns here.

    >>> success = torch.tensor([0.0, 0.0, 1.0])
    >>> [round(a, 4) for a in turn_advantages(success, torch.zeros(3), 1.0, 0.95).tolist()]
    [0.9025, 0.95, 1.0]
    """
    return generalised_advantages(turn_rewards, turn_values, gamma, lam)
