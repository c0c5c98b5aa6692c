"""Episodes of several samples: played together, and each as if it were played alone."""

import shutil
from pathlib import Path

import pytest
from rich.console import Console

from stepagent.envs.trajectory import read
from stepagent.training.methods import rollouts
from stepagent.training.runs.training_run import TrainingRun


@pytest.fixture
def run(config):
    config.method, config.rollouts.samples, config.rollouts.workers = "rft", 3, 4
    config.rollouts.temperature = 1.5
    config.expert.limit = 5
    return TrainingRun(config, Console(quiet=True))


def _play(run):
    with run.stage("iteration-1", 1000) as stage:
        rows = rollouts.play(run, stage, rollouts.tasks(run))
        run.directory.stages = {}
    return [[[step.tokens for step in t.steps] for t in row] for row in rows]


def test_the_samples_of_all_tasks_are_played_in_one_go(run, monkeypatch):
    calls, real = [], rollouts.run_from

    def counted(env, player, starts, **options):
        calls.append([(start.task_id, start.salt) for start in starts])
        return real(env, player, starts, **options)

    monkeypatch.setattr(rollouts, "run_from", counted)
    rows = _play(run)
    assert [len(row) for row in rows] == [3] * 5
    assert len({str(reply) for row in rows for reply in row}) > 10, "they are drawn differently"
    [starts] = calls
    tasks = [task.task_id for task in rollouts.tasks(run)]
    assert starts == [(task, f"0/iteration-1-{k}") for k in range(3) for task in tasks]
    folder = Path(run.config.output) / "rollouts"
    for k in range(3):
        written = {t.task_id: t for t in read(folder / f"iteration-1-{k}.jsonl")}
        assert [[s.tokens for s in written[task].steps] for task in tasks] == [r[k] for r in rows]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_what_is_missing_is_played_as_it_would_have_been(run, kept):
    """After a run that was killed, also one of a version that played the samples one by one."""
    whole = _play(run)
    folder = Path(run.config.output) / "rollouts"
    for k in range(3):
        path = folder / f"iteration-1-{k}.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        if k == kept:
            path.write_bytes(b"".join(lines[:2]) + lines[2][:40])
        elif k > kept:
            path.unlink()
    assert _play(run) == whole
    shutil.rmtree(folder)
    run.config.rollouts.workers = 1
    assert _play(run) == whole
