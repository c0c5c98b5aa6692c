"""The discriminator of StepAgent-Inverse: D(s, a), how surely an action is the agent's (eq. 11).

    D(s, a) = σ(logit),   logit = w · h(s, a) + b

h(s, a) is the last hidden state at the end of the action in the backbone: the policy's own base
with a second adapter, or a separate model with its own tokens. All actions of a trajectory, the
expert's and the agent's, are read in one forward pass over its step tree.

**Sign.** Eq. 11 takes D to 1 on the agent and to 0 on the expert, as GAIL does. A high logit says
"the agent's", and its name says so everywhere: `logit_agent_is_high`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepagent.agents.chat import ChatCodec
from stepagent.agents.models import context_length, load_model, load_tokenizer, pick_dtype
from stepagent.envs.react import Message
from stepagent.files import is_file, write_atomically
from stepagent.training.config import DiscriminatorConfig, InverseConfig
from stepagent.training.methods.losses import (
    discriminator_loss,
    expert_is_high_reward,
    logit_reward,
    pairwise_judge_loss,
    smoothed_discriminator_loss,
)
from stepagent.training.methods.practice import Practice
from stepagent.training.policy import Policy, checkpoint_gradients
from stepagent.training.runs import processes
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.compat import enable_step_trees, unwrap
from stepagent.training.trees.packing import PackedTrees, pack
from stepagent.training.trees.scoring import action_states
from stepagent.training.trees.tree import Branch, StepTree

ADAPTER = "discriminator"
"""Name of the adapter beside the policy's own."""

NO_RANK = (
    "inverse.discriminator.rank is 0, but it shares the base of the policy, whose weights are "
    "frozen: take a rank of 4 to 32, or a separate backbone"
)


WEIGHTS = "discriminator.safetensors"
"""What D has learned, among a stage's artifacts."""


class Discriminator(nn.Module):
    """Backbone and head; `attach` makes one.

    The head is initialised as reward models' heads are (standard deviation 1/√(width + 1)): zeros
    would give the backbone no gradient until the head has moved, and after an action's last token a
    policy's states are nearly the same whatever the action, so the backbone is what has to learn.

    Parameters
    ----------
    backbone: a model that can run step trees.
    shared: the backbone is the policy's own model, whose adapter has to be switched.
    codec: writes conversations in the backbone's tokens; None: they are the policy's.
    max_norm: largest norm of the head; 0: unlimited.
    """

    def __init__(
        self,
        backbone: Any,
        shared: bool = False,
        codec: ChatCodec | None = None,
        max_norm: float = 0.0,
    ):
        super().__init__()
        self.max_norm = max_norm
        enable_step_trees(backbone)
        self.backbone, self.shared, self.codec = backbone, shared, codec
        base = unwrap(backbone)
        width = base.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, device=base.device, dtype=torch.float32)
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        # D says no words: an output layer of its own would get no gradient, which DDP refuses.
        if base.get_output_embeddings().weight is not base.get_input_embeddings().weight:
            base.get_output_embeddings().requires_grad_(False)

    @property
    def context(self) -> int:
        return context_length(unwrap(self.backbone))

    def forward(self, packed: PackedTrees) -> Tensor:
        """float32 [A], `logit_agent_is_high` of every action of the packed trees."""
        states = action_states(self.backbone, packed).float()
        weight = self.head.weight
        if self.max_norm:
            weight = weight * (self.max_norm / weight.norm().clamp_min(self.max_norm))
        return F.linear(states, weight, self.head.bias).squeeze(-1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """With D's adapter switched on, so that its weights alone are trained."""
        if self.shared:
            self.backbone.set_adapter(ADAPTER)
        try:
            yield
        finally:
            if self.shared:
                self.backbone.set_adapter("default")

    def score(self, item: Practice) -> Tensor:
        """`logits` of the item's actions."""
        return self.logits(item.tree)

    @torch.no_grad()
    def logits(self, tree: StepTree) -> Tensor:
        """float32 [A] on the CPU, `logit_agent_is_high` of a tree's actions."""
        with self.active():
            self.eval()
            return self(pack([tree], self.head.weight.device)).cpu()

    def save(self, path: Path) -> None:
        with self.active():
            trained = {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}
            save_file({n: p.contiguous() for n, p in trained.items()}, path)

    def load(self, path: Path) -> None:
        """What `save` wrote."""
        weights = load_file(path)
        with self.active(), torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])

    def _reply(self, text: str, ended: bool) -> tuple[int, ...]:
        """A reply of the policy in the backbone's tokens, with an end of turn if it came to one."""
        assert self.codec is not None
        ids = self.codec.reply_ids(text) if ended else self.codec.body_ids(text)
        return tuple(ids or self.codec.reply_ids(text))

    def translate(self, item: Practice, messages: Sequence[Message], codec: ChatCodec) -> Practice:
        """The practice in the backbone's tokens; `codec` decodes the policy's."""
        if self.codec is None:
            return item
        last = item.first_step + len(item.tree.replies)
        encoded = self.codec.encode(messages).part(item.first_step, last)
        branches = tuple(
            Branch(b.step, self._reply(codec.decode(b.ids), b.ids[-1] in codec.end_ids))
            for b in item.tree.branches
        )
        experts = tuple(self._reply(codec.decode(ids), True) for ids in item.tree.experts)
        tree = replace(StepTree.of(encoded, branches), experts=experts)
        return replace(item, tree=tree)


@contextmanager
def attach(
    policy: Policy, config: DiscriminatorConfig, entering: Path, seed: int
) -> Iterator[Discriminator]:
    """A new discriminator; where it shares the policy's base, its adapter is removed afterwards.

    Parameters
    ----------
    entering: the policy as it entered the method. Where all weights of the policy are trained, D's
        backbone is a frozen copy of that one, the same in every iteration.

    Raises ValueError for a rank of 0 on a shared base, or a backbone that cannot run step trees;
    ModelError where a separate backbone cannot be loaded.
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
            discriminator = Discriminator(policy.model, shared=True, max_norm=config.spectral_norm)
        else:
            discriminator = _separate(policy, config, entering, lora)
    try:
        yield discriminator
    finally:
        if shared:
            policy.model.delete_adapter(ADAPTER)


def _separate(
    policy: Policy, config: DiscriminatorConfig, entering: Path, lora: LoraConfig
) -> Discriminator:
    """A discriminator on a separate backbone."""
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
    if policy.config.gradient_checkpointing:
        checkpoint_gradients(model)
    return Discriminator(model, codec=codec, max_norm=config.spectral_norm)


def loss(
    config: DiscriminatorConfig,
) -> Callable[[Any, Sequence[Practice]], tuple[Tensor, dict[str, float]]]:
    """D's loss summed over the actions of some trees, with health figures (sums over pairs)."""

    def of_trees(model: Any, items: Sequence[Practice]) -> tuple[Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        trees = pack([item.tree for item in items], device)
        logit_agent_is_high = model(trees)
        agent = torch.tensor([weight for item in items for weight in item.agent], device=device)
        expert = torch.tensor([weight for item in items for weight in item.expert], device=device)
        smoothing = config.label_smoothing
        out = smoothed_discriminator_loss(logit_agent_is_high, agent, expert, smoothing)
        if config.loss == "binary":
            return out.loss, out.health
        pairs = logit_agent_is_high[trees.rejected], logit_agent_is_high[trees.chosen]
        right = float((agent[trees.rejected] * (pairs[0] > pairs[1])).sum())
        health = out.health | {"agent_accuracy": right, "expert_accuracy": right}
        return pairwise_judge_loss(*pairs, agent[trees.rejected]), health

    return of_trees


def train(
    stage: Stage,
    discriminator: Discriminator,
    practices: Sequence[Practice],
    config: DiscriminatorConfig,
) -> None:
    """Eq. 11 over all pairs of the iteration; what D learns is kept among the stage's artifacts."""
    path = stage.artifacts / WEIGHTS
    if is_file(path):
        discriminator.load(path)
        return

    def is_accurate(done: int, recent: dict[str, float]) -> bool:
        accuracy = min(recent["agent_accuracy"], recent["expert_accuracy"])
        return accuracy >= config.early_stop_accuracy

    shuffle = shuffled(practices, lambda item: item.pairs, config, stage.seed)
    schedule = packed(shuffle, lambda item: item.tree.length, config.pack_tokens)
    training = stage.part("discriminator", config.keep_optimiser)
    schedule = replace(schedule, until=is_accurate)
    with discriminator.active():
        optimise(training, discriminator, schedule, loss(config), config)
        discriminator.eval()
    if processes.is_main():
        write_atomically(path, discriminator.save)
        stage.directory.drop_checkpoint(training.name)
    processes.wait()


def centred(logits: Tensor, tree: StepTree) -> Tensor:
    """float32 [A]: logits less the mean of their state's actions. `pairwise` fixes no more than
    differences within a state, and 0 is where neither side is the likelier."""
    steps = torch.tensor(tree.action_steps)
    totals = torch.zeros(len(tree.replies)).index_add(0, steps, logits)
    return logits - (totals / steps.bincount())[steps]


def rewards_of(logits: Sequence[Tensor], kind: str) -> list[Tensor]:
    """What each action earns, float32 [A]: high where D takes it for the expert's."""
    reward = {"log_d": expert_is_high_reward, "logit": logit_reward}[kind]
    return [reward(logit) for logit in logits]


def health(
    practices: Sequence[Practice], logits: Sequence[Tensor], rewards: Sequence[Tensor]
) -> dict[str, float]:
    """How the trained discriminator judges the actions; means over them.

    logits[i] is `logit_agent_is_high` [A] of the i-th practice, rewards[i] what its actions earn.
    The figures: accuracy on both sides, entropy (log 2: undecided), the mean reward of each side's
    actions and the gap between.
    """
    logit, reward = torch.cat(list(logits)), torch.cat(list(rewards))
    agent = torch.tensor([weight for item in practices for weight in item.agent])
    expert = torch.tensor([weight for item in practices for weight in item.expert])
    out = discriminator_loss(logit, agent, expert)
    agent_reward = float((agent * reward).sum() / agent.sum())
    expert_reward = float((expert * reward).sum() / expert.sum())
    return {
        "agent_accuracy": float(out.agent_accuracy / agent.sum()),
        "expert_accuracy": float(out.expert_accuracy / expert.sum()),
        "discriminator_entropy": float(2 * out.entropy / (agent + expert).sum()),
        "agent_reward": agent_reward,
        "expert_reward": expert_reward,
        "reward_gap": expert_reward - agent_reward,
    }


def verdict(agent_accuracy: float, expert_accuracy: float, config: InverseConfig) -> str:
    """Why the run should stop, given the discriminator's accuracies; "" where it should not.

    A perfect one ranks the expert's action above the agent's and no more: where the expert's is
    among those that are ranked (`demonstrations`), there is nothing better.

    >>> verdict(0.8, 0.7, InverseConfig())
    ''
    """
    limits = config.discriminator
    accuracy = min(agent_accuracy, expert_accuracy)
    if not config.demonstrations and accuracy >= limits.max_accuracy:
        return (
            f"the discriminator is perfect ({agent_accuracy:.1%} and {expert_accuracy:.1%} right): "
            "its reward does not rank the agent's actions; train it less (epochs, learning_rate)"
        )
    if abs((agent_accuracy + expert_accuracy) / 2 - 0.5) <= limits.chance_margin:
        return (
            f"the discriminator is at chance ({agent_accuracy:.1%} and {expert_accuracy:.1%} "
            "right): it does not tell agent from expert, so its reward is noise; either there is "
            "nothing left to learn, or it is trained too little (epochs, learning_rate)"
        )
    return ""
