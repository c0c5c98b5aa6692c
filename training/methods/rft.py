"""RFT: rejection sampling fine-tuning (Yuan et al., 2023).

After SFT the agent plays every task of the expert's trajectories, and `rollouts.unlabelled` others,
`rollouts.samples` (k) times.
Episodes that scored at least `expert.min_reward` are kept, one for each sequence of actions and
none that repeats the expert's, and the untrained model is fine-tuned on the expert's trajectories
and those kept (eq. 3 with more data; settings of `sft`).

Episodes are sampled at temperature 1 (`rollouts.temperature`): RFT gains from successes that differ
from the expert's, and k greedy episodes would be one. With `rollouts.sound_only` successes that are
right by luck are dropped (`rollouts.is_sound`): episodes are longer than the derivations that RFT
was made for, and their final score does not tell a guess repeated until it was accepted.
"""

from __future__ import annotations

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.rollouts import distinct, is_sound, is_success
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on more trajectories."""
    config = run.config
    sft.learn(run)
    with run.stage("rft") as stage:
        if stage.done:
            return
        new, episodes, successes, lucky = [], 0, 0, 0
        tasks = rollouts.tasks(run)
        for task, trajectories in zip(tasks, rollouts.play(run, stage, tasks), strict=True):
            usable, _ = rollouts.encode(run, trajectories)
            good = [s for s in usable if is_success(s.trajectory, config.expert.min_reward)]
            sound = [s for s in good if is_sound(s.trajectory)]
            new += distinct(sound if config.rollouts.sound_only else good, task.expert)
            episodes += len(trajectories)
            successes += len(good)
            lucky += len(good) - len(sound)
        stage.figures = {
            "episodes": float(episodes),
            "successes": float(successes),
            "lucky": float(lucky),
            "kept": float(len(new)),
        }
        stage.note(f"{episodes} episodes, {successes} successes ({lucky} by luck), {len(new)} kept")
        run.restart()
        tidy = sft.fine_tune(run, stage, [*run.samples, *new])
    tidy()


METHOD = Method(learn, sft.check_explorer)
