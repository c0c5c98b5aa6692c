"""Benchmark of GRPO's update: a group as one forest against TRL's loss on the same rollouts.

The rollouts are real expert trajectories of ScienceWorld with the full prompt. All have the first
steps of the first one; from then on each goes its own way, beginning with a reply of its own. They
are all `--args.steps` long, or end up to `--args.spread` steps earlier, as an agent's do.
Both sides run forward and backward in the same process on the same model in float32, TRL's in
batches of `--args.batch` rows. `--args.checkpointing true` is TRL as it is shipped, which computes
the forward pass twice to save memory.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stepagent.envs.trajectory import Trajectory
from stepagent.eval.benches import Options, Row, measure, settings
from stepagent.training.benchmarks.step_trees import Setting, long_trajectories
from stepagent.training.config import GroupConfig
from stepagent.training.methods import group_policy
from stepagent.training.methods.group_policy import GroupAdvantages, of_tokens
from stepagent.training.trees.forest import forests
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree

GROUP = GroupConfig(kl=0.04)


def bench(options: Options) -> Iterator[Row]:
    """Seconds of an update; then the loss and the largest difference of a gradient, on the first
    steps of some of the rollouts."""
    sizes = settings(
        options, rollouts=8, steps=20, shared=10, spread=0, batch=2, checkpointing=False
    )
    setting = Setting(options, "float32")
    trajectories = long_trajectories(sizes["rollouts"], sizes["steps"])
    trees = [
        StepTree.of(setting.encode(trajectory))
        for trajectory in with_shared_steps(trajectories, sizes["shared"], sizes["spread"])
    ]
    group = with_advantages(setting.model, trees)
    trl = Trl(setting, sizes["batch"], sizes["checkpointing"])
    ours, baseline = measure(
        functools.partial(forest_backward, setting.model, group),
        functools.partial(trl.backward, trees, group),
        options.repeats,
    )
    tokens = sum(tree.length for tree in trees)
    counts = {len(tree.replies) for tree in trees}
    lengths = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else sizes["steps"]
    name = (
        f"GRPO, {len(trees)} rollouts of {lengths} steps, {sizes['shared']} shared: "
        f"{group.forest.tree.length} tokens for {tokens}"
    )
    yield Row.less_is_better(name, ours, baseline, "s forward and backward")
    steps = min(sizes["shared"] + 2, min(counts))
    beginnings = [
        replace(tree, ids=tree.ids[: tree.replies[steps - 1][1]], replies=tree.replies[:steps])
        for tree in trees[:3]
    ]
    yield from _equality(setting.model, trl, beginnings)


def with_shared_steps(
    trajectories: Sequence[Trajectory], shared: int, spread: int = 0
) -> list[Trajectory]:
    """Rollouts that take the first trajectory's first `shared` steps and differ from the reply
    after them on. Each ends a step earlier than the one before it, up to `spread` steps."""
    rollouts = []
    for number, trajectory in enumerate(trajectories):
        end = max(shared + 1, len(trajectory.steps) - number % (spread + 1))
        first, *rest = trajectory.steps[shared:end]
        first = replace(first, thought=f"{number} is my way. {first.thought}", reply="")
        steps = (*trajectories[0].steps[:shared], first, *rest)
        rollouts.append(replace(trajectories[0], steps=steps))
    return rollouts


def with_advantages(model: Any, trees: Sequence[StepTree]) -> GroupAdvantages:
    """The group with advantages and other policies' log-probabilities that are drawn: they do not
    change the work."""
    [forest] = forests(trees, 10**9)
    with torch.no_grad():
        now = score_trees(model, pack([forest.tree], model.device)).token_log_probs.cpu()
    draw = torch.Generator().manual_seed(0)
    old, reference = now + 0.3 * torch.randn(2, len(now), generator=draw)
    members = [trees[i] for i in forest.members]
    advantages = [of_tokens(t, torch.randn(len(t.replies), generator=draw)) for t in members]
    return GroupAdvantages(forest, old, reference, tuple(advantages))


def forest_backward(model: Any, group: GroupAdvantages) -> Tensor:
    """Our way; gradients stay on the model."""
    model.zero_grad()
    total, _ = group_policy.loss(GROUP)(model, [group])
    loss = total / len(group.advantages)
    loss.backward()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


class Trl:
    """TRL's GRPO loss, each rollout a prompt and a completion in which observations are masked."""

    def __init__(self, setting: Setting, batch: int, checkpointing: bool):
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        self.setting, self.batch, self.checkpointing = setting, batch, checkpointing
        setting.model.set_attn_implementation("sdpa")
        self._folder = tempfile.TemporaryDirectory()
        self.trainer = GRPOTrainer(
            model=setting.model,
            reward_funcs=_no_reward,
            args=GRPOConfig(
                output_dir=self._folder.name,
                use_cpu=setting.model.device.type == "cpu",
                report_to="none",
                bf16=False,
                beta=0.0,  # it would load a reference; the log-probabilities are there already
                loss_type="grpo",
                use_bias_correction_kl=False,  # the KL of Shao et al. (2024)
                epsilon=GROUP.clip,
                epsilon_high=GROUP.clip_high,
                num_generations=2,
                per_device_train_batch_size=2,
                gradient_checkpointing=checkpointing,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": "a"}]),
            processing_class=setting.tokenizer,
        )
        self.trainer.beta = GROUP.kl
        self.trainer.current_gradient_accumulation_steps = 1

    def backward(self, trees: Sequence[StepTree], group: GroupAdvantages) -> Tensor:
        """Its way; gradients stay on the model."""
        model = self.setting.model
        model.set_attn_implementation("sdpa")
        model.train()
        if self.checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        total = torch.zeros((), device=model.device)
        for start in range(0, len(trees), self.batch):
            inputs = self._inputs(trees, group, slice(start, start + self.batch))
            share = len(inputs["advantages"]) / len(trees)
            loss = self.trainer.compute_loss(model, inputs) * share
            loss.backward()
            total += loss.detach()
        if self.checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()
        if total.is_cuda:
            torch.cuda.synchronize()
        return total

    def _inputs(
        self, trees: Sequence[StepTree], group: GroupAdvantages, part: slice
    ) -> dict[str, Tensor]:
        """Some episodes of the group, padded on the right."""
        members, episodes = group.forest.members[part], group.episodes[part]
        rows = [trees[i] for i in members]
        prompt = rows[0].replies[0][0]
        longest = max(tree.trunk_length for tree in rows) - prompt
        shape = (len(rows), longest)
        names = ("advantages", "old_per_token_logps", "ref_per_token_logps")
        columns = {name: torch.zeros(shape) for name in (*names, "tool_mask")}
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for i, (tree, episode) in enumerate(zip(rows, episodes, strict=True)):
            size = tree.trunk_length - prompt
            ids[i, :size] = torch.tensor(tree.ids[prompt : tree.trunk_length])
            mask[i, :size] = 1
            at = torch.cat([torch.arange(s, e) for s, e in tree.replies]) - prompt
            drawn = (episode.advantages, episode.old_log_probs, episode.reference_log_probs)
            for name, values in zip(names, drawn, strict=True):
                columns[name][i, at] = values
            columns["tool_mask"][i, at] = 1.0
        prompts = torch.tensor([tree.ids[:prompt] for tree in rows])
        inputs = {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": ids,
            "completion_mask": mask,
            **columns,
        }
        return {name: value.to(self.setting.model.device) for name, value in inputs.items()}


def _no_reward(prompts: list[str], **columns: Any) -> list[float | None]:
    """A trainer wants one; advantages are given here."""
    return [None] * len(prompts)


def _equality(model: Any, trl: Trl, trees: Sequence[StepTree]) -> Iterator[Row]:
    group = with_advantages(model, trees)
    loss = float(forest_backward(model, group))
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    baseline = float(trl.backward(trees, group))
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    pairs = zip(gradients, expected, strict=True)
    worst = max(float((a - b).norm() / b.norm().clamp(1e-12)) for a, b in pairs)
    yield Row("its loss (baseline: TRL's)", loss, baseline, 1.0, "nats")
    name = "largest relative difference of a gradient (limit as baseline)"
    yield Row(name, worst, 1e-3, 1e-3 / max(worst, 1e-12), "")
