"""Log-probabilities and hidden states of every action of step trees, in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepagent.training.trees.compat import check_path, unwrap
from stepagent.training.trees.packing import PackedTrees, pack
from stepagent.training.trees.tree import StepTree

Attention = Literal["auto", "blocks", "flex"]
Entropy = Literal["none", "measured", "learned"]


@dataclass(frozen=True)
class TreeScores:
    """What one forward over packed trees gives; see `PackedTrees` for the numbering of actions."""

    packed: PackedTrees
    token_log_probs: Tensor
    """float32 [P]: log π(token | all before it), of every action token, unreduced"""
    log_probs: Tensor
    """float32 [A]: log π(action | state), the sum over the action's tokens"""
    state_hidden: Tensor | None = None
    """[A, hidden]: last hidden state of the state each action answers"""
    action_hidden: Tensor | None = None
    """[A, hidden]: last hidden state at the end of each action"""
    token_hidden: Tensor | None = None
    """[P, hidden]: last hidden state before every action token (what it is predicted from)"""
    token_entropy: Tensor | None = None
    """float32 [P]: entropy of the distribution that every action token was drawn from, in nats"""

    @property
    def chosen(self) -> Tensor:
        """float32 [branches]: the expert's log-prob in the state of each branch."""
        return self.log_probs[self.packed.chosen]

    @property
    def rejected(self) -> Tensor:
        """float32 [branches]: each branch's own log-prob."""
        return self.log_probs[self.packed.rejected]


def score_trees(
    model: nn.Module,
    packed: PackedTrees,
    *,
    hidden: bool = False,
    entropy: Entropy = "none",
    attention: Attention = "auto",
) -> TreeScores:
    """Log-probabilities of all actions of the packed trees, in one forward of `model`.

    The language-model head runs only where an action token is predicted. Packing saves calls, not
    work: it pays where trees are short.

    Args:
        model: any decoder of transformers on the device of `packed`; also wrapped by peft or
            accelerate. It is switched to the step-tree attention and stays there.
        hidden: also return hidden states (after the final norm), for heads on top of the model.
        entropy: also return the entropy of each action token's distribution, "learned" with its
            graph, "measured" without.
        attention: `flex` FlexAttention, `blocks` SDPA over the mask's blocks, `auto` the first on
            CUDA and the second elsewhere.

    Raises:
        ValueError: a path longer than the model's context, or a model that cannot run step trees.
    """
    keep = torch.cat([packed.predict_at, packed.last_at]) if hidden else packed.predict_at
    logits, states = _forward(model, packed, keep, attention)
    if hidden:
        logits = logits[: len(packed.target)]
    logits = logits.float()
    tokens = -F.cross_entropy(logits, packed.target, reduction="none")
    zeros = tokens.new_zeros(packed.n_actions)
    scores = TreeScores(packed, tokens, zeros.index_add(0, packed.action, tokens))
    if entropy != "none":
        with torch.set_grad_enabled(entropy == "learned" and torch.is_grad_enabled()):
            log_probs = logits.log_softmax(dim=-1)
            entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
        scores = replace(scores, token_entropy=entropies)
    if not hidden:
        return scores
    return replace(
        scores,
        state_hidden=states[packed.first],
        action_hidden=states[len(packed.target) :],
        token_hidden=states[: len(packed.target)],
    )


@torch.no_grad()
def score_tree(model: nn.Module, tree: StepTree, device: torch.device) -> TreeScores:
    """What `score_trees` gives of a tree alone, without gradients: for policies that are compared
    with, and may be gone later."""
    return score_trees(model, pack([tree], device))


def action_states(model: nn.Module, packed: PackedTrees, attention: Attention = "auto") -> Tensor:
    """[A, hidden]: last hidden state at the end of each action, without its log-probabilities.

    Raises ValueError as `score_trees` does.
    """
    return _forward(model, packed, packed.last_at, attention)[1]


def action_logits(model: nn.Module, packed: PackedTrees, attention: Attention = "auto") -> Tensor:
    """float32 [P, vocabulary]: what predicts each action token.

    Raises ValueError as `score_trees` does.
    """
    return _forward(model, packed, packed.predict_at, attention)[0].float()


def _forward(
    model: nn.Module, packed: PackedTrees, keep: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Logits [n, vocabulary] and last hidden states [n, hidden] at the n positions `keep`."""
    base = unwrap(model)
    window = check_path(model, max(tree.longest_path for tree in packed.trees))
    inputs: dict[str, object] = {}
    if attention == "flex" or (attention == "auto" and packed.input_ids.is_cuda):
        inputs["attention_mask"] = packed.block_mask(window)
    else:
        # The pattern decides who sees what; a mask of four dimensions, here without memory of its
        # own, keeps the model from building another.
        size = packed.input_ids.shape[1]
        everyone = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.input_ids.device)
        inputs["attention_mask"] = everyone.expand(1, 1, size, size)
        inputs["step_tree"] = packed.pattern(window)
    states: list[Tensor] = []
    head = base.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    try:
        logits = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            logits_to_keep=keep,
            use_cache=False,
            **inputs,
        ).logits
    finally:
        hook.remove()
    # Not [0]: its gradient would be written into another tensor of zeros, as large as all logits.
    return logits.squeeze(0), states[0].squeeze(0)
