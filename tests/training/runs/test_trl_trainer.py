"""Training through TRL: stopped in any epoch, it resumes as the same training."""

from __future__ import annotations

import contextlib
import gc
import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from stepagent.agents.chat import Encoded
from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.training.config import PolicyConfig, PreferenceConfig, SftConfig, TinyConfig
from stepagent.training.data import Sample
from stepagent.training.methods import preference, sft
from stepagent.training.policy import Policy
from stepagent.training.runs import interrupts
from stepagent.training.runs.directory import MOMENTS, RunDirectory
from stepagent.training.runs.metrics import Metrics
from stepagent.training.runs.selection import Selection
from stepagent.training.runs.stage import Stage

UPDATES = 12
"""Of three epochs of seven samples in batches of two: four per epoch."""


def _samples():
    """Trajectories of distinct lengths, so that no two orders give the same batches."""
    return [
        Sample(None, Encoded([5 + n + i for i in range(4 + 2 * n)], [(2, 4 + n)])) for n in range(7)
    ]


def _fine_tune(stage, policy):
    config = SftConfig(
        learning_rate=1e-2, schedule="cosine", warmup_ratio=0.1, batch_size=2, epochs=3
    )
    sft.train(stage, policy, _samples(), config)


def _prefer(stage, policy):
    samples = _samples()
    pairs = [preference.Pair(a, b) for a, b in zip(samples, reversed(samples), strict=True)]
    config = PreferenceConfig(
        learning_rate=1e-2, schedule="cosine", warmup_ratio=0.1, batch_size=2, epochs=3
    )
    preference.train(stage, policy, pairs, config)


def _train(train, folder):
    """The weights after training; resumes what the folder holds."""
    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu", dtype="float32")
    config.tiny = TinyConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    policy = Policy.tiny(config, ["a b c"], seed=0)
    train(Stage("s", RunDirectory(folder, ""), seed=3, checkpoint_seconds=0.0), policy)
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["update"], line["loss"]) for line in lines]


@pytest.mark.parametrize("train", [_fine_tune, _prefer])
def test_stopped_in_any_epoch_it_resumes_as_the_same_training(train, tmp_path, monkeypatch):
    uninterrupted = _train(train, tmp_path / "uninterrupted")
    losses = _losses(tmp_path / "uninterrupted")
    assert [update for update, _ in losses] == list(range(1, UPDATES + 1))
    log = Metrics.log
    for last in (3, 4, 6, 9, 11):  # in the first epoch, at its end, in the second, in the third

        def stop(self, stage, update, last=last, **figures):
            log(self, stage, update, **figures)
            if update == last:
                raise KeyboardInterrupt

        folder = tmp_path / f"stopped-{last}"
        monkeypatch.setattr(Metrics, "log", stop)
        with contextlib.suppress(KeyboardInterrupt):
            _train(train, folder)
        assert len(_losses(folder)) == last
        gc.collect()  # frees the lock on the directory, as the end of a process does
        monkeypatch.setattr(Metrics, "log", log)
        torch.manual_seed(last)  # another process has another global generator
        resumed = _train(train, folder)
        assert _losses(folder) == losses, last
        assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed), last


def _by_tokens(stage, policy):
    """One pass and a half: the sixth update is the last."""
    tokens = round(1.5 * sum(len(sample.encoded.ids) for sample in _samples()))
    config = SftConfig(learning_rate=1e-2, batch_size=2, epochs=1, tokens=tokens)
    sft.train(stage, policy, _samples(), config)


class _Worse(Selection):
    """Two passes worse than the first end the training; the one after them would be the best."""

    def after_pass(self, update):
        matches = [True, update == 4] if update <= UPDATES else [True, True]
        rows = [TrajectoryAgreement(f"t/{i}", (update / 4,), (m,)) for i, m in enumerate(matches)]
        self.read_dev = lambda: (rows, 0)
        return super().after_pass(update)


def _until_patience_ends(stage, policy):
    selection = _Worse(stage, policy, lambda: ([], 0), patience=2)
    config = SftConfig(learning_rate=1e-2, batch_size=2, epochs=6)
    sft.train(stage, policy, _samples(), config, selection)
    selection.finish()
    assert stage.figures["passes"] == 3


@pytest.mark.parametrize(("train", "last"), [(_by_tokens, 6), (_until_patience_ends, UPDATES)])
def test_interrupted_in_the_last_update_it_ends_there_all_the_same(
    train, last, tmp_path, monkeypatch
):
    uninterrupted = _train(train, tmp_path / "uninterrupted")
    losses = _losses(tmp_path / "uninterrupted")
    assert [update for update, _ in losses] == list(range(1, last + 1))
    log = Metrics.log

    def interrupt(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if update == last:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _train(train, tmp_path / "interrupted")
    gc.collect()
    resumed = _train(train, tmp_path / "interrupted")
    assert _losses(tmp_path / "interrupted") == losses
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


def test_an_interrupt_of_another_process_in_the_last_update_ends_this_one_too(
    tmp_path, monkeypatch
):
    """The clock has it from the others, and no signal comes here."""
    updates = iter(range(1, 7))

    def due(clock):
        clock.interrupted = next(updates) == 6
        return clock.interrupted

    monkeypatch.setattr(interrupts.CheckpointClock, "due", due)
    with pytest.raises(KeyboardInterrupt):
        _train(_by_tokens, tmp_path)


def test_moments_are_kept_from_the_first_stage_on_and_outlive_one_without_any(tmp_path, policy):
    directory = RunDirectory(tmp_path, "")
    pairs = list(map(preference.Pair, _samples(), _samples()))
    config = PreferenceConfig(batch_size=4, epochs=1, keep_optimiser=True)  # two updates
    earlier, steps = (), []
    for name in ("first", "nothing to learn", "third"):
        stage = Stage(name, directory, earlier=earlier)
        if name != "nothing to learn":
            preference.train(stage, policy, pairs, config)
            steps.append(load_file(stage.artifacts / MOMENTS)["0.step"])
        earlier += (name,)
    assert steps == [2, 4]


def test_each_epoch_has_an_order_of_its_own(tmp_path, monkeypatch):
    orders = []
    iterate = sft.trl_trainer.EpochSampler.__iter__

    def record(self):
        orders.append(list(iterate(self)))
        return iter(orders[-1])

    monkeypatch.setattr(sft.trl_trainer.EpochSampler, "__iter__", record)
    _train(_fine_tune, tmp_path)
    assert len(orders) == 3
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
