"""Preferences between trajectories: masks, and TRL's loss against the plain numbers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stepagent.agents.chat import Encoded
from stepagent.training.config import PolicyConfig, PreferenceConfig
from stepagent.training.data import Sample
from stepagent.training.methods.preference import (
    Collator,
    Pair,
    _references,
    mask,
    of_iteration,
    train,
)
from stepagent.training.policy import Policy
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.metrics import Metrics
from stepagent.training.runs.stage import Stage


def _sample(ids, replies):
    return Sample(None, Encoded(ids, replies))


CHOSEN = _sample([9, 8, 1, 2, 0, 7, 3, 0], [(2, 5), (6, 8)])
REJECTED = _sample([9, 8, 5, 0, 7, 7], [(2, 4)])


def test_observations_are_masked_out():
    assert mask(CHOSEN) == [0, 0, 1, 1, 1, 0, 1, 1]
    row = {
        "chosen_ids": [5, 6, 7],
        "chosen_mask": [0, 1, 1],
        "rejected_ids": [5, 4],
        "rejected_mask": [0, 1],
        "ref_chosen_logps": -1.0,
        "ref_rejected_logps": -2.0,
    }
    batch = Collator(pad_token_id=1)([row, row])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 6, 7], [5, 4, 1], [5, 4, 1]]
    assert batch["completion_mask"].tolist()[2] == [0, 1, 0]
    assert batch["attention_mask"].tolist()[3] == [1, 1, 0]
    assert batch["ref_rejected_logps"].tolist() == [-2.0, -2.0]


@torch.no_grad()
def _log_prob(model, sample):
    """log π of the agent's tokens, one plain forward."""
    ids = torch.tensor([sample.encoded.ids])
    log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(
        float(log_probs[i - 1, ids[0, i]])
        for start, end in sample.encoded.replies
        for i in range(start, end)
    )


def test_trls_loss_is_the_logistic_one_over_the_agents_tokens(policy, tmp_path, monkeypatch):
    logged, states = [], []

    def log(self, stage, update, **figures):
        logged.append(figures)
        states.append((_log_prob(policy.model, CHOSEN), _log_prob(policy.model, REJECTED)))

    monkeypatch.setattr(Metrics, "log", log)
    with torch.no_grad():
        before = _log_prob(policy.model, CHOSEN), _log_prob(policy.model, REJECTED)
    config = PreferenceConfig(
        learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, batch_size=1, epochs=2, beta=0.3
    )
    forward = type(policy.model).forward
    stage = Stage("s", RunDirectory(tmp_path, ""), checkpoint_seconds=1e9)
    train(stage, policy, [Pair(CHOSEN, REJECTED)], config)
    assert type(policy.model).forward is forward
    assert "forward" not in vars(policy.model), "TRL's own forward is taken off again"
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-4), "at the reference"
    margin = 0.3 * ((states[0][0] - before[0]) - (states[0][1] - before[1]))
    assert margin > 0
    assert logged[1]["margin"] == pytest.approx(margin, abs=1e-3)
    assert logged[1]["loss"] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-3)


def test_adapters_are_as_before(policy, tmp_path):
    policy.save(tmp_path / "base")
    config = PolicyConfig(model=str(tmp_path / "base"), device="cpu", dtype="float32")
    config.lora.r, config.max_new_tokens = 4, 5
    adapted = Policy.load(config)
    settings = PreferenceConfig(
        learning_rate=1e-2, schedule="constant", warmup_ratio=0.0, batch_size=1, epochs=1
    )
    start = {n: p.clone() for n, p in adapted.model.named_parameters() if p.requires_grad}
    stage = Stage("s", RunDirectory(tmp_path / "r", ""), checkpoint_seconds=1e9)
    train(stage, adapted, [Pair(CHOSEN, REJECTED)], settings)
    assert list(adapted.model.peft_config) == ["default"]
    trained = {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained.keys() == start.keys()
    assert any(not torch.equal(trained[n], start[n]) for n in start)


def test_log_probabilities_of_other_pairs_are_refused(policy, tmp_path):
    stage = Stage("s", RunDirectory(tmp_path, ""))
    pair, turned = Pair(CHOSEN, REJECTED), Pair(REJECTED, CHOSEN)
    written = _references(stage, policy, [pair])
    assert _references(stage, policy, [pair]) == written
    with pytest.raises(DamagedState, match=r"reference\.json .* other pairs .*another `output`"):
        _references(stage, policy, [turned])
    (tmp_path / "artifacts/s/reference.json").write_text(json.dumps(written))
    assert _references(stage, policy, [pair]) == written, "a file of an earlier version"


def test_beta_and_rate_change_after_the_first_iteration():
    config = PreferenceConfig()
    assert (of_iteration(config, 1).beta, of_iteration(config, 1).learning_rate) == (0.1, 1e-6)
    assert (of_iteration(config, 3).beta, of_iteration(config, 3).learning_rate) == (0.5, 5e-7)


def test_pairs_that_say_the_same_differ_in_nothing():
    assert Pair(CHOSEN, REJECTED).differs
    assert not Pair(CHOSEN, _sample(list(CHOSEN.encoded.ids), CHOSEN.encoded.replies)).differs
