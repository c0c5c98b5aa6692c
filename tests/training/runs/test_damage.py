"""A run whose directory was damaged resumes as the same run, or names the file."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from stepagent.errors import UserError
from stepagent.training import run
from stepagent.training.runs.metrics import Metrics
from tests import toy_env

MUTATIONS = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "object": lambda data: b"{}",
    "garbage": lambda data: bytes(255 - byte for byte in data[:4000]),
    "deep": lambda data: b"[" * 100_000,
    "missing": None,
    "pipe": None,
}
FILES = (
    "artifacts/iteration-2/reference.jsonl",
    "base/model.safetensors",
    "base/tokenizer.json",
    *(f"checkpoints/iteration-2/{n}.safetensors" for n in ("optimiser", "random", "trained")),
    "checkpoints/iteration-2/position.json",
    "config.yaml",
    "eval/iteration-1/summary.json",
    "expert/trajectories.jsonl",
    "practice/iteration-2.jsonl",
    "metrics.jsonl",
    "policies/iteration-1/config.json",
    "policies/iteration-1/model.safetensors",
    "stages.json",
)


@pytest.fixture
def config(config):
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.method, config.policy.max_new_tokens = "implicit", 4
    config.reflection.iterations, config.checkpoint_seconds = 2, 0.0
    config.evaluation.limit = 2
    return config


def _stop_at(monkeypatch, name, number):
    log = Metrics.log

    def stop(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if stage == name and update == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "log", stop)


def _weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def _mutate(path, kind):
    if mutation := MUTATIONS[kind]:
        path.write_bytes(mutation(path.read_bytes()))
        return
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)


@pytest.mark.slow
def test_each_file_damaged_in_each_way(config, tmp_path, monkeypatch):
    """The run is stopped within its second iteration; files that it reads again are damaged."""
    folder, template = tmp_path / "run", tmp_path / "template"
    uninterrupted = tmp_path / "uninterrupted"
    run.run(replace(config, output=str(uninterrupted)))
    expected = _weights(uninterrupted)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        _stop_at(patch, "iteration-2", 2)
        run.run(replace(config, output=str(folder)))
    gc.collect()
    folder.rename(template)
    names = [n for n in FILES if (template / n).is_file()]
    assert len(names) == len(FILES)
    faults = []
    for name in names:
        for kind in MUTATIONS:
            shutil.copytree(template, folder)
            _mutate(folder / name, kind)
            try:
                run.run(replace(config, output=str(folder)))
                after = _weights(folder)
                if any(not torch.equal(after[key], expected[key]) for key in expected):
                    faults.append(f"{name}, {kind}: another run")
            except (UserError, ValueError) as error:  # the command shows a ValueError as it is
                if str(folder) not in str(error):
                    faults.append(f"{name}, {kind}: not named: {error}")
            except Exception as error:
                faults.append(f"{name}, {kind}: {type(error).__name__}: {str(error)[:150]}")
            gc.collect()
            shutil.rmtree(folder)
    assert not faults, "\n".join(faults)
