"""States that the agent reaches by itself, and what the expert does in them (DAgger; Ross et al.,
2011). Practice in the expert's states alone never shows the agent what to do after its own mistake.

The agent plays the tasks of the expert's trajectories, and `rollouts.unlabelled` others, handing
over to the expert at each step with probability β, which falls by iteration
(`reflection.expert_acts`). Then every episode is played again, without the model, and the
environment's expert is asked in each state. What comes of it is a trajectory of the agent's with
the expert's replies beside it (`Encoded.experts`): a sample like any other, in whose states the
agent can practise.

Without asking anybody, the agent's own successes on tasks that have no trajectory of the expert's
can stand in for one (`reflection.states: successes`): what it did there counts as the expert's
action, and it practises in those states beside the expert's.

An episode's states end where the expert says that the state is lost, where it takes longer than
`reflection.expert_seconds`, where the episode cannot be replayed, or where a step tree would become
too long. Each is counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from stepagent import envs
from stepagent.agents.chat import Encoded
from stepagent.agents.core import Agent
from stepagent.agents.mixture import MixtureAgent
from stepagent.envs.core import TextEnv
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.config import Config, ReflectionConfig
from stepagent.training.data import Sample, draw
from stepagent.training.methods import rollouts
from stepagent.training.methods.practice import check_line
from stepagent.training.methods.successes import successes
from stepagent.training.runs.expert import in_words
from stepagent.training.runs.lines import resumed
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun

ENDS = ("lost", "slow", "changed")
"""Why the expert's labels of an episode end before the episode does."""


def practice_samples(run: TrainingRun, stage: Stage) -> list[Sample]:
    """The trajectories in whose states an iteration practises: the expert's, episodes of the
    agent's own, or both (`reflection.states`). Figures of the agent's go to the stage."""
    config = run.config.reflection
    allowed = config.labels or None
    samples = draw(run.samples, config.trajectories, stage.seed)
    if config.states == "expert":
        return within_budget(samples, allowed, stage.seed)
    if config.states == "successes":
        return within_budget(samples, allowed, stage.seed) + best_successes(run, stage)
    if not expert_anywhere(run):
        stage.note(
            f"the expert of {run.config.env} plans from the reset only: practising in its states"
        )
        return within_budget(samples, allowed, stage.seed)
    tasks = draw(rollouts.tasks(run), config.trajectories, stage.seed)
    if config.states == "own":
        return own_samples(run, stage, tasks, allowed)
    count = max(1, round(config.own_share * len(tasks)))
    places = np.random.default_rng([stage.seed, 3]).permutation(len(tasks)).tolist()
    without = [i for i, task in enumerate(tasks) if not task.expert]
    own = set((without + [i for i in places if tasks[i].expert])[: max(count, len(without))])
    labelled = own_samples(run, stage, [tasks[i] for i in sorted(own)], allowed)
    if allowed:  # tasks that the labels did not reach
        asked = {sample.trajectory.task_id for sample in labelled}
        own = {i for i in own if tasks[i].task_id in asked}
    rest = [task.expert for i, task in enumerate(tasks) if task.expert and i not in own]
    return rest + labelled


def best_successes(run: TrainingRun, stage: Stage) -> list[Sample]:
    """The policy's best success on each task that has no trajectory of the expert's, where it has
    one: of the highest score the shortest, of equal length the first. Figures go to the stage."""
    unlabelled = [task for task in rollouts.tasks(run) if not task.expert]
    rows = successes(run, stage, unlabelled)
    return [min(row, key=_worth) for row in rows if row]


def _worth(success: Sample) -> tuple[float, int]:
    """Smaller is better; scores that differ by rounding alone are equal."""
    return -round(success.trajectory.reward, 9), len(success.encoded.replies)


def within_budget(samples: Sequence[Sample], labels: int | None, seed: int) -> list[Sample]:
    """Samples with so many states in all, drawn by the seed, in their order; None: all of them.

    They are complete, but for the last one drawn, which ends where the budget does: mistakes come
    late in an episode, and the states of one cost hardly more than a single one.
    """
    drawn = _drawn(len(samples), seed)
    taken = dict(zip(drawn, first_states([samples[i] for i in drawn], labels), strict=False))
    return [taken[i] for i in sorted(taken)]


def first_states(samples: Sequence[Sample], labels: int | None) -> list[Sample]:
    """The first samples, with so many states in all; the last one ends where they do. None: all."""
    if labels is None:
        return list(samples)
    taken: list[Sample] = []
    for sample in samples:
        if labels <= 0:
            break
        size = min(labels, len(sample.encoded.replies))
        taken.append(replace(sample, encoded=sample.encoded.part(0, size)))
        labels -= size
    return taken


def _drawn(count: int, seed: int) -> list[int]:
    return np.random.default_rng([seed, 4]).permutation(count).tolist()


def expert_anywhere(run: TrainingRun) -> bool:
    """Whether the run's environment has an expert for any state."""
    env = envs.make(run.config.env, split="train", **run.config.env_args)
    try:
        return env.expert_anywhere
    finally:
        env.close()


def own_samples(
    run: TrainingRun, stage: Stage, tasks: Sequence[rollouts.Task], allowed: int | None
) -> list[Sample]:
    """Episodes of the policy as it is now on these tasks, with the expert's reply in their states,
    in `allowed` of them. Those of one process are shared by all. Figures go to the stage."""
    config = run.config.reflection
    share = expert_share(config, int(stage.name.rpartition("-")[2]))
    mixed = partial(MixtureAgent, share=share)
    tasks = in_drawn_order(tasks, stage.seed) if allowed else tasks
    usable, left_out = _play_until(run, stage, tasks, allowed, mixed)
    shortened = first_states(usable, allowed)
    labels = ask_expert(run, stage, stage.name, shortened)
    labelled = with_labels(run, shortened, labels)
    states = sum(len(sample.encoded.replies) for sample in labelled)
    steps = sum(len(sample.trajectory.steps) for sample in usable)
    same = sum(
        step.action == pair[1]
        for sample, label in zip(shortened, labels, strict=True)
        for step, pair in zip(sample.trajectory.steps, label.pairs, strict=False)
    )
    labelled_states = sum(len(label.pairs) for label in labels)
    unanswered = sum(label.end in ("lost", "slow") for label in labels)
    stage.figures |= {
        "expert_labels": float(labelled_states + unanswered),
        "own_episodes": float(len(usable)),
        "own_episodes_left_out": float(left_out),
        "own_reward": sum(s.trajectory.reward for s in usable) / max(1, len(usable)),
        "own_states": float(states),
        "own_states_left_out": float(steps - states),
        "own_on_road": same / max(1, labelled_states),
        "expert_acts": share,
    }
    stage.figures |= {
        f"own_episodes_{why}": float(sum(label.end == why for label in labels)) for why in ENDS
    }
    stage.note(
        f"{len(usable)} episodes of its own, mean reward {stage.figures['own_reward']:.3f}; "
        f"{states} states with the expert's reply, {steps - states} without; "
        f"{stage.figures['own_episodes_lost']:.0f} episodes were lost on the way"
    )
    return labelled


def in_drawn_order(tasks: Sequence[rollouts.Task], seed: int) -> list[rollouts.Task]:
    """Tasks in an order drawn by the seed; those with a trajectory of the expert's come last, in
    whose states it would say much of it twice."""
    drawn = _drawn(len(tasks), seed)
    return [tasks[i] for i in sorted(drawn, key=lambda i: tasks[i].expert is not None)]


def _play_until(
    run: TrainingRun,
    stage: Stage,
    tasks: Sequence[rollouts.Task],
    states: int | None,
    mixed: Callable[[Agent], Agent],
) -> tuple[list[Sample], int]:
    """Episodes on the first tasks, until they have so many states together; None: on all tasks.
    And how many were left out (`rollouts.encode`).

    First as many as are played at once, then as many more as these say. That depends on the
    episodes' lengths alone, so that a run which was killed, or several processes, play the same.
    """
    if states is None:
        played = rollouts.play(run, stage, tasks, mixed)
        return rollouts.encode(run, [t for row in played for t in row])
    usable: list[Sample] = []
    left_out = count = reached = 0
    more = min(states, run.config.rollouts.workers)
    while count < len(tasks) and reached < states:
        before, count = count, min(len(tasks), count + more)
        played = rollouts.play(run, stage, tasks[:count], mixed)
        samples, unusable = rollouts.encode(run, [t for row in played[before:] for t in row])
        usable += samples
        left_out += unusable
        reached += sum(len(sample.encoded.replies) for sample in samples)
        more = math.ceil((states - reached) / max(1.0, reached / count))
    return usable, left_out


def recorded_samples(
    run: TrainingRun, stage: Stage, name: str, seed: int, tasks: Sequence[rollouts.Task]
) -> list[Sample]:
    """What `own_samples` has returned in an earlier stage, of this name, seed and tasks."""
    allowed = run.config.reflection.labels or None
    tasks = in_drawn_order(tasks, seed) if allowed else tasks
    played = rollouts.recorded(run, name, tasks)
    usable, _ = rollouts.encode(run, [t for row in played for t in row])
    shortened = first_states(usable, allowed)
    return with_labels(run, shortened, ask_expert(run, stage, name, shortened))


def expert_share(config: ReflectionConfig, iteration: int) -> float:
    """β of an iteration, counted from 1.

    >>> [expert_share(ReflectionConfig(expert_acts=0.5, expert_decay=0.5), i) for i in (1, 2, 3)]
    [0.5, 0.25, 0.125]
    """
    return config.expert_acts * config.expert_decay ** (iteration - 1)


# The expert's replies ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """What the expert does in the first states of an episode."""

    pairs: list[tuple[str, str]]
    """(thought, action)."""
    end: str = ""
    """Why there are no more; "" if the episode ended."""


def ask_expert(
    run: TrainingRun, stage: Stage, name: str, samples: Sequence[Sample]
) -> list[Labels]:
    """The expert's actions in the states of these episodes, which are played again for it. Written
    to `rollouts/NAME-expert.jsonl` as they come; a killed run resumes there. Raises DamagedState
    for lines of other episodes."""
    path = run.directory.path / "rollouts" / f"{name}-expert.jsonl"
    with (
        rollouts.environments(run) as env_of,
        stage.progress(len(samples), "episodes labelled") as move,
    ):

        def ask(i: int) -> dict[str, Any]:
            trajectory, states = samples[i].trajectory, len(samples[i].encoded.replies)
            trajectory = replace(trajectory, steps=trajectory.steps[:states])
            env = env_of(trajectory.split)
            label = labels(env, trajectory, run.config.reflection.expert_seconds)
            return {"task_id": trajectory.task_id, "seed": trajectory.seed, **vars(label)}

        def on_line(number: int, line: dict[str, Any]) -> None:
            replies = samples[number].encoded.replies
            # Labels that end early do not say how many states there are.
            states = len(replies if line.get("end") else line.get("pairs", ()))
            check_line(path, samples[number], line, states)
            move(number + 1, {})

        lines = resumed(path, len(samples), ask, on_line)
    return [Labels([(t, a) for t, a in line["pairs"]], line["end"]) for line in lines]


def labels(env: TextEnv, trajectory: Trajectory, seconds: float) -> Labels:
    """The expert's actions in the states of a trajectory, up to the first that is lost, takes the
    expert longer than `seconds`, or is not the recorded one."""
    observation, _ = env.reset(seed=trajectory.seed, options={"task_id": trajectory.task_id})
    pairs: list[tuple[str, str]] = []
    for step in trajectory.steps:
        if observation != step.observation:
            return Labels(pairs, "changed")
        start = time.monotonic()
        pair = env.expert_action()
        if pair is None:
            return Labels(pairs, "lost")
        if time.monotonic() - start > seconds:
            return Labels(pairs, "slow")
        pairs.append(pair)
        observation, *_ = env.step(step.reply or step.action)
    return Labels(pairs)


def with_labels(
    run: TrainingRun, samples: Sequence[Sample], labels: Sequence[Labels]
) -> list[Sample]:
    """The samples with the expert's replies beside the agent's; none without such a reply."""
    pairs = zip(samples, labels, strict=True)
    labelled = [_with_label(run, sample, label) for sample, label in pairs]
    return [sample for sample in labelled if sample.encoded.replies]


def _with_label(run: TrainingRun, sample: Sample, label: Labels) -> Sample:
    """The sample with the expert's replies beside the agent's, for as many of its first states as
    a step tree holds."""
    policy, most = run.policy, run.config.reflection.max_tree_tokens
    replies, experts, hanging = [], [], 0
    said = _as_steps(run.config, sample.trajectory, label.pairs)
    for (start, end), step in zip(sample.encoded.replies, said, strict=False):
        expert = policy.codec.reply_ids(step.text(run.style))
        hanging += len(expert)
        longest = max(len(expert), policy.config.max_new_tokens)
        depth = len(sample.encoded.path(start))
        if depth + longest > policy.context or end + hanging + longest > most:
            break
        replies.append((start, end))
        experts.append(expert)
    size = replies[-1][1] if replies else 0
    joins = [join for join in sample.encoded.joins if join[0] < size]
    return replace(sample, encoded=Encoded(sample.encoded.ids[:size], replies, joins, experts))


def _as_steps(
    config: Config, trajectory: Trajectory, pairs: Sequence[tuple[str, str]]
) -> Sequence[Step]:
    """The expert's replies as steps in the states of the trajectory, in the run's wording."""
    steps = [
        Step(step.observation, *pair) for step, pair in zip(trajectory.steps, pairs, strict=False)
    ]
    return in_words(config, [replace(trajectory, steps=tuple(steps))])[0].steps
