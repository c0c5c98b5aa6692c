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
from typing import TYPE_CHECKING

from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import Trajectory, Writer, read
from stepagent.eval.rollout import run_episodes
from stepagent.training import processes
from stepagent.training.dataset import Sample
from stepagent.training.rundir import RunError

if TYPE_CHECKING:
    from stepagent.training.session import Session

GIVE_UP = 10
"""Failed episodes in a row after which a run stops."""


def play(
    session: Session, name: str, samples: Sequence[Sample], style: PromptStyle | None = None
) -> list[list[Trajectory]]:
    """`found[i]`: the episodes played on the task of the i-th sample, `rollouts.samples` of them.

    The policy plays as it now stands. Episodes that fail (an environment that broke) are left out,
    and counted in a note. Of several processes the main one plays. Raises RunError where ten fail
    in a row.
    """
    config = session.config.rollouts
    found: list[list[Trajectory]] = [[] for _ in samples]
    with processes.main_first():
        for k in range(config.samples):
            path = session.rundir.path / "rollouts" / f"{name}-{k}.jsonl"
            if session.rundir.main:
                _play_once(session, f"{name}, episodes {k + 1}", path, samples, style)
            for i, trajectory in enumerate(_in_order(path, samples)):
                if trajectory is not None and not trajectory.error:
                    found[i].append(trajectory)
    missing = len(samples) * config.samples - sum(len(row) for row in found)
    if missing:
        session.note(f"{name}: {missing} episodes failed and are left out")
    return found


def _in_order(path: Path, samples: Sequence[Sample]) -> list[Trajectory | None]:
    """The episode of each sample; None where it is missing."""
    if not path.is_file():
        return [None] * len(samples)
    played = {(t.task_id, t.seed): t for t in read(path, bad=[])}  # a kill cuts the last line
    return [played.get((s.trajectory.task_id, s.trajectory.seed)) for s in samples]


def _play_once(
    session: Session,
    title: str,
    path: Path,
    samples: Sequence[Sample],
    style: PromptStyle | None,
) -> None:
    """One episode for each sample that has none in `path` yet."""
    config, there = session.config, _in_order(path, samples)
    todo = [s.trajectory for s, t in zip(samples, there, strict=True) if t is None]
    if not todo:
        return
    player = TransformersAgent(
        session.policy.model,
        session.policy.tokenizer,
        name=path.stem,
        salt=f"{config.seed}/{path.stem}",
        **asdict(style or session.style),
        max_new_tokens=session.policy.config.max_new_tokens,
        temperature=config.rollouts.temperature,
        top_p=config.rollouts.top_p,
        batch_size=config.rollouts.workers,
    )
    failed: list[Trajectory] = []  # since the last one that did not
    with Writer(path) as writer, session.progress(title, len(todo), "episodes") as move:
        done = itertools.count(1)
        for split in sorted({t.split for t in todo}):
            tasks = [t for t in todo if t.split == split]
            played = run_episodes(
                config.env,
                player,
                [t.task_id for t in tasks],
                split=split,
                seed=[t.seed for t in tasks],
                workers=config.rollouts.workers,
                env_args=config.env_args,
            )
            try:
                for trajectory in played:
                    failed.append(trajectory)
                    if not trajectory.error:
                        _write_all(writer, failed)
                    if len(failed) >= GIVE_UP:
                        raise RunError(
                            f"gave up after {len(failed)} failed episodes in a row, the last one "
                            f"with: {trajectory.error}; mend it and run again to continue"
                        )
                    move(next(done), {})
            finally:
                played.close()
        _write_all(writer, failed)
    player.close()


def _write_all(writer: Writer, trajectories: list[Trajectory]) -> None:
    while trajectories:
        writer.write(trajectories.pop(0))


def encode(
    session: Session, trajectories: Sequence[Trajectory], style: PromptStyle | None = None
) -> tuple[list[Sample], int]:
    """The episodes as tokens, and how many had no step or were longer than the context.

    A reply is tokenised anew from its text, as the expert's are: where the policy wrote it in other
    pieces, the tokens differ from those it drew.
    """
    found = []
    for trajectory in trajectories:
        if trajectory.steps and not trajectory.error:
            messages = trajectory.messages(session.prompt, style or session.style)
            encoded = session.policy.codec.encode(messages)
            if len(encoded.ids) <= session.policy.context:
                found.append(Sample(trajectory, encoded))
    return found, len(trajectories) - len(found)
