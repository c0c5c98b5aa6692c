"""PPO's policy step over step trees, shared by `inverse` and `ppo`.

An item is a tree with what PPO needs of each action token: how often the action was drawn, its
log-probability under the policy that drew it, its advantage, and the target of the value head. All
actions of a tree share one forward and backward pass. The losses are in `methods.losses`; the value
head reads hidden states without sending gradient into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepagent.files import is_file, write_atomically
from stepagent.training.config import Config, PpoConfig, ReflectionConfig
from stepagent.training.methods.losses import ppo_loss
from stepagent.training.runs import processes
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import Schedule, packed, shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.compat import unwrap
from stepagent.training.trees.packing import PackedTrees, pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree

HEAD = "value.safetensors"
"""The value head among a stage's artifacts."""
_WARM_HEAD = "value-warm.safetensors"
"""The same after its warm-up."""

TreeGroup = tuple["TreeAdvantages", ...]
"""Trees that share a forward pass."""


@dataclass(frozen=True)
class TreeAdvantages:
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
    """float32 [P]: target of the value head before each token"""
    value_weights: Tensor
    """float32 [P]: 0 where the value head has no target"""


@dataclass(frozen=True)
class PolicyOutputs:
    """What the policy that drew a tree's actions computes for them, on the CPU."""

    log_probs: Tensor
    """float32 [P]"""
    values: Tensor
    """float32 [P]: the value head's estimate before each token; 0 with a group baseline"""
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

    def forward(
        self, packed: PackedTrees, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """float32 [P] each: log-probabilities, entropies, values before each action token."""
        scores = score_trees(
            self.model, packed, hidden=True, entropy="learned" if entropy_gradient else "measured"
        )
        assert scores.token_hidden is not None
        assert scores.token_entropy is not None
        values = self.value_head(scores.token_hidden.detach().float()).squeeze(-1)
        return scores.token_log_probs, scores.token_entropy, values

    @torch.no_grad()
    def outputs(self, tree: StepTree) -> PolicyOutputs:
        """The tree under the model as it is now."""
        packed = pack([tree], self.value_head.weight.device)
        self.eval()
        log_probs, _, values = self(packed)
        columns = (log_probs, values, packed.action, packed.first)
        return PolicyOutputs(*(column.cpu() for column in columns))

    @property
    def is_new(self) -> bool:
        """Whether the value head is as it was initialised, and says 0 everywhere."""
        return not self.value_head.weight.any()

    @contextmanager
    def head_only(self) -> Iterator[None]:
        """With the policy frozen, so that the value head alone is trained."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.model.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def save_head(self, path: Path) -> None:
        weights = {n: p.detach().contiguous() for n, p in self.value_head.named_parameters()}
        write_atomically(path, lambda partial: save_file(weights, partial))

    def load_head(self, path: Path) -> None:
        """The head of an earlier iteration, where there is one."""
        if is_file(path):
            self.value_head.load_state_dict(load_file(path))


def whitened(items: Sequence[TreeAdvantages]) -> list[TreeAdvantages]:
    """Advantages with mean 0 and standard deviation 1 over all drawn tokens; all 0 where equal."""
    weights = torch.cat([item.weights for item in items])
    advantages = torch.cat([item.advantages for item in items])
    mean = (weights * advantages).sum() / weights.sum()
    deviation = ((weights * (advantages - mean) ** 2).sum() / weights.sum()).sqrt()
    scale = 0.0 if deviation < 1e-6 else 1 / float(deviation)
    return [replace(item, advantages=(item.advantages - mean) * scale) for item in items]


def normalised(items: Sequence[TreeAdvantages], config: PpoConfig) -> list[TreeAdvantages]:
    """Advantages as `ppo.normalise` says; `scale` divides by the root mean square over all drawn
    tokens, or by `ppo.spread_floor` where that is larger."""
    if config.normalise == "whiten":
        return whitened(items)
    if config.normalise == "none":
        return list(items)
    squares = sum(float((item.weights * item.advantages**2).sum()) for item in items)
    tokens = sum(float(item.weights.sum()) for item in items)
    spread = max(math.sqrt(squares / tokens), config.spread_floor)
    return [replace(item, advantages=item.advantages / spread) for item in items]


def loss(
    config: PpoConfig, kl: float
) -> Callable[[Any, TreeGroup], tuple[Tensor, dict[str, float]]]:
    """PPO's loss summed over the actions of some trees, with health figures (sums over actions)."""

    def of_trees(model: Any, items: TreeGroup) -> tuple[Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        log_probs, entropies, values = model(
            pack([item.tree for item in items], device), entropy_gradient=config.entropy > 0
        )
        has_critic = config.baseline == "value"
        weights = _column(items, "weights", device)
        out = ppo_loss(
            log_probs,
            _column(items, "old_log_probs", device),
            _column(items, "advantages", device),
            weights,
            entropies,
            clip=config.clip,
            kl=kl,
            entropy=config.entropy,
            values=values if has_critic else None,
            returns=_column(items, "returns", device) if has_critic else None,
            value_weights=_column(items, "value_weights", device) if has_critic else None,
            value_coefficient=config.value_coefficient,
        )
        per_token = sum(item.actions for item in items) / float(weights.sum())
        return out.loss, {
            "surrogate": float(out.surrogate),
            "kl": float(out.kl),
            "entropy": float(out.entropy),
            "value_error": float(out.value),
            "clip_fraction": float(out.clipped) * per_token,
            "ratio": float(out.ratio) * per_token,
        }

    return of_trees


def _value_loss(model: Any, items: TreeGroup) -> tuple[Tensor, dict[str, float]]:
    """The value head's squared error, summed over the actions of some trees."""
    device = next(model.parameters()).device
    _, _, values = model(pack([item.tree for item in items], device))
    errors = (values - _column(items, "returns", device)) ** 2
    error = (_column(items, "value_weights", device) * errors).sum()
    return error, {"value_error": float(error.detach())}


def _column(items: TreeGroup, name: str, device: torch.device) -> Tensor:
    """A field of all items, in the order of `PackedTrees`."""
    return torch.cat([getattr(item, name) for item in items]).to(device)


def _schedule(
    items: Sequence[TreeAdvantages], config: ReflectionConfig, seed: int, salt: int
) -> Schedule[TreeGroup]:
    schedule = shuffled(items, lambda item: item.actions, config, seed, salt=[salt])
    return packed(schedule, lambda item: item.tree.length, config.pack_tokens)


def warm_up(
    stage: Stage, actor: ActorCritic, items: Sequence[TreeAdvantages], config: Config
) -> None:
    """`ppo.critic_warmup` updates of the value head alone, towards the items' returns."""
    path, updates = stage.artifacts / _WARM_HEAD, config.ppo.critic_warmup
    if not is_file(path):
        settings = replace(
            config.reflection,
            learning_rate=config.ppo.critic_learning_rate,
            schedule="constant",
            warmup_ratio=0.0,
            updates=updates,
        )
        schedule = _schedule(items, settings, stage.seed, salt=8)
        training = stage.part("critic")
        with actor.head_only():
            optimise(training, actor, schedule, _value_loss, settings)
        if processes.is_main():
            actor.save_head(path)
            stage.directory.drop_checkpoint(training.name)
        processes.wait()
    actor.load_head(path)


def step_policy(
    stage: Stage, actor: ActorCritic, items: Sequence[TreeAdvantages], config: Config, kl: float
) -> dict[str, float]:
    """PPO's updates of one iteration (`reflection` has their number and rate); the value head is
    kept among the stage's artifacts.

    `kl` is the weight of the KL to the policy that drew the actions. Actions of the expert that the
    agent did not draw have weight 0, and add no cost: they are the trunk.
    """
    schedule = _schedule(items, config.reflection, stage.seed, salt=7)
    schedule = replace(schedule, rates={"value_head": config.ppo.critic_learning_rate})
    figures = optimise(stage, actor, schedule, loss(config.ppo, kl), config.reflection)
    if processes.is_main():
        actor.save_head(stage.artifacts / HEAD)
    processes.wait()
    return figures
