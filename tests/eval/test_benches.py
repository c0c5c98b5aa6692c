"""What benchmarks share, and the rollout benchmark with a tiny model (its count, not its speed)."""

import json

import pytest

from stepagent.agents.generation import Generator
from stepagent.eval.benches import (
    MOST,
    Options,
    Row,
    envs,
    measure,
    measure_sides,
    rollout,
    settings,
)
from tests.agents.tiny_models import make_model, make_tokenizer
from tests.toy_env import ID


def test_ratio_says_how_many_times_better_ours_is():
    assert Row.more_is_better("a", 30.0, 10.0, "steps/s").ratio == 3
    assert Row.less_is_better("a", 0.5, 2.0, "s").ratio == 4


@pytest.mark.parametrize("kind", [Row.more_is_better, Row.less_is_better])
def test_sides_of_zero_have_a_ratio_that_json_knows(kind):
    assert kind("a", 0.0, 0.0, "s").ratio == 1
    ratios = sorted(kind("a", *sides, "s").ratio for sides in ((0.0, 2.0), (2.0, 0.0)))
    assert ratios == [0, MOST]
    assert json.loads(json.dumps(ratios, allow_nan=False)) == ratios


def test_sides_take_turns_and_alternate():
    calls: list[str] = []
    measure_sides([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b", "b", "a"]
    calls.clear()
    seconds = measure(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert all(0 <= s < 1 for s in seconds)


def test_settings_of_one_benchmark():
    options = Options("x", args={"episodes": 3})
    assert settings(options, episodes=8, turns=2) == {"episodes": 3, "turns": 2}
    with pytest.raises(ValueError, match=r"'episodes'.*There are: turns"):
        settings(options, turns=2)


@pytest.fixture
def tiny_model(tmp_path):
    """A random model, saved as any other."""
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_rollout_benchmark_compares_equal_replies(tiny_model, monkeypatch):
    ways = set()
    for way in ("_forward", "_forward_packed"):
        forward = getattr(Generator, way)
        watched = lambda *args, way=way, forward=forward: ways.add(way) or forward(*args)  # noqa: E731
        monkeypatch.setattr(Generator, way, watched)
    monkeypatch.setattr("stepagent.agents.generation._probe", lambda model, packed: 0.0)
    args = {"env": ID, "episodes": 2, "turns": 3, "max_new_tokens": 8}
    args |= {"many": 3, "slots": 2, "reply_tokens": 8, "slow": 0.01}
    options = Options("rollout", repeats=1, model=str(tiny_model), dtype="float32", args=args)
    rows = {row.name: row for row in rollout.bench(options)}
    equal = rows.pop("equal greedy replies")
    assert (equal.ours, equal.baseline, equal.ratio) == (6, 6, 1.0)
    slow = ", a third of the tasks slow by 0.01 s"
    for title in ("", slow):
        equal = rows.pop(f"equal greedy replies, fixed batches{title}")
        assert (equal.ours, equal.baseline) == (9, 9)
        assert f"rollout, continuous against fixed batches of 2{title}" in rows
    packed = "rollout, packed against padded passes, 2 at once"
    assert packed in rows
    assert rows[f"equal greedy replies, {packed}"].ratio == 1
    assert ways == {"_forward", "_forward_packed"}
    assert all(row.ours > 0 and row.baseline > 0 for row in rows.values())


@pytest.mark.slow
def test_environments_benchmark_against_upstream():
    options = Options("envs", repeats=1, args={"tasks": 1, "environments": 2, "warm_up": 0})
    steps, *rest = envs.bench(options)
    assert steps.ratio > 1
    assert rest[-1].unit == "GB"
    for row in (steps, *rest):
        assert row.ours > 0
        assert row.baseline > 0
