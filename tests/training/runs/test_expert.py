from dataclasses import replace

import pytest
from rich.console import Console

from stepagent import envs
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.expert import load_expert


def _tasks(config, name, **expert):
    """The tasks whose trajectories a run with these options learns from."""
    run = replace(config, output=name, expert=replace(config.expert, **expert))
    env = envs.make(run.env, split="train")
    prompt = env.prompt
    env.close()
    found = load_expert(run, RunDirectory(name, ""), prompt, Console(quiet=True))
    return {trajectory.task_id for trajectory in found}


def test_seeds_have_the_same_trajectories_or_draw_their_own(config, tmp_path):
    def drawn(draw, limit, seed, trajectories=""):
        name = str(tmp_path / f"{draw}-{limit}-{seed}-{bool(trajectories)}")
        here = replace(config, seed=seed)
        return _tasks(here, name, draw=draw, limit=limit, trajectories=trajectories)

    fixed = [drawn("fixed", 4, seed) for seed in range(3)]
    own = [drawn("seed", 4, seed) for seed in range(3)]
    assert fixed[0] == fixed[1] == fixed[2]
    assert len({frozenset(tasks) for tasks in own}) > 1
    assert all(len(tasks) == 4 for tasks in (*fixed, *own))
    assert fixed[0] < drawn("fixed", 6, 0)
    assert own[1] < drawn("seed", 6, 1)

    drawn("fixed", 0, 0)
    file = str(tmp_path / "fixed-0-0-False" / "expert" / "trajectories.jsonl")
    assert [drawn("fixed", 4, seed, file) for seed in range(2)] == fixed[:2]
    of_file = [drawn("seed", 4, seed, file) for seed in range(3)]
    assert len({frozenset(tasks) for tasks in of_file}) > 1
    assert of_file[1] < drawn("seed", 6, 1, file)


def test_no_environment_is_opened_where_the_trajectories_are_there(config, tmp_path, monkeypatch):
    run = replace(config, expert=replace(config.expert, draw="seed", limit=4))
    env = envs.make(run.env, split="train")
    prompt = env.prompt
    env.close()
    directory, console = RunDirectory(tmp_path / "run", ""), Console(quiet=True)
    first = load_expert(run, directory, prompt, console)
    monkeypatch.setattr(envs, "make", lambda *args, **kwargs: pytest.fail("opened once more"))
    assert load_expert(run, directory, prompt, console) == first
