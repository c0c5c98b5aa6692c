"""RFT: rejection sampling fine-tuning (Yuan et al., 2023).

After SFT the agent plays every task of the expert's trajectories, and `rollouts.unlabelled` others,
`rollouts.samples` (k) times.
Episodes that scored at least `expert.min_reward` are kept, one for each sequence of actions and
none that repeats the expert's, and the untrained model is fine-tuned on the expert's trajectories
and those kept (eq. 3 with more data; settings of `sft`).

Episodes are sampled at temperature 1 (`rollouts.temperature`): RFT gains from successes that differ
from the expert's, and k greedy episodes would be one. With `rollouts.sound_only` successes that are
right by luck are dropped (`successes.is_sound`): episodes are longer than the derivations that RFT
was made for, and their final score does not tell a guess repeated until it was accepted.
"""

from __future__ import annotations

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.successes import successes
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on more trajectories."""
    sft.learn(run)
    with sft.fine_tuning(run, "rft") as stage:
        if stage.done:
            return
        new = [s for row in successes(run, stage, rollouts.tasks(run)) for s in row]
        run.restart()
        sft.fine_tune(run, stage, [*run.samples, *new])


METHOD = Method(learn, sft.check_explorer)
