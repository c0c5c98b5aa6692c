"""Good and bad trajectories from files (`preference.trajectories`): pairs of one task, by reward.

Trajectories of the files and of the run's expert are compared where they are of the same task and
begin with the same observation. The best of a task (the expert's, where several are) is preferred
to each that scored less. Those that are best too are ties; those without a partner are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stepagent.envs.react import Prompt
from stepagent.envs.trajectory import Trajectory, read
from stepagent.training.config import Config
from stepagent.training.data import Sample, encode
from stepagent.training.runs.expert import check_trajectories
from stepagent.training.runs.training_run import TrainingRun


@dataclass(frozen=True)
class Compared:
    """The trajectories of some files, compared."""

    pairs: list[tuple[Sample, Sample]]
    """(better, worse)"""
    figures: dict[str, float]
    """What was left out, by its reason"""


def read_files(config: Config, prompt: Prompt, files: Sequence[str]) -> list[Trajectory]:
    """The trajectories of some files. Raises as `compare_files` for files that cannot be used."""
    trajectories: list[Trajectory] = []
    for path in map(Path, files):
        from_file = read(path)
        check_trajectories(path, from_file, config, prompt)
        trajectories += from_file
    return trajectories


def check_files(config: Config, prompt: Prompt) -> None:
    """Raises what `read_files` does for the files of `preference.trajectories`."""
    read_files(config, prompt, config.preference.trajectories)


def compare_files(run: TrainingRun, files: Sequence[str]) -> Compared:
    """The pairs of the files' trajectories and the run's expert.

    Raises FileNotFoundError and ValueError for files that cannot be read; RunError for trajectories
    of another environment or prompt, or of the split that is scored; ValueError where no task has
    two trajectories of different rewards.
    """
    trajectories = read_files(run.config, run.prompt, files)
    samples, left_out = encode(
        trajectories, run.policy.codec, run.prompt, run.style, run.policy.context
    )
    run.check_prompts(samples)
    tasks: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in (*run.samples, *samples):
        task = sample.trajectory
        first = task.steps[0].observation
        tasks.setdefault((task.split, task.task_id, first), []).append(sample)
    pairs, ties, unpaired, experts = [], 0, 0, {id(sample) for sample in run.samples}
    for group in tasks.values():
        best = max(group, key=lambda sample: sample.trajectory.reward)
        for sample in group:
            if sample.trajectory.reward < best.trajectory.reward - 1e-9:
                pairs.append((best, sample))
            elif sample is not best and id(sample) not in experts:
                ties += 1
        unpaired += len(group) == 1 and id(best) not in experts
    if not pairs:
        raise ValueError(
            f"{', '.join(files)}: of {len(trajectories)} trajectories {ties} score as the best of "
            f"their task and {unpaired} are alone in theirs, so that there is no pair to learn "
            "from: preference.trajectories needs trajectories of the expert's tasks, or several of "
            "a task, with different rewards"
        )
    return Compared(
        pairs,
        {
            "ties": float(ties),
            "unpaired": float(unpaired),
            "episodes_left_out": float(sum(left_out.values())),
        },
    )
