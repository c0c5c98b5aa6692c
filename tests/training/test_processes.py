"""Two processes of one run against one process of the same."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from envs import cli
from tests.eval import toy_world
from training import processes
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


def _launch(config, count):
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(cli.dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
    command += ["--num_processes", str(count), "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "-m", "training.run", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(Path(config.output) / "final" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "inverse", "dpo"])
def test_two_processes_give_what_one_gives(config, tmp_path, method):
    config.method, config.env, config.env_args = method, toy_world.ID, {"size": 6}
    config.checkpoint_seconds, config.evaluation.limit = 1e9, 2
    config.policy.max_new_tokens, config.evaluation.every_iteration = 4, False
    config.sft.batch_size, config.sft.microbatch_size = 4, 2
    config.reflection.iterations, config.reflection.learning_rate = 1, 1e-4
    config.sft.learning_rate = 1e-4
    config.preference.learning_rate, config.preference.batch_size = 1e-4, 4
    config.inverse.discriminator.perfect, config.inverse.discriminator.chance = 1.1, -1.0
    one = _launch(replace(config, output=str(tmp_path / "one")), 1)
    two = _launch(replace(config, output=str(tmp_path / "two")), 2)
    assert one.keys() == two.keys()
    base = load_file(tmp_path / "one" / "base" / "model.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=name)
    assert any(not torch.equal(one[name], base[name]) for name in one)
