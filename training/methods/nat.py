"""NAT: negative-aware training (Wang et al., 2024).

After SFT the agent plays every task of the expert's trajectories. Its failures are not thrown away:
the untrained model is fine-tuned (eq. 3; settings of `sft`) on

    the expert's trajectories and the agent's successes, the prompt ending in `POSITIVE`
    the agent's failures, the prompt ending in `NEGATIVE`

and always prompted with `POSITIVE` afterwards, so that it can learn from failures what acting looks
like without imitating how they end. The suffix follows the system message. `stepagent eval` gives
it, too (`agents.trained`); whoever runs the policy elsewhere has to (`summary.json` has it under
`prompt`).

Episodes are sampled at temperature 1 (`rollouts.temperature`), several per task where
`rollouts.samples` says so: NAT needs failures that differ, and a greedy policy has one per task.

Deviations: of several equal sequences of actions on a task one is kept, as in `rft`.
"""

from __future__ import annotations

from dataclasses import replace

from stepagent.envs.react import PromptStyle
from stepagent.training.data import Sample
from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.successes import distinct, is_success
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun

POSITIVE = "Solve the task: act so that its goal is reached."
NEGATIVE = "Fail the task: act so that its goal is not reached."


def learn(run: TrainingRun) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on successes and failures."""
    positive = replace(run.config.prompt, suffix=POSITIVE)
    sft.learn(run)
    with sft.fine_tuning(run, "nat") as stage:
        samples = [] if stage.done else suffixed(run, stage, positive)
        run.style = positive  # the policy's from here on: on dev, and for the scores
        if not stage.done:
            run.restart()
            sft.fine_tune(run, stage, samples)


def suffixed(run: TrainingRun, stage: Stage, positive: PromptStyle) -> list[Sample]:
    """The expert's trajectories and the agent's episodes, with the suffix that says how each ends;
    figures go to the stage."""
    negative = replace(positive, suffix=NEGATIVE)
    min_reward = run.config.expert.min_reward
    good: list[Sample] = []
    bad: list[Sample] = []
    too_long = 0
    tasks = rollouts.tasks(run)
    for task, trajectories in zip(tasks, rollouts.play(run, stage, tasks), strict=True):
        wins = [t for t in trajectories if is_success(t, min_reward)]
        losses = [t for t in trajectories if not is_success(t, min_reward)]
        experts = [task.expert.trajectory] if task.expert else []
        shown, lost = rollouts.encode(run, experts, positive)
        good += [*shown, *distinct(rollouts.encode(run, wins, positive)[0], task.expert)]
        bad += distinct(rollouts.encode(run, losses, negative)[0], task.expert)
        too_long += lost
    stage.figures = {"good": float(len(good)), "bad": float(len(bad))}
    stage.note(f"{len(good)} good trajectories (the expert's included), {len(bad)} bad")
    if too_long:
        stage.note(f"{too_long} of the expert's are too long with the suffix, and left out")
    return [*good, *bad]


METHOD = Method(learn, sft.check_explorer)
