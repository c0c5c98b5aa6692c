"""DAgger: dataset aggregation (Ross et al., 2011), on the tasks of the expert's trajectories and
`rollouts.unlabelled` others.

    D_0 = the expert's trajectories
    D_i = D_{i-1} ∪ { (s, π*(s)) : s visited by β_i π* + (1 - β_i) π_i }
    L   = -E_{D_i}[ log π_θ(π*(s) | s) ]

In each iteration the policy plays the tasks, handing over to the expert with probability β
(`methods.own_states`); in every state that was visited the expert says what it would do, and the
policy is fine-tuned on all that was gathered so far. All of a trajectory's states share one forward
and backward pass. Settings of the updates are those of `reflection`; a batch counts labelled
states, and log π(a|s) is the sum over the action's tokens.

Deviations: the policy is trained on from the one of the iteration before, where DAgger trains a new
one on D_i (`reflection.restart` does that); the last policy is taken, not the best of all on
validation tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stepagent.training.config import Config
from stepagent.training.data import Sample, draw
from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.own_states import expert_anywhere, own_samples, recorded_samples
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_step_trees
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree


def learn(run: TrainingRun) -> None:
    """SFT, then `reflection.iterations` times episodes, the expert's labels and fine-tuning.

    Raises RunError where the environment's expert cannot be asked, ValueError before any training
    where the model cannot run the step trees.
    """
    config = run.config.reflection
    check_step_trees(run.config.method, run.policy, run.samples, config)
    if not expert_anywhere(run):
        raise RunError(
            f"method dagger asks the expert in the agent's states, but that of {run.config.env} "
            "plans from the reset only (see expert_plan in docs/pages/extending/environment.md)"
        )
    sft.learn(run)
    for iteration in range(1, config.iterations + 1):
        with run.stage(f"iteration-{iteration}", seed(run.config, iteration)) as stage:
            if stage.done:
                continue
            gathered, every = list(run.samples), rollouts.tasks(run)
            for earlier in range(1, iteration):
                before = seed(run.config, earlier)
                tasks = draw(every, config.trajectories, before)
                name = f"iteration-{earlier}"
                gathered += recorded_samples(run, stage, name, before, tasks)
            tasks = draw(every, config.trajectories, stage.seed)
            gathered += own_samples(run, stage, tasks, config.labels or None)
            trees = [tree_of(sample) for sample in gathered]
            stage.figures["aggregated_states"] = float(sum(len(t.replies) for t in trees))
            shuffle = shuffled(trees, lambda tree: float(len(tree.replies)), config, stage.seed)
            schedule = packed(shuffle, lambda tree: tree.length, config.pack_tokens)
            if config.restart:
                run.restart()
            stage.figures |= optimise(stage, run.policy.model, schedule, loss, config)


def seed(config: Config, iteration: int) -> int:
    """Of an iteration, counted from 1."""
    return config.seed + 1000 * iteration


def tree_of(sample: Sample) -> StepTree:
    """The expert's actions in the states of a trajectory, its own or the agent's."""
    return StepTree.of(sample.encoded)


def loss(model: Any, trees: Sequence[StepTree]) -> tuple[torch.Tensor, dict[str, float]]:
    """-log π of the expert's actions, summed over the states of some trees, with health figures
    (sums over states)."""
    scores = score_trees(model, pack(trees, next(model.parameters()).device))
    tokens = torch.bincount(scores.packed.action, minlength=scores.packed.n_actions)
    per_token = (scores.log_probs.detach() / tokens).sum()
    return -scores.log_probs.sum(), {"expert_log_prob": float(per_token)}


METHOD = Method(learn, stages=lambda config: config.reflection.iterations)
