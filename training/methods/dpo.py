"""DPO between whole trajectories (Rafailov et al., 2023): the expert's against the agent's own.

    L = -E[ log σ( β log π_θ(τ_expert) / π_ref(τ_expert) - β log π_θ(τ_agent) / π_ref(τ_agent) ) ]

After SFT the agent plays every task of the expert's trajectories once (or `rollouts.samples` times)
and the expert's trajectory is preferred to the agent's, whatever the latter scored. One iteration;
the reference is the SFT policy. The loss is TRL's (`methods.preference`).

Episodes are sampled at temperature 1 (`rollouts.temperature`): DPO's pairs are draws from the
reference π_ref itself, of which its implicit reward is a ratio. The paper only says that the
agent's trajectories are the negative samples.

With `preference.trajectories` the pairs are those of files (`methods.preference_files`): the better
trajectory of a task against each that scored less.
"""

from __future__ import annotations

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.preference import (
    Pair,
    against_expert,
    check_pairs,
    learn_pairs,
)
from stepagent.training.methods.preference_files import check_files, compare_files
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, episodes of the agent, then the preference for the expert. Or the preferences of files.

    Raises what `compare_files` and `check_pairs` do, before any training.
    """
    files = run.config.preference.trajectories
    compared = compare_files(run, files) if files else None
    of_files = [Pair(better, worse) for better, worse in compared.pairs] if compared else []
    check_pairs(run, of_files, [] if files else run.samples)
    sft.learn(run)
    with run.stage("dpo") as stage:
        if not stage.done:
            if compared:
                pairs, stage.figures = of_files, dict(compared.figures)
            else:
                episodes = rollouts.play(run, stage, rollouts.tasks(run))
                pairs, stage.figures = against_expert(run, episodes)
            stage.figures |= learn_pairs(stage, run.policy, pairs, run.config.preference)


METHOD = Method(learn, check_files=check_files, takes_files=True, compares=True)
