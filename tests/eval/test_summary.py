"""Summaries against numbers worked out by hand."""

import json
import math

import pytest

from stepagent.envs.trajectory import Step, Trajectory
from stepagent.eval.summary import bootstrap, save, summarise, wilson


def episode(task, reward, steps=2, valid=2, error="", **kwargs):
    turns = tuple(Step("o", "t", "a", valid=i < valid) for i in range(steps))
    return Trajectory(
        "E", task, "test", "A", 0, turns, reward=reward, error=error,
        metrics={"em": reward}, **kwargs,
    )  # fmt: skip


EPISODES = [
    episode("boil/1", 1.0, steps=4, valid=4, success=True),
    episode("boil/2", 0.5, steps=10, valid=3, truncated=True),
    episode("melt/1", 0.9, steps=1, valid=1, error="environment: it broke"),
    episode("melt/2", 0.0, steps=5, valid=2),
]


def test_counts_by_hand():
    summary = summarise(EPISODES, seconds=12.3456)
    assert summary["episodes"] == 4
    assert summary["failed"] == 1
    assert summary["reward_mean"] == pytest.approx(1.5 / 4)  # the failed one counts as 0
    assert summary["success_rate"] == 0.25
    assert summary["valid_rate"] == pytest.approx(10 / 20)  # of all steps taken
    assert summary["truncated_rate"] == pytest.approx(1 / 3)  # of those that did not fail
    assert summary["steps_mean"] == pytest.approx(19 / 3)
    assert summary["metrics"] == {"em": pytest.approx(1.5 / 4)}
    assert summary["seconds"] == 12.346
    boil, melt = summary["by_type"]["boil"], summary["by_type"]["melt"]
    assert (boil["episodes"], boil["failed"], boil["reward_mean"]) == (2, 0, 0.75)
    assert (melt["episodes"], melt["failed"], melt["reward_mean"]) == (2, 1, 0.0)


def test_groups_are_the_task_types_that_the_environment_gave():
    ids = ("look_at-Book/trial_1", "look_at-Pen/trial_2", "heat-Egg/trial_3")
    typed = [episode(task, 1.0, task_type=task.split("-")[0]) for task in ids]
    summary = summarise(typed)
    assert {name: group["episodes"] for name, group in summary["by_type"].items()} == {
        "look_at": 2,
        "heat": 1,
    }
    assert summarise([episode("5a8b57", 1.0)])["by_type"] == {}


def test_keys_promised_to_users():
    promised = {"env", "agent", "split", "episodes", "reward_mean", "reward_ci95", "success_rate"}
    promised |= {"valid_rate", "truncated_rate", "steps_mean", "metrics", "seconds", "fingerprint"}
    assert promised <= set(summarise(EPISODES))


def test_replies_that_did_not_end_by_themselves_are_counted_and_explained():
    steps = [Step("o", "t", "a", ending="length")] * 37 + [Step("o", "t", "a")] * 2
    steps.append(Step("o", "", "", ending="refusal"))
    fingerprint = {"agent.decoding": "{'temperature': 0.0, 'max_new_tokens': 256}"}
    long = Trajectory("E", "x", "test", "A", 0, tuple(steps), fingerprint=fingerprint)
    summary = summarise([long])
    assert summary["endings"] == {"length": 37, "refusal": 1}
    assert summary["notes"] == [
        "37 of 40 replies were cut at 256 tokens: raise --max-new-tokens",
        "1 of 40 replies were refusals",
    ]
    assert summarise(EPISODES)["endings"] == {}
    assert summarise(EPISODES)["notes"] == []


def test_order_of_arrival_changes_nothing():
    assert summarise(EPISODES) == summarise(EPISODES[::-1])


def test_all_failed_and_no_steps_at_all():
    summary = summarise([Trajectory("E", "t", "test", "A", 0, (), error="x")])
    assert summary["reward_mean"] == summary["steps_mean"] == summary["valid_rate"] == 0
    assert summary["by_type"] == {}  # an id without a type


def test_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="no episode"):
        summarise([])
    other = Trajectory("E", "t", "dev", "A", 0, ())
    with pytest.raises(ValueError, match=r"several values of split: \['dev', 'test'\]"):
        summarise([EPISODES[0], other])


def test_bootstrap_agrees_with_theory_where_theory_is_known():
    """For many draws of a fair coin the interval is 0.5 ± 1.96 · sqrt(0.25 / n)."""
    low, high = bootstrap([0.0, 1.0] * 200)
    assert low == pytest.approx(0.5 - 1.96 * math.sqrt(0.25 / 400), abs=0.004)
    assert high == pytest.approx(0.5 + 1.96 * math.sqrt(0.25 / 400), abs=0.004)
    assert bootstrap([0.0, 1.0] * 200) == (low, high)
    assert bootstrap([0.3]) == (0.3, 0.3)


def test_bootstrap_of_many_values_stays_within_its_blocks():
    low, high = bootstrap([0.0, 1.0] * 5_000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 10_000), rel=0.1)


def test_wilson_by_hand():
    low, high = wilson(0, 10)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_save_is_atomic(tmp_path):
    path = tmp_path / "summary.json"
    save({"a": 1}, path)
    with pytest.raises(TypeError):
        save({"a": object()}, path)
    assert json.loads(path.read_text()) == {"a": 1}
