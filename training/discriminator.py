"""The discriminator of StepAgent-Inverse: D(s, a), how surely an action is the agent's (eq. 11).

    D(s, a) = σ(logit),   logit = w · h(s, a) + b

h(s, a) is the last hidden state at the end of the action, read off the backbone: the policy's own
base with an adapter of its own, or a model of its own with its own tokens. All actions of a
trajectory, the expert's and the agent's, are read in one forward over its step tree.

**Sign.** Eq. 11 takes D to 1 on the agent and to 0 on the expert, as GAIL does. A high logit says
"the agent's", and is named so everywhere: `logit_agent_is_high`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepagent.agents.chat import ChatCodec
from stepagent.agents.models import context_length, load_model, load_tokenizer, pick_dtype
from stepagent.envs.react import Message
from stepagent.training.config import DiscriminatorConfig
from stepagent.training.losses import discriminator_loss
from stepagent.training.policy import Policy
from stepagent.training.support import enable_step_trees, unwrap
from stepagent.training.tree import Branch, PackedTrees, StepTree, action_states, pack

ADAPTER = "discriminator"
"""Name of the adapter beside the policy's own."""

NO_RANK = (
    "inverse.discriminator.rank is 0, but it shares the base of the policy, whose weights are "
    "frozen: take a rank of 4 to 32, or a backbone of its own"
)


@dataclass(frozen=True)
class Practised:
    """What expert and agent did in the states of one expert trajectory. A actions, numbered as in
    `PackedTrees`: the expert's of every step, then the branches."""

    tree: StepTree
    agent: tuple[float, ...]
    """[A] how often the agent drew the action; the expert's own actions included"""
    expert: tuple[float, ...]
    """[A] weight of the action on the expert's side: as much a state as the agent has draws"""

    @property
    def draws(self) -> float:
        """Actions that the agent drew."""
        return sum(self.agent)

    @property
    def pairs(self) -> float:
        return (sum(self.agent) + sum(self.expert)) / 2


class Discriminator(nn.Module):
    """Backbone and head; see `attach` for how it comes about.

    The head is drawn as reward models' heads are (standard deviation 1/√(width + 1)): one of zeros
    would give the backbone no gradient until it has moved, and behind an action's last token a
    policy's states are nearly the same whatever the action, so the backbone is what has to learn.

    Parameters
    ----------
    backbone: a model that can run step trees.
    shared: the policy's own model, whose adapter has to be switched; else the backbone is D's own.
    codec: writes conversations in the backbone's tokens; None: they are the policy's.
    """

    def __init__(self, backbone: Any, shared: bool = False, codec: ChatCodec | None = None):
        super().__init__()
        enable_step_trees(backbone)
        self.backbone, self.shared, self.codec = backbone, shared, codec
        base = unwrap(backbone)
        width = base.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, device=base.device, dtype=torch.float32)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    @property
    def context(self) -> int:
        return context_length(unwrap(self.backbone))

    def forward(self, packed: PackedTrees) -> Tensor:
        """float32 [A], `logit_agent_is_high` of every action of the packed trees."""
        return self.head(action_states(self.backbone, packed).float()).squeeze(-1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """With D's adapter switched on, and its weights alone trainable."""
        if self.shared:
            self.backbone.set_adapter(ADAPTER)
        try:
            yield
        finally:
            if self.shared:
                self.backbone.set_adapter("default")

    @torch.no_grad()
    def score(self, item: Practised) -> Tensor:
        """float32 [A] on the CPU, `logit_agent_is_high` of the item's actions."""
        with self.active():
            self.eval()
            return self(pack([item.tree], self.head.weight.device)).cpu()

    def save(self, path: Path) -> None:
        with self.active():
            trained = {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}
            save_file({n: p.contiguous() for n, p in trained.items()}, path)

    def load(self, path: Path) -> None:
        weights = load_file(path)
        with self.active(), torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])

    def translate(
        self, item: Practised, messages: Sequence[Message], codec: ChatCodec
    ) -> Practised:
        """The item in the backbone's own tokens (`codec` has written it in the policy's).

        A reply that was cut at the policy's length limit gets an end of turn here.
        """
        if self.codec is None:
            return item
        whole, steps = self.codec.encode(messages), len(item.tree.replies)
        branches = tuple(
            Branch(b.step, tuple(self.codec.reply_ids(codec.decode(b.ids))))
            for b in item.tree.branches
        )
        replies = tuple(whole.replies[:steps])
        tree = StepTree(tuple(whole.ids[: replies[-1][1]]), replies, branches)
        return replace(item, tree=tree)


@contextmanager
def attach(
    policy: Policy, config: DiscriminatorConfig, entering: Path, seed: int
) -> Iterator[Discriminator]:
    """A new discriminator; where it shares the policy's base, its adapter is gone afterwards.

    Parameters
    ----------
    entering: the policy as it entered the method. Where all weights of the policy are trained, D's
        backbone is a frozen copy of that one, the same in every iteration.

    Raises ValueError for a rank of 0 on a shared base, or a backbone that cannot run step trees;
    ModelError where a backbone of its own cannot be loaded.
    """
    shared = config.backbone == "policy" and policy.has_adapter
    if shared and not config.rank:
        raise ValueError(NO_RANK)
    lora = LoraConfig(
        r=config.rank or 1,
        lora_alpha=config.rank or 1,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if shared:
            policy.model.add_adapter(ADAPTER, lora)
            made = Discriminator(policy.model, shared=True)
        else:
            made = _own(policy, config, entering, lora)
    try:
        yield made
    finally:
        if shared:
            policy.model.delete_adapter(ADAPTER)


def _own(
    policy: Policy, config: DiscriminatorConfig, entering: Path, lora: LoraConfig
) -> Discriminator:
    """A discriminator on a backbone of its own."""
    name = str(entering) if config.backbone == "policy" else config.backbone
    device = str(policy.device)
    dtype = pick_dtype(policy.config.dtype, device) if config.rank else torch.float32
    model = load_model(name, dtype, device)
    codec = None
    if config.backbone != "policy":
        codec = ChatCodec(load_tokenizer(config.backbone))
    if config.rank:
        model = get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return Discriminator(model, codec=codec)


def loss(model: Any, item: Practised) -> tuple[Tensor, dict[str, float]]:
    """Eq. 11 summed over the actions of one tree, with health figures (sums over pairs)."""
    device = next(model.parameters()).device
    logit_agent_is_high = model(pack([item.tree], device))
    out = discriminator_loss(
        logit_agent_is_high,
        torch.tensor(item.agent, device=device),
        torch.tensor(item.expert, device=device),
    )
    return out.loss, out.health


def until(config: DiscriminatorConfig, on_update: Any) -> Any:
    """A callback for `training.loop.optimise` that ends the training once D is good enough."""

    def check(done: int, figures: dict[str, float]) -> bool:
        on_update(done, figures)
        return min(figures["agent_accuracy"], figures["expert_accuracy"]) >= config.enough

    return check


def verdict(agent_accuracy: float, expert_accuracy: float, config: DiscriminatorConfig) -> str:
    """Why the run should stop at a discriminator of these accuracies; "" where it should not.

    >>> verdict(0.8, 0.7, DiscriminatorConfig())
    ''
    """
    if min(agent_accuracy, expert_accuracy) >= config.perfect:
        return (
            f"the discriminator is perfect ({agent_accuracy:.1%} and {expert_accuracy:.1%} right): "
            "its reward tells no agent's action from another; train it less (epochs, learning_rate)"
        )
    if abs((agent_accuracy + expert_accuracy) / 2 - 0.5) <= config.chance:
        return (
            f"the discriminator is at chance ({agent_accuracy:.1%} and {expert_accuracy:.1%} "
            "right): it does not tell agent from expert, so its reward says nothing; either there "
            "is nothing left to learn, or it is trained too little (epochs, learning_rate)"
        )
    return ""
