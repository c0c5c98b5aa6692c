"""Two processes of one run against one process of the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file

from envs import cli
from tests.eval import toy_world
from training import processes, sharding
from training.processes import interleave

ROOT = Path(__file__).parents[2]


def test_one_process_is_the_main_one():
    assert processes.is_main()
    assert processes.share([1, 2, 3], lambda x: x * x) == [1, 4, 9]
    with processes.main_first():
        processes.wait()


def test_interleave():
    items = list(range(7))
    for count in (1, 2, 3, 9):
        assert interleave([items[r::count] for r in range(count)], 7) == items


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def _launch(config, count, module="training.run", environment=MappingProxyType({})):
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(cli.dump(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(count), "-m", module, "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if "DIE_AT" in environment:
        assert "exitcode  : 9" in done.stderr, done.stderr[-4000:]
        return None
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(Path(config.output) / "final" / "model.safetensors")


def test_processes_know_of_each_other(tmp_path):
    path = tmp_path / "ask.py"
    path.write_text("from training import processes as p; print(p.gather((p.rank(), p.count())))")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.count("[(0, 2), (1, 2)]") == 2, done.stderr[-2000:]


def test_launches_that_cannot_train_are_refused(monkeypatch):
    sharding.check_own_loop("implicit")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="implicit cannot be trained under DeepSpeed"):
        sharding.check_own_loop("implicit")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ValueError, match="version 2"):
        sharding.Twin(torch.nn.Linear(1, 1))


def _settings(config, method):
    config.method, config.env, config.env_args = method, toy_world.ID, {"size": 6}
    config.checkpoint_seconds, config.evaluation.limit = 1e9, 2
    config.policy.max_new_tokens, config.evaluation.every_iteration = 4, False
    config.expert.limit = 4  # accelerate fills an epoch's last update up to the processes
    config.sft.batch_size, config.sft.microbatch_size, config.sft.epochs = 4, 2, 3
    config.reflection.iterations, config.reflection.learning_rate = 1, 1e-4
    config.sft.learning_rate = 1e-4
    config.preference.learning_rate, config.preference.batch_size = 1e-4, 4
    config.inverse.discriminator.perfect, config.inverse.discriminator.chance = 1.1, -1.0
    return config


def _equal(one, two, tmp_path):
    assert one.keys() == two.keys()
    base = load_file(tmp_path / "one" / "base" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=name)
    assert any(not torch.equal(one[name], base[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "inverse", "dpo"])
def test_two_processes_give_what_one_gives(config, tmp_path, method):
    config = _settings(config, method)
    one = _launch(replace(config, output=str(tmp_path / "one")), 1)
    two = _launch(replace(config, output=str(tmp_path / "two")), 2)
    _equal(one, two, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "inverse", "dpo"])
def test_shards_give_what_one_process_gives(config, tmp_path, method):
    config = _settings(config, method)
    one = _launch(replace(config, output=str(tmp_path / "one")), 1)
    config.checkpoint_seconds = 0.0  # shards are gathered and written after every update
    fsdp = replace(config, output=str(tmp_path / "two"))
    two = _launch(fsdp, 2, "tests.training.fsdp_on_cpu", FSDP)
    _equal(one, two, tmp_path)


@pytest.mark.slow
def test_shards_go_on_after_a_kill(config, tmp_path):
    config = _settings(config, "implicit")
    config.checkpoint_seconds = 0.0
    one = _launch(replace(config, output=str(tmp_path / "one")), 1)
    fsdp = replace(config, output=str(tmp_path / "two"))
    for place in ("sft:3", "iteration-1:3"):
        _launch(fsdp, 2, "tests.training.fsdp_on_cpu", {**FSDP, "DIE_AT": place})
        assert list((tmp_path / "two" / "checkpoints").iterdir())
    two = _launch(fsdp, 2, "tests.training.fsdp_on_cpu", FSDP)
    _equal(one, two, tmp_path)
