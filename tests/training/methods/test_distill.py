"""On-policy distillation: the divergence by hand, and a policy that approaches its teacher."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepagent.envs.trajectory import Writer
from stepagent.training import run
from stepagent.training.config import Config
from stepagent.training.methods import distill
from stepagent.training.runs.directory import RunError
from stepagent.training.runs.metrics import Metrics
from tests import toy_env
from tests.training.toys import GUESS, TREES, tiny_model


@pytest.fixture
def config(config):
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.policy.max_new_tokens = 4
    config.sft.epochs, config.sft.learning_rate = 1, 3e-3
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    config.reflection.iterations, config.reflection.learning_rate = 1, 3e-3
    return config


def test_the_divergence_by_hand():
    """KL((1/2, 1/2) ‖ (3/4, 1/4)) = ½ log(2/3) + ½ log 2; of equal distributions it is 0."""
    ours = torch.tensor([[0.0, 0.0], [5.0, 1.0]])
    theirs = torch.log(torch.tensor([[3.0, 1.0], [torch.e**4, 1.0]]))
    expected = torch.tensor([0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.0])
    torch.testing.assert_close(distill.reverse_kl(ours, theirs), expected, atol=1e-6, rtol=0)


def test_the_loss_is_the_plain_one_on_each_reply():
    model, teacher = tiny_model(), tiny_model(num_hidden_layers=3)
    trees = [TREES["no branch"], TREES["one step"]]
    trees = [replace(tree, branches=()) for tree in trees]
    total, figures = distill.loss(teacher)(model, trees)
    expected = 0.0
    for tree in trees:
        ids = torch.tensor([tree.ids])
        ours, theirs = model(ids).logits[0], teacher(ids).logits[0]
        at = torch.cat([torch.arange(start - 1, end - 1) for start, end in tree.replies])
        expected += float(distill.reverse_kl(ours[at], theirs[at]).mean())
    assert float(total) == pytest.approx(expected, abs=1e-4)
    assert 0 <= figures["teacher_agreement"] <= 2


def test_a_policy_approaches_its_teacher(config):
    taught = replace(config, method="sft", output=config.output + "-teacher")
    taught.sft = replace(config.sft, epochs=6)
    run.run(taught)
    config.method, config.distill.teacher = "distill", f"{taught.output}/final"
    config.reflection.epochs = 6
    run.run(config)
    lines = [
        json.loads(x) for x in (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if line["stage"] == "iteration-1"]
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_of_another_tokenizer_or_none_is_refused(config):
    with pytest.raises(ValueError, match=r"distill\.teacher"):
        distill.check(Config(output="unused", env="unused"))
    other = replace(config, method="sft", output=config.output + "-other")
    other.env, other.env_args = GUESS, {}
    run.run(other)
    config.method, config.distill.teacher = "distill", f"{other.output}/final"
    with pytest.raises(RunError, match="another tokenizer"):
        run.run(config)


@pytest.mark.parametrize("during", ["episodes", "updates"])
def test_a_stopped_run_ends_with_the_same_weights(config, tmp_path, monkeypatch, during):
    taught = replace(config, method="sft", output=str(tmp_path / "teacher"))
    run.run(taught)
    config.method, config.distill.teacher = "distill", f"{taught.output}/final"
    config.reflection.batch_size, config.reflection.epochs = 2, 2
    uninterrupted = replace(config, output=str(tmp_path / "uninterrupted"))
    run.run(uninterrupted)
    stopped = replace(config, output=str(tmp_path / "stopped"))
    place = Writer if during == "episodes" else Metrics
    name = "write" if during == "episodes" else "log"
    method, calls = getattr(place, name), []

    def stop_at_the_second(self, first, *rest, **figures):
        method(self, first, *rest, **figures)
        calls.append(first)
        of_iteration = [c for c in calls if "iteration-1" in (c, getattr(c, "agent", "")[:11])]
        if len(of_iteration) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(place, name, stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.run(stopped)
    monkeypatch.setattr(place, name, method)
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    assert not (tmp_path / "stopped/policies/iteration-1").exists()
    run.run(stopped)
    weights = [
        load_file(Path(one.output) / "final" / "model.safetensors")
        for one in (uninterrupted, stopped)
    ]
    for key, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][key]), key
    before = load_file(Path(stopped.output) / "policies" / "sft" / "model.safetensors")
    assert any(not torch.equal(before[key], tensor) for key, tensor in weights[1].items())
