"""Episodes that the agent itself plays on the expert's tasks, for methods that learn from them.

Each is played on the task and seed of one expert trajectory, so that the two can be compared. They
are written to `rollouts/` as they end, failed ones too; a run that was killed plays only what is
missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import Trajectory, Writer, read
from stepagent.eval.rollout import run_episodes
from stepagent.training.data import Sample
from stepagent.training.runs import processes
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun

GIVE_UP = 10
"""Failed episodes in a row after which a run stops."""


def play(run: TrainingRun, stage: Stage, samples: Sequence[Sample]) -> list[list[Trajectory]]:
    """`episodes[i]`: those played on the task of the i-th sample, `rollouts.samples` of them.

    The policy plays as it is now. Episodes that fail (an environment that broke) are left out, and
    counted in a note. Of several processes the main one plays. Raises RunError where ten fail in a
    row.
    """
    per_task = run.config.rollouts.samples
    with processes.main_first():
        if run.directory.main:
            for k in range(per_task):
                _play_once(run, stage, samples, _path(run, stage.name, k))
        episodes = recorded(run, stage.name, samples)
    missing = len(samples) * per_task - sum(len(row) for row in episodes)
    if missing:
        stage.note(f"{missing} episodes failed and are left out")
    return episodes


def recorded(
    run: TrainingRun, stage_name: str, samples: Sequence[Sample]
) -> list[list[Trajectory]]:
    """The episodes that a stage, this or an earlier one, has played, as `play` returns them."""
    episodes: list[list[Trajectory]] = [[] for _ in samples]
    for k in range(run.config.rollouts.samples):
        for i, trajectory in enumerate(_in_order(_path(run, stage_name, k), samples)):
            if trajectory is not None and not trajectory.error:
                episodes[i].append(trajectory)
    return episodes


def _path(run: TrainingRun, stage_name: str, k: int) -> Path:
    return run.directory.path / "rollouts" / f"{stage_name}-{k}.jsonl"


def _in_order(path: Path, samples: Sequence[Sample]) -> list[Trajectory | None]:
    """The episode of each sample; None where it is missing."""
    if not path.is_file():
        return [None] * len(samples)
    episodes = {(t.task_id, t.seed): t for t in read(path, bad=[])}  # the last line may be cut
    return [episodes.get((s.trajectory.task_id, s.trajectory.seed)) for s in samples]


def _play_once(run: TrainingRun, stage: Stage, samples: Sequence[Sample], path: Path) -> None:
    """One episode for each sample that has none in `path` yet."""
    config, existing = run.config, _in_order(path, samples)
    todo = [s.trajectory for s, t in zip(samples, existing, strict=True) if t is None]
    if not todo:
        return
    player = TransformersAgent(
        run.policy.model,
        run.policy.tokenizer,
        name=path.stem,
        salt=f"{config.seed}/{path.stem}",
        **asdict(run.style),
        max_new_tokens=run.policy.config.max_new_tokens,
        temperature=config.rollouts.temperature,
        top_p=config.rollouts.top_p,
        batch_size=config.rollouts.workers,
    )
    failed: list[Trajectory] = []  # since the last one that did not fail
    with Writer(path) as writer, stage.progress(len(todo), "episodes") as move:
        done = itertools.count(1)
        for split in sorted({t.split for t in todo}):
            tasks = [t for t in todo if t.split == split]
            episodes = run_episodes(
                config.env,
                player,
                [t.task_id for t in tasks],
                split=split,
                seed=[t.seed for t in tasks],
                workers=config.rollouts.workers,
                env_kwargs=config.env_args,
            )
            try:
                for trajectory in episodes:
                    failed.append(trajectory)
                    if not trajectory.error:
                        _write_all(writer, failed)
                    if len(failed) >= GIVE_UP:
                        raise RunError(
                            f"gave up after {len(failed)} failed episodes in a row, the last one "
                            f"with: {trajectory.error}; fix it and run again to continue"
                        )
                    move(next(done), {})
            finally:
                episodes.close()
        _write_all(writer, failed)
    player.close()


def _write_all(writer: Writer, trajectories: list[Trajectory]) -> None:
    while trajectories:
        writer.write(trajectories.pop(0))


def encode(
    run: TrainingRun, trajectories: Sequence[Trajectory], style: PromptStyle | None = None
) -> tuple[list[Sample], int]:
    """The episodes as tokens, and how many had no step or were longer than the context.

    A reply is tokenised again from its text, as the expert's are: where the policy wrote it in
    other pieces, the tokens differ from those it drew.
    """
    samples = []
    for trajectory in trajectories:
        if trajectory.steps and not trajectory.error:
            messages = trajectory.messages(run.prompt, style or run.style)
            encoded = run.policy.codec.encode(messages)
            if len(encoded.ids) <= run.policy.context:
                samples.append(Sample(trajectory, encoded))
    return samples, len(trajectories) - len(samples)


def is_success(trajectory: Trajectory, min_reward: float) -> bool:
    return trajectory.reward >= min_reward - 1e-9


def distinct(samples: Sequence[Sample], expert: Sample) -> list[Sample]:
    """The first sample of each sequence of actions, without those that act as the expert did."""
    seen, new = {_actions(expert)}, []
    for sample in samples:
        if _actions(sample) not in seen:
            seen.add(_actions(sample))
            new.append(sample)
    return new


def _actions(sample: Sample) -> tuple[str, ...]:
    return tuple(step.action for step in sample.trajectory.steps)
