"""SPIN: self-play against the policy's own earlier iterates (Chen et al., 2024).

    L = -E[ log σ( λ log π_θ(τ_expert) / π_t(τ_expert) - λ log π_θ(τ_agent) / π_t(τ_agent) ) ]

In iteration t the agent π_t (at first: SFT) plays the expert's tasks, and learns to prefer the
expert's trajectories to its own: the logistic loss of DPO, with π_t as the opponent of every pair
and as the reference. From the second iteration on the pairs of the iteration before are learned
from again, as in the original; in the loss, their opponent too is the newest π_t.

Episodes are sampled at temperature 1 (`rollouts.temperature`): the opponent in SPIN's objective is
the distribution π_t, not its mode.

Deviations: SPIN's λ is `preference.beta` throughout (it has no `later_beta`).
"""

from __future__ import annotations

from dataclasses import replace

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.preference import (
    against_expert,
    check_pairs,
    learn_pairs,
    of_iteration,
)
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, then iterations of play and preference.

    Raises what `check_pairs` does, before any training.
    """
    config = run.config.preference
    check_pairs(run, experts=run.samples)
    sft.learn(run)
    for iteration in range(1, config.iterations + 1):
        with run.stage(f"iteration-{iteration}") as stage:
            if stage.done:
                continue
            tasks = rollouts.tasks(run)
            episodes = rollouts.play(run, stage, tasks)
            pairs, stage.figures = against_expert(run, episodes)
            if iteration > 1:
                before = rollouts.recorded(run, f"iteration-{iteration - 1}", tasks)
                pairs = against_expert(run, before)[0] + pairs
            settings = replace(of_iteration(config, iteration), beta=config.beta)
            stage.figures |= learn_pairs(stage, run.policy, pairs, settings)


METHOD = Method(learn, stages=lambda config: config.preference.iterations, compares=True)
