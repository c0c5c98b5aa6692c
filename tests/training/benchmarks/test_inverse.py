"""The benchmark of inverse: both of its sides do the same."""

from __future__ import annotations

import json

import pytest

from stepagent.training.benchmarks.inverse import measure_side
from stepagent.training.config import PolicyConfig, TinyConfig
from stepagent.training.policy import Policy


def test_both_sides_take_the_same_losses(tmp_path):
    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu", dtype="float32")
    config.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=512)
    Policy.tiny(config, ["a b c"], seed=0).save(tmp_path / "model")
    task = {
        "model": str(tmp_path / "model"),
        "dtype": "float32",
        "device": "cpu",
        "rank": 4,
        "ids": [9, 8, 1, 2, 0, 7, 3, 0, 4, 5, 0],
        "replies": [[2, 5], [6, 8], [9, 11]],
        "joins": [],
        "practice": [[[1, 2, 0], [5, 0]], [[6, 0], [6, 0]], [[8, 8, 0], [5, 0]]],
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    ours, plain = (measure_side(side, str(tmp_path / "task.json")) for side in ("ours", "plain"))
    assert ours["discriminator"] == pytest.approx(plain["discriminator"], abs=1e-4)
    assert ours["ppo"] == pytest.approx(plain["ppo"], abs=1e-4)
    assert abs(ours["ppo"]) > 1e-4
    assert ours["tokens"] < plain["tokens"]
    assert min(ours["peak"], plain["peak"]) > 0
