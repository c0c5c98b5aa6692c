"""What a policy has done right in its own episodes, for methods that learn from that.

A success can be right by luck (`is_sound`), and can hold actions that the environment refused, as
where the agent named something that is not there. With `rollouts.drop_refused` such a success is
played again without them. They changed nothing, so it mostly succeeds again, and what is left
shows the way; where it does not, it stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.envs.wikipedia.score import normalize
from stepagent.errors import SetupError
from stepagent.training.data import Sample
from stepagent.training.methods import rollouts
from stepagent.training.runs import processes
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun


def successes(run: TrainingRun, stage: Stage, tasks: Sequence[rollouts.Task]) -> list[list[Sample]]:
    """`samples[i]`: the episodes played on the i-th task that scored at least `expert.min_reward`,
    one for each sequence of actions and none that repeats the expert's; with `sound_only` and
    `drop_refused` of `rollouts` as these say. Figures go to the stage."""
    config, new = run.config, []
    counts = dict.fromkeys(("episodes", "successes", "lucky", "shortened"), 0.0)
    played = rollouts.play(run, stage, tasks)
    good = [[t for t in row if is_success(t, config.expert.min_reward)] for row in played]
    shorter = _without_refused(run, stage, good) if config.rollouts.drop_refused else {}
    made = {id(t) for t in shorter.values()}
    for task, trajectories, successful in zip(tasks, played, good, strict=True):
        usable, _ = rollouts.encode(run, [shorter.get(id(t), t) for t in successful])
        sound = [s for s in usable if is_sound(s.trajectory)]
        new.append(distinct(sound if config.rollouts.sound_only else usable, task.expert))
        counts["episodes"] += len(trajectories)
        counts["successes"] += len(usable)
        counts["lucky"] += len(usable) - len(sound)
        counts["shortened"] += sum(id(s.trajectory) in made for s in usable)
    figures = {**counts, "kept": float(sum(map(len, new)))}
    stage.figures |= figures
    stage.note(
        "{episodes:.0f} episodes, {successes:.0f} successes ({lucky:.0f} by luck), "
        "{kept:.0f} kept".format(**figures)
    )
    return new


def _without_refused(
    run: TrainingRun, stage: Stage, rows: Sequence[Sequence[Trajectory]]
) -> dict[int, Trajectory]:
    """id of a trajectory → its shorter form, where it has one. Several processes share the work."""
    clumsy = [t for row in rows for t in row if not all(step.valid for step in t.steps)]
    with stage.times.of("episodes"), rollouts.environments(run) as env_of:
        again = processes.share(clumsy, lambda t: without_refused(env_of(t.split), t))
    return {id(t): s for t, s in zip(clumsy, again, strict=True) if len(s.steps) < len(t.steps)}


def without_refused(env: TextEnv, trajectory: Trajectory) -> Trajectory:
    """The success as it is when only its valid actions are played, in an environment of its split.

    The trajectory itself where all or none of its actions are valid, and where the shorter episode
    fails: an action is refused now, it does not end with the last action, its score is lower,
    or the environment raises an error.
    """
    steps = [step for step in trajectory.steps if step.valid]
    if len(steps) in (0, len(trajectory.steps)):
        return trajectory
    try:
        again = _replayed(env, trajectory, steps)
    except SetupError:
        raise
    except Exception:  # what an environment raises in an episode ends that alone
        return trajectory
    return again if again and is_success(again, trajectory.reward) else trajectory


def _replayed(env: TextEnv, trajectory: Trajectory, steps: Sequence[Step]) -> Trajectory | None:
    """The episode of these steps; None where one is refused, or it does not end with the last."""
    start = {"task_id": trajectory.task_id}
    observation, info = env.reset(seed=trajectory.seed, options=start)
    taken: list[Step] = []
    terminated = truncated = False
    for step in steps:
        if terminated or truncated:
            return None
        before = observation
        observation, reward, terminated, truncated, info = env.step(step.reply or step.action)
        if not info["valid"]:
            return None
        taken.append(replace(step, observation=before, reward=float(reward), prompt_tokens=()))
    if not (terminated or truncated):
        return None
    return replace(
        trajectory,
        steps=tuple(taken),
        final_observation=observation,
        reward=float(info.get("score", 0.0)),
        success=bool(info.get("success", False)),
        truncated=truncated,
        metrics={name: float(value) for name, value in info.get("metrics", {}).items()},
    )


def is_success(trajectory: Trajectory, min_reward: float) -> bool:
    return trajectory.reward >= min_reward - 1e-9


def is_sound(trajectory: Trajectory) -> bool:
    """Whether an episode shows how its success comes about: every action was valid, and an answer
    (`finish[…]`) had been read in an observation after the first, which is the task; "yes" and "no"
    need one such observation, whatever it says.

    An episode that tries, is refused and tries again, or guesses what it has not read, succeeds by
    luck.
    """
    if not all(step.valid for step in trajectory.steps):
        return False
    answer = re.match(r"\W*finish\s*\[(.*)", trajectory.steps[-1].action, re.I | re.S)
    if not answer:
        return True
    sought = normalize(answer[1])
    read = [f" {normalize(step.observation)} " for step in trajectory.steps[1:]]
    return any(sought in ("yes", "no") or f" {sought} " in text for text in read)


def distinct(samples: Sequence[Sample], expert: Sample | None) -> list[Sample]:
    """The first sample of each sequence of actions, without those that act as the expert did."""
    seen, new = {_actions(expert)} if expert else set(), []
    for sample in samples:
        if _actions(sample) not in seen:
            seen.add(_actions(sample))
            new.append(sample)
    return new


def _actions(sample: Sample) -> tuple[str, ...]:
    return tuple(step.action for step in sample.trajectory.steps)
