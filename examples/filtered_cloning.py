"""Filtered behaviour cloning: an example of a custom training method.

After SFT, in each iteration, the agent plays the expert's tasks, and the policy is fine-tuned on
its best episodes, the share `SHARE` with the highest rewards:

    L = -E[ Σ_k log π(w_k | w_<k) · 1(w_k belongs to an action) ]   over the best episodes

Run it from the folder of this file:

    python -m stepagent.training.run --config ../training/configs/implicit-laptop.yaml \\
      --method filtered_cloning:METHOD --output runs/cloning

`reflection.iterations` is the number of iterations; `sft` has the optimiser's options.
"""

from __future__ import annotations

from stepagent.training.methods import Method, rollouts, sft
from stepagent.training.runs.training_run import TrainingRun

SHARE = 0.5


def learn(run: TrainingRun) -> None:
    """SFT, then in each iteration: play, keep the best episodes, fine-tune on them."""
    sft.learn(run)
    for iteration in range(1, run.config.reflection.iterations + 1):
        with run.stage(f"iteration-{iteration}") as stage:
            if stage.done:  # by an earlier start of this run
                continue
            played = rollouts.play(run, stage, rollouts.tasks(run))
            episodes = [episode for row in played for episode in row]
            best = sorted(episodes, key=lambda episode: -episode.reward)
            samples, left_out = rollouts.encode(run, best[: max(1, round(SHARE * len(best)))])
            stage.figures = {
                "episodes": float(len(episodes)),
                "kept": float(len(samples)),
                "reward": sum(s.trajectory.reward for s in samples) / max(1, len(samples)),
            }
            stage.note(f"{len(samples)} episodes to learn from, {left_out} left out")
            if samples:
                sft.train(stage, run.policy, samples, run.config.sft)


METHOD = Method(
    learn,
    check=sft.check_explorer,  # there is SFT to play with
    stages=lambda config: config.reflection.iterations,  # each keeps a policy on disk
)
