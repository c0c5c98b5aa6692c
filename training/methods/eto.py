"""ETO: exploration-based trajectory optimisation (Song et al., 2024).

In each iteration the agent explores the expert's tasks, at temperature 0 as published, and
trajectories are compared by their final reward:

    agent's lower than the expert's     the expert's is chosen; the rejected one is cut to the
                                        expert's number of steps and `extra_rounds` (5) more,
                                        except on ALFWorld (`preference.cut`)
    agent's higher                      the agent's is chosen; nothing is cut
    equal                               skipped

then DPO's loss over the pairs, with the policy entering the iteration as reference; β 0.1 and
learning rate 1e-6 in the first iteration, 0.5 and 5e-7 in the later ones, 3 iterations. Each
iteration is a training of its own, with a new AdamW (`preference.keep_optimiser`).

With `preference.trajectories` the first iteration compares the trajectories of files instead of
exploring (`methods.preference_files`); later ones explore.
"""

from __future__ import annotations

from dataclasses import replace

from stepagent.training.config import Config
from stepagent.training.data import Sample
from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.preference import (
    Pair,
    check_pairs,
    learn_pairs,
    of_iteration,
)
from stepagent.training.methods.preference_files import check_files, compare_files
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, then iterations of exploration and preference.

    Raises what `compare_files` and `check_pairs` do, before any training.
    """
    config, extra = run.config.preference, extra_rounds(run.config)
    from_files = compare_files(run, config.trajectories) if config.trajectories else None
    of_files = [compare(*pair, extra) for pair in from_files.pairs] if from_files else []
    explores = not from_files or config.iterations > 1
    check_pairs(run, [pair for pair in of_files if pair], run.samples if explores else [])
    sft.learn(run)
    for iteration in range(1, config.iterations + 1):
        with run.stage(f"iteration-{iteration}") as stage:
            if stage.done:
                continue
            if from_files and iteration == 1:
                compared, stage.figures = of_files, dict(from_files.figures)
            else:
                compared, stage.figures = explored(run, stage, extra)
            pairs = [pair for pair in compared if pair]
            experts = {id(expert) for expert in run.samples}
            better = sum(id(pair.chosen) not in experts for pair in pairs)
            stage.figures["agent_was_better"] = float(better)
            settings = of_iteration(config, iteration)
            stage.figures |= learn_pairs(stage, run.policy, pairs, settings)


def explored(
    run: TrainingRun, stage: Stage, extra: int | None
) -> tuple[list[Pair | None], dict[str, float]]:
    """The agent's own episodes compared with the expert's trajectories; figures."""
    compared: list[Pair | None] = []
    left_out = 0
    episodes = rollouts.play(run, stage, rollouts.tasks(run))
    for expert, trajectories in zip(run.samples, episodes, strict=True):
        usable, lost = rollouts.encode(run, trajectories)
        left_out += lost
        compared += [compare(expert, agent, extra) for agent in usable]
    ties = compared.count(None)
    return compared, {"ties": float(ties), "episodes_left_out": float(left_out)}


def extra_rounds(config: Config) -> int | None:
    """Steps beyond the expert's number at which rejected trajectories are cut; None: they are not.

    ALFWorld's failures differ from the expert throughout, and its agents run out of steps.
    """
    on_alfworld = config.env.rpartition("/")[2].startswith("ALFWorld")
    uncut = config.preference.cut == "never" or (config.preference.cut == "auto" and on_alfworld)
    return None if uncut else config.preference.extra_rounds


def compare(expert: Sample, agent: Sample, extra_rounds: int | None) -> Pair | None:
    """Which of the two is preferred, by reward; None where they are equal."""
    difference = agent.trajectory.reward - expert.trajectory.reward
    if abs(difference) < 1e-9:
        return None
    if difference > 0:
        return Pair(chosen=agent, rejected=expert)
    if extra_rounds is None:
        return Pair(chosen=expert, rejected=agent)
    return Pair(chosen=expert, rejected=cut(agent, len(expert.encoded.replies) + extra_rounds))


def cut(sample: Sample, steps: int) -> Sample:
    """The sample's first `steps` steps, up to the end of the last reply."""
    encoded = sample.encoded.part(0, min(steps, len(sample.encoded.replies)))
    shorter = replace(sample.trajectory, steps=sample.trajectory.steps[:steps])
    return Sample(shorter, encoded)


METHOD = Method(
    learn,
    check_files=check_files,
    stages=lambda config: config.preference.iterations,
    takes_files=True,
    explores_at=0.0,
    compares=True,
)
