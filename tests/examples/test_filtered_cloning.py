"""The example of a custom training method: it trains, resumes, and is found by its name."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepagent.envs.react import PromptStyle
from stepagent.training import methods, run
from stepagent.training.config import Config, TinyConfig
from stepagent.training.runs.metrics import Metrics
from tests import toy_env

ROOT = Path(__file__).parents[2]
METHOD = "filtered_cloning:METHOD"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    config = Config(output=str(tmp_path / "run"), env=toy_env.ID, env_args={"size": 6})
    config.method = METHOD
    config.prompt = PromptStyle(instruction=False, example=False, thoughts=False)
    config.policy.model, config.policy.max_new_tokens, config.policy.device = "tiny", 4, "cpu"
    config.policy.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=400, context=512)
    config.sft.learning_rate, config.sft.batch_size, config.sft.epochs = 1e-2, 4, 2
    config.rollouts.samples, config.reflection.iterations = 2, 2
    config.evaluation.limit, config.checkpoint_seconds = 2, 0.0
    return config


def _weights(output):
    return load_file(Path(output) / "final" / "model.safetensors")


def test_it_trains_and_a_stopped_run_ends_with_the_same_weights(config, tmp_path, monkeypatch):
    complete = replace(config, output=str(tmp_path / "complete"))
    summary = run.run(complete)
    assert list(summary["scores"]) == ["sft", "iteration-1", "iteration-2"]
    assert summary["figures"]["iteration-2"]["kept"] == 6, "the better half of two per task"
    policies = Path(complete.output) / "policies"
    before, after = (load_file(policies / s / "model.safetensors") for s in ("sft", "iteration-2"))
    assert any(not torch.equal(before[name], after[name]) for name in before)

    log = Metrics.log

    def stop(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if (stage, update) == ("iteration-2", 2):
            raise KeyboardInterrupt

    stopped = replace(config, output=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(stopped)
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    run.run(stopped)
    one, two = _weights(complete.output), _weights(stopped.output)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_declares_what_it_keeps_on_disk(config):
    method = methods.find(METHOD)
    assert method.policies_on_disk(config) == 3
    config.keep_policies = False
    assert method.policies_on_disk(config) == 2
    config.sft.epochs = 0
    with pytest.raises(ValueError, match=r"sft\.epochs"):
        run.run(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cloning", "choose sft, implicit"),
        ("nowhere_at_all:METHOD", "cannot be loaded: No module named 'nowhere_at_all'"),
        ("filtered_cloning:NOTHING", "has no attribute 'NOTHING'"),
        ("filtered_cloning:learn", "is not a `Method` but function"),
    ],
)
def test_a_method_that_cannot_be_found_is_an_error_that_says_so(config, name, message):
    with pytest.raises(ValueError, match=message):
        methods.find(name)
