"""Worked numbers for every metric, macro against micro."""

import pytest

from stepagent.envs.mind2web.score import (
    StepScore,
    macro,
    micro,
    operation_f1,
    score_step,
    task_metrics,
)
from stepagent.envs.trajectory import Trajectory


@pytest.mark.parametrize(
    ("answered", "gold", "f1"),
    [
        ("CLICK", "CLICK", 1.0),
        ("CLICK", "TYPE boston", 0.0),
        ("TYPE boston", "TYPE new york", 0.4),  # 1 shared word; 2 and 3 words: 2·1 / (2+3)
        ("TYPE new york city", "TYPE new york", 6 / 7),
        ("SELECT 2 guests", "SELECT 2 guests", 1.0),
        ("SELECT Guests", "SELECT guests", 0.5),  # upper and lower case differ
        ("TYPE a a b", "TYPE a b", 1.0),  # sets
        ("", "CLICK", 0.0),
    ],
)
def test_operation_f1(answered, gold, f1):
    assert operation_f1(answered, gold) == pytest.approx(f1)


def test_a_step():
    right = score_step("7", "TYPE new york", ["7", "8"], "TYPE new york", ["5", "7"])
    assert (right.element_accuracy, right.operation_f1, right.step_success) == (1, 1, 1)
    half = score_step("7", "TYPE york", ["7"], "TYPE new york", ["7"])
    assert (half.element_accuracy, half.step_success) == (1, 0)
    assert half.operation_f1 == pytest.approx(0.8)
    other = score_step("5", "CLICK", ["7"], "CLICK", ["5", "7"])
    assert (other.element_accuracy, other.operation_f1, other.step_success) == (0, 1, 0)


def test_no_positive_among_the_candidates_scores_nothing():
    assert score_step("7", "CLICK", ["7"], "CLICK", ["5", "6"]) == StepScore(0, 0)
    assert score_step("5", "CLICK", [], "CLICK", ["5", "6"]) == StepScore(0, 0)
    # A positive that did not make the ranks does not count, even where another did.
    assert score_step("8", "CLICK", ["7", "8"], "CLICK", ["7"]).element_accuracy == 0


def test_a_task():
    scores = [StepScore(1, 1), StepScore(0, 0.5), StepScore(1, 0.5)]
    metrics = task_metrics(scores, 4)  # one step was not reached
    assert metrics == {
        "element_accuracy": 0.5,
        "operation_f1": 0.5,
        "step_success": 0.25,
        "task_success": 0.0,
        "task_steps": 4.0,
    }
    assert task_metrics([StepScore(1, 1)] * 2, 2)["task_success"] == 1
    assert task_metrics([StepScore(1, 1)], 2)["task_success"] == 0


def _trajectory(metrics, error=""):
    return Trajectory("e", "t", "test", "a", 0, (), metrics=metrics, error=error)


def test_macro_against_micro():
    short = _trajectory(task_metrics([StepScore(1, 1)] * 2, 2))  # 2 of 2
    long = _trajectory(task_metrics([StepScore(1, 1), *[StepScore(0, 0)] * 7], 8))  # 1 of 8
    assert macro([short, long])["element_accuracy"] == pytest.approx((1 + 1 / 8) / 2)
    assert micro([short, long])["element_accuracy"] == pytest.approx(3 / 10)
    assert macro([short, long])["task_success"] == micro([short, long])["task_success"] == 0.5


def test_failed_episodes_count_as_nothing():
    good = _trajectory(task_metrics([StepScore(1, 1)] * 4, 4))
    failed = _trajectory({}, error="the environment broke")
    assert macro([good, failed])["element_accuracy"] == 0.5
    assert micro([good, failed])["element_accuracy"] == 0.5
    half_way = _trajectory(task_metrics([StepScore(1, 1)], 12), error="broke later")
    assert micro([good, half_way])["element_accuracy"] == pytest.approx(4 / 16)


def test_what_cannot_be_scored_is_said():
    with pytest.raises(ValueError, match="no trajectory"):
        macro([])
    with pytest.raises(ValueError, match="task_steps"):
        micro([_trajectory({"em": 1.0})])
