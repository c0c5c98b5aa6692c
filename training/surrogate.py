"""PPO's policy step over step trees, shared by `inverse` and `ppo`.

An item is a tree with, for each action token, what PPO needs: how often the action was drawn, its
log-probability under the policy that drew it, its advantage, and what the value head should have
said. All actions of a tree share one forward and backward pass. The losses are in
`training.losses`; the value head reads hidden states without sending gradient into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepagent.files import write_atomically
from stepagent.training import processes
from stepagent.training.config import PpoConfig, ReflectionConfig
from stepagent.training.loop import batches, optimise
from stepagent.training.losses import ppo_loss
from stepagent.training.rundir import RunDir
from stepagent.training.support import unwrap
from stepagent.training.tree import PackedTrees, StepTree, pack, score_trees


@dataclass(frozen=True)
class Graded:
    """A tree ready for PPO. P action tokens, in the order of `PackedTrees`; all on the CPU."""

    tree: StepTree
    actions: float
    """Actions of the agent in it, repeated draws counted"""
    weights: Tensor
    """float32 [P]: how often the token's action was drawn; 0 for actions of the expert alone"""
    old_log_probs: Tensor
    """float32 [P]: under the policy that drew them"""
    advantages: Tensor
    """float32 [P]"""
    returns: Tensor
    """float32 [P]: what the value head should say before each token"""
    value_weights: Tensor
    """float32 [P]: 0 where it is not asked"""


@dataclass(frozen=True)
class Reading:
    """What the policy that drew a tree's actions says of them, on the CPU."""

    log_probs: Tensor
    """float32 [P]"""
    values: Tensor
    """float32 [P]: the value head's guess before each token; 0 with a group baseline"""
    action: Tensor
    """int64 [P]: the action each token belongs to"""
    first: Tensor
    """int64 [A]: row of each action's first token"""


class ActorCritic(nn.Module):
    """The policy's model with a value head on its last hidden states.

    The head starts at 0. With `baseline` "group" it is neither used nor trained.
    """

    def __init__(self, model: Any, baseline: str):
        super().__init__()
        self.model, self.baseline = model, baseline
        base = unwrap(model)
        width = base.config.get_text_config().hidden_size
        self.value_head = nn.Linear(width, 1, device=base.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_head.requires_grad_(baseline == "value")

    def forward(self, packed: PackedTrees) -> tuple[Tensor, Tensor, Tensor]:
        """float32 [P] each: log-probabilities, entropies, values before each action token."""
        scores = score_trees(self.model, packed, hidden=True, entropy=True)
        assert scores.token_hidden is not None
        assert scores.token_entropy is not None
        values = self.value_head(scores.token_hidden.detach().float()).squeeze(-1)
        return scores.token_log_probs, scores.token_entropy, values

    @torch.no_grad()
    def read(self, tree: StepTree) -> Reading:
        """The tree under the model as it stands."""
        packed = pack([tree], self.value_head.weight.device)
        self.eval()
        log_probs, _, values = self(packed)
        columns = (log_probs, values, packed.action, packed.first)
        return Reading(*(column.cpu() for column in columns))

    def save_head(self, path: Path) -> None:
        weights = {n: p.detach().contiguous() for n, p in self.value_head.named_parameters()}
        write_atomically(path, lambda partial: save_file(weights, partial))

    def load_head(self, path: Path) -> None:
        """The head of an earlier iteration, where there is one."""
        if path.is_file():
            self.value_head.load_state_dict(load_file(path))


def whitened(items: Sequence[Graded]) -> list[Graded]:
    """Advantages with mean 0 and standard deviation 1 over all drawn tokens; all 0 where equal."""
    weights = torch.cat([item.weights for item in items])
    advantages = torch.cat([item.advantages for item in items])
    mean = (weights * advantages).sum() / weights.sum()
    deviation = ((weights * (advantages - mean) ** 2).sum() / weights.sum()).sqrt()
    scale = 0.0 if deviation < 1e-6 else 1 / float(deviation)
    return [replace(item, advantages=(item.advantages - mean) * scale) for item in items]


def loss(config: PpoConfig, kl: float) -> Callable[[Any, Graded], tuple[Tensor, dict[str, float]]]:
    """PPO's loss summed over the actions of one tree, with health figures (sums over actions)."""

    def of_tree(model: Any, item: Graded) -> tuple[Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        log_probs, entropies, values = model(pack([item.tree], device))
        critic = config.baseline == "value"
        out = ppo_loss(
            log_probs,
            item.old_log_probs.to(device),
            item.advantages.to(device),
            item.weights.to(device),
            entropies,
            clip=config.clip,
            kl=kl,
            entropy=config.entropy,
            values=values if critic else None,
            returns=item.returns.to(device) if critic else None,
            value_weights=item.value_weights.to(device) if critic else None,
            value_coefficient=config.value_coefficient,
        )
        per_token = item.actions / float(item.weights.sum())
        return out.loss, {
            "surrogate": float(out.surrogate),
            "kl": float(out.kl),
            "entropy": float(out.entropy),
            "value_error": float(out.value),
            "clip_fraction": float(out.clipped) * per_token,
            "ratio": float(out.ratio) * per_token,
        }

    return of_tree


def step_policy(
    actor: ActorCritic,
    items: Sequence[Graded],
    config: PpoConfig,
    optimiser: ReflectionConfig,
    rundir: RunDir,
    stage: str,
    seed: int,
    *,
    kl: float,
    checkpoint_seconds: float,
    on_update: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """PPO's updates of one iteration; the value head is kept among the stage's helpers.

    Actions of the expert that the agent did not draw have weight 0 and cost what they cost: they
    are the trunk.
    """
    found = optimise(
        actor,
        plan(items, optimiser, seed),
        loss(config, kl),
        lambda item: item.actions,
        optimiser,
        rundir,
        stage,
        checkpoint_seconds=checkpoint_seconds,
        on_update=on_update,
    )
    if processes.is_main():
        actor.save_head(rundir.helpers(stage) / "value.safetensors")
    processes.wait()
    return found


def plan(items: Sequence[Graded], config: ReflectionConfig, seed: int) -> list[list[Graded]]:
    """The iteration's updates: whole trees in random order, each epoch anew."""
    updates = []
    for epoch in range(config.epochs):
        order = np.random.default_rng([seed, epoch, 7]).permutation(len(items))
        updates += batches([items[i] for i in order], config.batch_size, lambda i: i.actions)
    return updates


def updates_of(items: Sequence[Graded], config: ReflectionConfig, seed: int) -> int:
    """How many updates `step_policy` makes, for progress bars."""
    return len(plan(items, config, seed))
