"""Episodes that the agent itself plays, for methods that learn from them.

Each is played on the task and seed of an expert trajectory, so that the two can be compared, and
with `rollouts.unlabelled` on further tasks of the training split. They are written to `rollouts/`
as they end, failed ones too; a run that was killed plays only what is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from stepagent import envs
from stepagent.agents.core import Agent
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.core import TextEnv
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import Trajectory, Writer, read
from stepagent.eval.env_workers import Start
from stepagent.eval.rollout import run_from
from stepagent.files import is_file
from stepagent.training.data import Sample, draw
from stepagent.training.methods import find
from stepagent.training.runs import processes
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun

Item = TypeVar("Item")
GIVE_UP = 10
"""Failed episodes in a row after which a run stops."""


@dataclass(frozen=True)
class Task:
    """What an episode is played on."""

    task_id: str
    seed: int
    split: str
    expert: Sample | None = None
    """The expert's trajectory, where there is one."""


def tasks(run: TrainingRun) -> list[Task]:
    """Those of the expert's trajectories, in their order, then `rollouts.unlabelled` others of the
    training split, drawn by the run's seed."""
    labelled = [
        Task(s.trajectory.task_id, s.trajectory.seed, s.trajectory.split, s) for s in run.samples
    ]
    config = run.config
    if not config.rollouts.unlabelled:
        return labelled
    env = envs.make(config.env, **{**config.env_args, "split": "train"})
    try:
        others = sorted({*env.tasks} - {task.task_id for task in labelled})
    finally:
        env.close()
    chosen = np.random.default_rng([config.seed, 17]).permutation(len(others))
    return labelled + [
        Task(others[i], config.seed, "train") for i in chosen[: config.rollouts.unlabelled]
    ]


def play(
    run: TrainingRun,
    stage: Stage,
    tasks: Sequence[Task],
    mixed: Callable[[Agent], Agent] = lambda agent: agent,
) -> list[list[Trajectory]]:
    """`episodes[i]`: those played on the i-th task, `rollouts.samples` of them.

    The policy plays as it is now, or what `mixed` makes of it. Episodes that fail (an environment
    that broke) are left out, and counted in a note. Several processes share the tasks. Raises
    RunError where ten fail in a row.
    """
    per_task = find(run.config.method).samples(run.config)
    with stage.times.of("episodes"):
        _play_missing(run, stage, tasks, per_task, mixed)
    processes.wait()
    episodes = recorded(run, stage.name, tasks)
    missing = len(tasks) * per_task - sum(len(row) for row in episodes)
    if missing:
        stage.note(f"{missing} episodes failed and are left out")
    return episodes


def recorded(run: TrainingRun, stage_name: str, tasks: Sequence[Task]) -> list[list[Trajectory]]:
    """The episodes that a stage, this or an earlier one, has played, as `play` returns them."""
    episodes: list[list[Trajectory]] = [[] for _ in tasks]
    for k in range(find(run.config.method).samples(run.config)):
        for i, trajectory in enumerate(_in_order(_files(run, stage_name, k), tasks)):
            if trajectory is not None and not trajectory.error:
                episodes[i].append(trajectory)
    return episodes


def _files(run: TrainingRun, stage_name: str, k: int) -> list[Path]:
    """Where the k-th episode of every task is: one file, or one of each process that played."""
    folder, name = _folder(run), f"{stage_name}-{k}"
    files = [folder / f"{name}.jsonl", *sorted(folder.glob(f"{name}.*-of-*.jsonl"))]
    return [path for path in files if is_file(path)]


def _folder(run: TrainingRun) -> Path:
    return run.directory.path / "rollouts"


def _in_order(files: Sequence[Path], tasks: Sequence[Task]) -> list[Trajectory | None]:
    """The episode of each task; None where it is missing."""
    # The last line of a file may be cut.
    episodes = {(t.task_id, t.seed): t for path in files for t in read(path, bad=[])}
    return [episodes.get((task.task_id, task.seed)) for task in tasks]


def _play_missing(
    run: TrainingRun,
    stage: Stage,
    tasks: Sequence[Task],
    per_task: int,
    mixed: Callable[[Agent], Agent],
) -> None:
    """This process's share of the episodes that there are not yet, all of them together: the k-th
    of every task before the next ones, so that the agent's batch runs empty once and not for each
    k. Each goes to the file of its k."""
    existing = [_in_order(_files(run, stage.name, k), tasks) for k in range(per_task)]
    processes.wait()  # all have read what there was, and share it out alike
    missing = [
        (k, task)
        for k, row in enumerate(existing)
        for task, episode in zip(tasks, row, strict=True)
        if episode is None
    ]
    todo = missing[processes.rank() :: processes.count()]
    if not todo:
        return
    shared = f".{processes.rank()}-of-{processes.count()}" if processes.count() > 1 else ""
    player = mixed(make_player(run, stage.name))

    starts = [
        (k, task.split, Start(task.task_id, task.seed, salt=salt(run, f"{stage.name}-{k}")))
        for k, task in todo
    ]
    with (
        contextlib.ExitStack() as files,
        stage.progress(len(todo), "episodes") as move,
        contextlib.closing(play_starts(run, player, starts)) as played,
        contextlib.closing(steady(played, lambda item: item[1].error)) as steadily,
    ):
        writers = {
            k: files.enter_context(Writer(_folder(run) / f"{stage.name}-{k}{shared}.jsonl"))
            for k in sorted({k for k, _ in todo})
        }
        for done, (k, trajectory) in enumerate(steadily, 1):
            writers[k].write(trajectory)
            move(done, {})
    player.close()


def play_starts(
    run: TrainingRun, player: Agent, starts: Sequence[tuple[Item, str, Start]]
) -> Generator[tuple[Item, Trajectory], None, None]:
    """Plays (what it is for, split, start), each in an environment of its split; yields what an
    episode is for, and its trajectory, as episodes end."""
    for split in sorted({split for _, split, _ in starts}):
        of_split = [(item, start) for item, its, start in starts if its == split]
        played = run_from(
            run.config.env,
            player,
            [start for _, start in of_split],
            split=split,
            workers=run.config.rollouts.workers,
            env_args=run.config.env_args,
        )
        with contextlib.closing(played):
            for place, trajectory in played:
                yield of_split[place][0], trajectory


@contextlib.contextmanager
def environments(run: TrainingRun) -> Iterator[Callable[[str], TextEnv]]:
    """The run's environment by split, made when it is first asked for."""
    opened: dict[str, TextEnv] = {}

    def of(split: str) -> TextEnv:
        if split not in opened:
            opened[split] = envs.make(run.config.env, **{**run.config.env_args, "split": split})
        return opened[split]

    try:
        yield of
    finally:
        for env in opened.values():
            env.close()


def salt(run: TrainingRun, name: str) -> str:
    """Of episodes (`Start.salt`) that belong together; those of other names and runs differ."""
    return f"{run.config.seed}/{name}"


def make_player(run: TrainingRun, name: str) -> TransformersAgent:
    """The policy as it is now, as an agent; its draws depend on the episodes' seeds and salts."""
    config = run.config
    return run.player(
        name,
        record_tokens=True,
        temperature=find(config.method).temperature(config),
        top_p=config.rollouts.top_p,
        batch_size=config.rollouts.workers,
    )


def steady(episodes: Iterable[Item], error: Callable[[Item], str]) -> Generator[Item, None, None]:
    """The episodes; failed ones are held back until another succeeds, so that those of a broken
    environment are played again. Raises RunError where ten fail in a row."""
    failed: list[Item] = []
    for episode in episodes:
        failed.append(episode)
        if not error(episode):
            yield from failed
            failed.clear()
        if len(failed) >= GIVE_UP:
            raise RunError(
                f"gave up after {len(failed)} failed episodes in a row, the last one "
                f"with: {error(episode)}; fix it and run again to continue"
            )
    yield from failed


def encode(
    run: TrainingRun, trajectories: Sequence[Trajectory], style: PromptStyle | None = None
) -> tuple[list[Sample], int]:
    """The episodes as tokens, and how many had no step or were longer than the context.

    The agent's own replies are the tokens that it drew. (Without them, as in files of earlier
    versions, they are made from the text; one that was cut at the length limit has no end of turn
    to learn, see `ChatCodec.encode`.)
    """
    experts = {s.trajectory.agent for s in run.samples}
    samples = []
    for trajectory in trajectories:
        if trajectory.steps and not trajectory.error:
            messages = trajectory.messages(run.prompt, style or run.style)
            limit = None if trajectory.agent in experts else run.policy.config.max_new_tokens
            tokens = [step.tokens for step in trajectory.steps]
            encoded = run.policy.codec.encode(messages, cut_at=limit, tokens=tokens)
            if encoded.longest <= run.policy.context:
                samples.append(Sample(trajectory, encoded))
    return samples, len(trajectories) - len(samples)


def fitting(run: TrainingRun, stage: Stage) -> list[list[Sample]]:
    """Of the episodes played on each of an iteration's tasks, those that a step tree holds. Figures
    go to the stage."""
    config = run.config.reflection
    groups: list[list[Sample]] = []
    left_out = 0
    for trajectories in play(run, stage, draw(tasks(run), config.trajectories, stage.seed)):
        usable, _ = encode(run, trajectories)
        groups.append([s for s in usable if len(s.encoded.ids) <= config.max_tree_tokens])
        left_out += len(trajectories) - len(groups[-1])
    rewards = [sample.trajectory.reward for group in groups for sample in group]
    stage.figures |= {
        "episodes": float(len(rewards)),
        "episodes_left_out": float(left_out),
        "final_reward": sum(rewards) / max(1, len(rewards)),
    }
    return groups
