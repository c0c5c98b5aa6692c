"""Gains and correlations against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from stepagent.training.sweep.statistics import correlation, estimate, gain, student_t


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (13, 2.160), (14, 2.1448), (15, 2.1314), (20, 2.0860), (30, 2.0423), (60, 2.0003),
     (10**6, 1.96)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-4)


def test_fifteen_seeds_have_fourteen_degrees_of_freedom():
    # Eight values of 1 and seven of 0 have the variance 8 · 7 / 15 / 14.
    result = estimate([1.0] * 8 + [0.0] * 7)
    assert result.half_width == pytest.approx(2.1448 * math.sqrt(8 * 7 / 15 / 14 / 15), abs=1e-4)


def test_a_gain_that_is_the_same_everywhere_is_certain():
    same = gain([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    assert (same.mean, same.low, same.high, same.error) == (0.5, 0.5, 0.5, 0.0)
    assert same.p == pytest.approx(2 / 10_001), "no resample is at 0 or below"
    assert same.by_seed == (0.5, 0.5)


def test_no_difference_has_a_p_of_one():
    assert gain([[0.0, 0.0]]).p == 1.0


@pytest.mark.parametrize(
    "table",
    [[[0.0, 1.0]], [[0.0], [1.0]], [[0.0, 0.0], [1.0, 1.0]]],
    ids=["tasks", "seeds", "both"],
)
def test_seeds_and_tasks_are_drawn(table):
    # The mean of two draws of 0 and 1 is 0, 1/2 or 1 with 1/4, 1/2 and 1/4: variance 1/8.
    result = gain(table)
    assert (result.mean, result.low, result.high) == (0.5, 0.0, 1.0)
    assert result.error == pytest.approx(math.sqrt(1 / 8), abs=0.01)
    assert result.p == pytest.approx(2 / 4, abs=0.03), "a quarter is at 0 or below"


def test_both_are_drawn_independently():
    # Only seed 1 gains, and only on task 1: the product of two shares, each 0, 1/2 or 1.
    # E = 1/4, E of the square = (1/4 + 1/8)² = 9/64: variance 9/64 - 1/16 = 5/64.
    assert gain([[0.0, 0.0], [0.0, 1.0]]).error == pytest.approx(math.sqrt(5 / 64), abs=0.01)


def test_weights_make_a_mean_over_steps():
    result = gain([[1.0, -1.0]], weights=[1.0, 3.0])
    assert result.mean == 0.0
    # {a, a}, {a, b}, {b, b}: 2/2, 0/4, -2/6.
    assert (result.low, result.high) == (pytest.approx(-1 / 3), 1.0)


def test_what_can_be_seen_grows_with_the_error_and_the_comparisons():
    result = gain([[0.0, 1.0]])
    assert result.detectable() == pytest.approx(2.8016 * result.error, abs=1e-4)
    # z(1 - 0.05 / 20) = 2.807, z(0.8) = 0.842
    assert result.detectable(10) == pytest.approx(3.6487 * result.error, abs=1e-4)


@pytest.mark.parametrize("table", [[], [[]]])
def test_without_seeds_or_tasks_there_is_no_gain(table):
    assert gain(table) is None


def test_correlations():
    # x centred: -1.5, -0.5, 0.5, 1.5; y centred: -1, -1, 0, 2: 5 / sqrt(5 · 6).
    result = correlation([1, 2, 3, 4], [1, 1, 2, 4])
    assert result.pearson == pytest.approx(5 / math.sqrt(30))
    # Ranks of y 0.5, 0.5, 2, 3: centred -1, -1, 0.5, 1.5: 4.5 / sqrt(5 · 4.5).
    assert result.spearman == pytest.approx(4.5 / math.sqrt(22.5))
    low, high = result.pearson_ci95
    assert -1 <= low < result.pearson < high <= 1
    assert result.policies == 4


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_too_few_or_constant_figures_have_no_correlation(x, y):
    assert correlation(x, y) is None
