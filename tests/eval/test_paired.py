"""Paired tests against numbers worked out by hand, and against chance."""

import numpy as np
import pytest

from stepagent.eval.paired import holm, paired, sign_flip


def test_by_hand():
    result = paired({"a": 0.0, "b": 1.0, "c": 0.5, "x": 1}, {"a": 1.0, "b": 1.0, "c": 0.0, "y": 1})
    assert (result.tasks, result.better, result.worse) == (3, 1, 1)
    assert result.mean == pytest.approx(0.5 / 3)
    assert result.p == 1.0  # of ±1 ±½ every pattern is at least ½ away from 0
    assert result.low <= result.mean <= result.high


def test_no_task_in_common():
    assert paired({"a": 1.0}, {"b": 1.0}) is None


def test_rounding_is_no_difference():
    result = paired({"a": 0.1 + 0.2, "b": 1.0}, {"a": 0.3, "b": 1.0})
    assert (result.better, result.worse, result.p) == (0, 0, 1.0)


def test_all_patterns_are_counted_where_they_are_few():
    assert sign_flip([1.0] * 10) == pytest.approx(2 / 2**10)
    assert sign_flip([0.5, -0.5]) == 1.0
    assert sign_flip([3.0, 2.0, 1.0, 0.0]) == pytest.approx(2 / 8)
    assert sign_flip([3.0, 2.0, -1.0]) == pytest.approx(4 / 8)  # |sum| ≥ 4: ±4 and ±6


def test_drawn_patterns_agree_with_theory():
    """Of n differences of one size the sum is binomial: here P(|heads − 20| ≥ 6), n = 40."""
    from math import comb

    gains = [1.0] * 26 + [-1.0] * 14
    exact = sum(comb(40, k) for k in range(41) if abs(k - 20) >= 6) / 2**40
    assert sign_flip(gains) == pytest.approx(exact, abs=0.01)
    assert sign_flip(gains) == sign_flip(gains)
    assert sign_flip([1.0] * 100) == pytest.approx(1 / 10_001)


def test_chance_alone_is_rarely_significant():
    rng = np.random.default_rng(1)
    p_values = [sign_flip(rng.normal(size=12)) for _ in range(200)]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.1


def test_holm_by_hand():
    assert holm([0.01, 0.02, 0.2]) == pytest.approx([0.03, 0.04, 0.2])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
