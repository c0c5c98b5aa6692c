"""On-policy distillation from a stronger local model (Agarwal et al., 2024).

    L = E_{episodes of π_θ} [ mean over its tokens of KL(π_θ(· | before) ‖ π_teacher(· | before)) ]

In each iteration the policy plays the tasks of the expert's trajectories; then, at every token that
it wrote, it moves towards what the teacher would have said there. The KL is the reverse one, which
seeks a mode of the teacher's, over the complete vocabulary; no gradient flows through the sampling.
All replies of an episode share one forward pass of the teacher and one of the policy.

The expert's trajectories give the tasks, and SFT, unless `sft.epochs` is 0. Settings of the updates
are those of `reflection`; a batch counts episodes.

Deviations: GKD mixes the policy's episodes with the data's; here all are the policy's own. The
teacher must have the policy's tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stepagent.agents.models import load_model, load_tokenizer, pick_dtype
from stepagent.training.config import Config
from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_episode_trees
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import action_logits
from stepagent.training.trees.tree import StepTree


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times episodes and updates towards the teacher.

    Raises RunError for a teacher with another tokenizer, ModelError where it cannot be loaded,
    ValueError where the policy's model cannot run the step trees; all before any training.
    """
    config = run.config
    check_episode_trees(config.method, run.policy, run.samples, config.reflection)
    teacher = load_teacher(run)
    sft.learn(run)
    for iteration in range(1, config.reflection.iterations + 1):
        with run.stage(f"iteration-{iteration}", config.seed + 1000 * iteration) as stage:
            if stage.done:
                continue
            trees = episodes(run, stage)
            if not trees:
                stage.note("no episode can be learned from; the policy stays as it is")
                continue
            shuffle = shuffled(trees, lambda tree: 1.0, config.reflection, stage.seed)
            schedule = packed(shuffle, lambda tree: tree.length, config.reflection.pack_tokens)
            stage.figures |= optimise(
                stage, run.policy.model, schedule, loss(teacher), config.reflection
            )


def check(config: Config) -> None:
    """Raises ValueError without a teacher."""
    if not config.distill.teacher:
        raise ValueError("method distill needs a teacher: set distill.teacher to a model")


def load_teacher(run: TrainingRun) -> Any:
    """The teacher, frozen, where the policy is."""
    name = run.config.distill.teacher
    if load_tokenizer(name).get_vocab() != run.policy.tokenizer.get_vocab():
        raise RunError(
            f"the teacher {name} has another tokenizer than the policy: their distributions cannot "
            "be compared token by token; take a teacher of the policy's family"
        )
    device = str(run.policy.device)
    teacher = load_model(name, pick_dtype(run.policy.config.dtype, device), device)
    return teacher.eval().requires_grad_(False)


def episodes(run: TrainingRun, stage: Stage) -> list[StepTree]:
    """What the policy as it is now plays, as trees. Figures go to the stage."""
    groups = rollouts.fitting(run, stage)
    return [StepTree.of(sample.encoded) for group in groups for sample in group]


def loss(teacher: Any) -> Callable[[Any, Sequence[StepTree]], tuple[Tensor, dict[str, float]]]:
    """The loss summed over some episodes, with health figures (sums over episodes)."""

    def of_episodes(model: Any, trees: Sequence[StepTree]) -> tuple[Tensor, dict[str, float]]:
        together = pack(trees, next(model.parameters()).device)
        with torch.no_grad():
            theirs = action_logits(teacher, together)
        ours = action_logits(model, together)
        divergence = reverse_kl(ours, theirs)
        agrees = (ours.detach().argmax(-1) == theirs.argmax(-1)).float()
        sizes = [sum(end - start for start, end in tree.replies) for tree in trees]
        total = torch.stack([part.mean() for part in divergence.split(sizes)]).sum()
        agreement = sum(float(part.mean()) for part in agrees.split(sizes))
        return total, {"teacher_agreement": agreement}

    return of_episodes


def reverse_kl(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """float32 [P]: KL(π_θ ‖ π_teacher) at each of P places, from float [P, vocabulary] logits.

    >>> round(float(reverse_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0986123, 0.0]]))), 4)
    0.1438
    """
    ours, theirs = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1)


METHOD = Method(learn, check, stages=lambda config: config.reflection.iterations)
