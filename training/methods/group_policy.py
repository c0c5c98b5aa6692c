"""Policy steps on groups of episodes of one task, shared by `grpo` and `gigpo`.

    L = mean over episodes of 1/|o| Σ_t [ -min(r_t A_t, clip(r_t, 1-ε, 1+ε') A_t) + κ KL_t ]
    r_t = π_θ / π_old,   KL_t = π_ref / π_θ - log (π_ref / π_θ) - 1      (Shao et al., 2024, eq. 3)

|o| are the tokens that the agent wrote in an episode; observations have no part in it. An episode's
advantages are given per turn, and every token of a reply has its turn's. π_old is the policy that
played, π_ref the one that entered the method. All replies of a group share one forward and backward
pass, in which what its episodes have in common is read once (`trees.forest`); an update takes
complete groups until it has `reflection.batch_size` episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepagent.envs.trajectory import Trajectory
from stepagent.training.config import Config, GroupConfig
from stepagent.training.methods import find, rollouts, sft
from stepagent.training.runs import processes
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_episode_trees
from stepagent.training.trees.forest import Forest, forests
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_tree, score_trees
from stepagent.training.trees.tree import StepTree

Advantages = Callable[[Sequence[Trajectory], GroupConfig], list[Tensor]]
"""The episodes of one task → float32 [turns] of each."""
GROUP = 8
"""Episodes per task, where `rollouts.samples` is not set."""
SMALLEST_SPREAD = 1e-4
"""Added to a standard deviation before it divides, as in TRL."""


@dataclass(frozen=True)
class EpisodeAdvantages:
    """What an episode's loss needs besides the policy. P tokens that the agent wrote."""

    old_log_probs: Tensor
    """float32 [P]: under the policy that played"""
    reference_log_probs: Tensor
    """float32 [P]: under the policy that entered the method"""
    advantages: Tensor
    """float32 [P]"""


@dataclass(frozen=True)
class GroupAdvantages:
    """Episodes of a task ready for the policy's step, P different tokens; all on the CPU."""

    forest: Forest
    old_log_probs: Tensor
    """float32 [P]"""
    reference_log_probs: Tensor
    """float32 [P]"""
    advantages: tuple[Tensor, ...]
    """float32 [P_i] of each episode"""

    @property
    def episodes(self) -> list[EpisodeAdvantages]:
        """The episodes by themselves."""
        rows = zip(self.forest.tokens, self.advantages, strict=True)
        old, reference = self.old_log_probs, self.reference_log_probs
        return [EpisodeAdvantages(old[at], reference[at], a) for at, a in rows]


def learn_in_groups(run: TrainingRun, advantages: Advantages) -> None:
    """SFT, then `reflection.iterations` times episodes and updates.

    Raises ValueError before any training where the model cannot run the step trees.
    """
    config = run.config
    check_episode_trees(config.method, run.policy, run.samples, config.reflection)
    sft.learn(run)
    run.entering()
    for iteration in range(1, config.reflection.iterations + 1):
        with run.stage(f"iteration-{iteration}", config.seed + 1000 * iteration) as stage:
            if stage.done:
                continue
            items = groups(run, stage, advantages)
            if not items:
                stage.note("no group has a spread to learn from; the policy stays as it is")
                continue
            shuffle = shuffled(
                items, lambda item: float(len(item.advantages)), config.reflection, stage.seed
            )
            schedule = packed(
                shuffle, lambda item: item.forest.tree.length, config.reflection.pack_tokens
            )
            stage.figures |= optimise(
                stage, run.policy.model, schedule, loss(config.group), config.reflection
            )


def check_groups(config: Config) -> None:
    """Raises ValueError for groups of one, and settings out of range."""
    if find(config.method).samples(config) < 2:
        raise ValueError(
            f"method {config.method} compares the episodes of a task with each other: "
            "rollouts.samples must be at least 2 (8 is usual)"
        )
    for name in ("clip", "clip_high"):
        if not getattr(config.group, name) > 0:
            raise ValueError(f"group.{name} must be above 0, it is {getattr(config.group, name)}")
    if not 0 < config.group.gamma <= 1:
        raise ValueError(f"group.gamma must be above 0 and at most 1, it is {config.group.gamma}")
    for name in ("kl", "step_weight"):
        if getattr(config.group, name) < 0:
            raise ValueError(
                f"group.{name} must not be below 0, it is {getattr(config.group, name)}"
            )


def groups(run: TrainingRun, stage: Stage, advantages: Advantages) -> list[GroupAdvantages]:
    """Episodes that the policy as it is now plays, those of groups without any advantage left out.
    Figures of them go to the stage."""
    merged: list[Forest] = []
    rows: list[tuple[Tensor, ...]] = []
    tokens = 0
    for trees, turns in play_groups(run, stage, advantages):
        tokens += sum(tree.length for tree in trees)
        for forest in forests(trees, run.config.reflection.max_tree_tokens):
            merged.append(forest)
            rows.append(tuple(of_tokens(trees[i], turns[i]) for i in forest.members))
    read = sum(forest.tree.length for forest in merged)
    stage.figures["tokens_shared"] = 1 - read / tokens if tokens else 0.0

    def log_probs(forest: Forest) -> Tensor:
        scores = score_tree(run.policy.model, forest.tree, run.policy.device)
        return scores.token_log_probs.cpu()

    run.policy.model.eval()
    old = processes.share(merged, log_probs)
    with run.policy.as_in(run.entering()):
        reference = processes.share(merged, log_probs)
    return [GroupAdvantages(*item) for item in zip(merged, old, reference, rows, strict=True)]


def play_groups(
    run: TrainingRun, stage: Stage, advantages: Advantages
) -> list[tuple[list[StepTree], list[Tensor]]]:
    """The episodes of each task with an advantage, and float32 [turns] of each episode."""
    played, informative = rollouts.fitting(run, stage), []
    for group in played:
        turns = advantages([sample.trajectory for sample in group], run.config.group)
        if any(bool(values.any()) for values in turns):
            informative.append(([StepTree.of(sample.encoded) for sample in group], turns))
    stage.figures["groups_with_spread"] = len(informative) / max(1, len(played))
    stage.note(
        f"{stage.figures['episodes']:.0f} episodes, mean reward "
        f"{stage.figures['final_reward']:.3f}; "
        f"{len(informative)} of {len(played)} groups have a spread to learn from"
    )
    return informative


def of_tokens(tree: StepTree, turns: Tensor) -> Tensor:
    """float32 [P]: each token's advantage is its turn's."""
    sizes = torch.tensor([end - start for start, end in tree.replies])
    return turns.float().repeat_interleave(sizes)


# Advantages -------------------------------------------------------------------------------------


def normalised(values: Tensor, scale: str) -> Tensor:
    """Values less their mean, over their standard deviation (`scale` "std") or not; 0 for a group
    of one or of equal values.

    >>> [round(a, 3) for a in normalised(torch.tensor([1.0, 0.0, 0.0, 1.0]), "std").tolist()]
    [0.866, -0.866, -0.866, 0.866]
    """
    centred = values.float() - values.float().mean()
    if len(values) < 2 or not bool((centred.abs() > 1e-6).any()):
        return torch.zeros(len(values))
    return centred / (values.float().std() + SMALLEST_SPREAD) if scale == "std" else centred


def episode_advantages(group: Sequence[Trajectory], config: GroupConfig) -> list[Tensor]:
    """One advantage for all turns of an episode: its score beside those of the group."""
    if not group:
        return []
    scores = normalised(torch.tensor([t.reward for t in group]), config.scale)
    return [score.repeat(len(t.steps)) for t, score in zip(group, scores, strict=True)]


# The loss ---------------------------------------------------------------------------------------


def group_loss(
    log_probs: Tensor, item: EpisodeAdvantages, config: GroupConfig
) -> dict[str, Tensor]:
    """The loss of one episode, the mean over its tokens, and its parts; log_probs: float [P]."""
    device = log_probs.device
    advantages = item.advantages.to(device)
    ratio = (log_probs - item.old_log_probs.to(device)).exp()
    bounded = ratio.clamp(1 - config.clip, 1 + config.clip_high)
    surrogate = -torch.minimum(ratio * advantages, bounded * advantages)
    behind = item.reference_log_probs.to(device) - log_probs
    kl = behind.exp() - behind - 1
    clipped = ((ratio - bounded).abs() > 0).float()
    return {
        "loss": (surrogate + config.kl * kl).mean(),
        "surrogate": surrogate.mean(),
        "kl": kl.mean(),
        "clip_fraction": clipped.mean(),
        "ratio": ratio.mean(),
    }


def loss(
    config: GroupConfig,
) -> Callable[[Any, Sequence[GroupAdvantages]], tuple[Tensor, dict[str, float]]]:
    """The loss summed over the episodes of some groups, with health figures (sums over them)."""

    def of_groups(model: Any, items: Sequence[GroupAdvantages]) -> tuple[Tensor, dict[str, float]]:
        trees = [item.forest.tree for item in items]
        scores = score_trees(model, pack(trees, next(model.parameters()).device))
        columns = scores.token_log_probs.split([len(item.old_log_probs) for item in items])
        parts = [
            group_loss(column[at.to(column.device)], episode, config)
            for column, item in zip(columns, items, strict=True)
            for at, episode in zip(item.forest.tokens, item.episodes, strict=True)
        ]
        sums = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        total = sums.pop("loss")
        return total, {name: float(value.detach()) for name, value in sums.items()}

    return of_groups
