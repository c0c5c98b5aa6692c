"""RFT: rejection sampling fine-tuning (Yuan et al., 2023).

After SFT the agent plays every task of the expert's trajectories `rollouts.samples` (k) times.
Episodes that scored at least `expert.min_reward` are kept, one for each sequence of actions and
none that repeats the expert's, and the untrained model is fine-tuned on the expert's trajectories
and those kept (eq. 3 with more data; settings of `sft`).
"""

from __future__ import annotations

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.methods.rollouts import distinct, is_success
from stepagent.training.runs.training_run import TrainingRun


def learn(run: TrainingRun) -> None:
    """SFT, episodes of the agent, then SFT from the untrained model on more trajectories."""
    config = run.config
    sft.learn(run)
    with run.stage("rft") as stage:
        if stage.done:
            return
        new, episodes, successes = [], 0, 0
        played = rollouts.play(run, stage, run.samples)
        for expert, trajectories in zip(run.samples, played, strict=True):
            usable, _ = rollouts.encode(run, trajectories)
            good = [s for s in usable if is_success(s.trajectory, config.expert.min_reward)]
            new += distinct(good, expert)
            episodes += len(trajectories)
            successes += len(good)
        stage.figures = {
            "episodes": float(episodes),
            "successes": float(successes),
            "kept": float(len(new)),
        }
        stage.note(f"{episodes} episodes, {successes} successes, {len(new)} of them new")
        run.restart()
        sft.train(stage, run.policy, [*run.samples, *new], config.sft)


METHOD = Method(learn, sft.check_explorer)
