"""Scores against cases worked out by hand from the rules of the three official scorers."""

import pytest

from stepagent.envs.wikipedia.score import RULES, exact_match, f1, normalize, score


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Beatles", "beatles"),
        ("  A   man,  a plan. ", "man plan"),
        ("U.S.", "us"),
        ("Stephen King's", "stephen kings"),
        ("an-other", "another"),
        ("Theatre", "theatre"),
        ("“Quoted”", "“quoted”"),  # only ASCII punctuation goes
        ("The", ""),
        ("", ""),
    ],
)
def test_normalising(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("dataset", "prediction", "golds", "em", "f1_"),
    [
        # precision 2/3, recall 2/2: F1 = 2 · 2/3 · 1 / (5/3) = 0.8
        ("hotpotqa", "Barack Hussein Obama", ["Barack Obama"], 0, 0.8),
        ("hotpotqa", "the Barack, Obama!", ["Barack Obama"], 1, 1.0),
        ("hotpotqa", "yes", ["yes"], 1, 1.0),
        ("hotpotqa", "Yes.", ["yes"], 1, 1.0),
        ("hotpotqa", "yes it is", ["yes"], 0, 0.0),
        ("hotpotqa", "no", ["no way"], 0, 0.0),
        ("hotpotqa", "noanswer", ["the noanswer case"], 0, 0.0),
        ("hotpotqa", "the", ["a"], 1, 0.0),
        ("2wikimultihopqa", "yes it is", ["yes"], 0, 0.0),
        ("2wikimultihopqa", "French", ["France", "French", "Frenchman"], 1, 1.0),
        ("2wikimultihopqa", "4 May 1900", ["May 4, 1900"], 0, 1.0),
        ("musique", "yes it is", ["yes"], 0, 0.5),
        ("musique", "the", ["a"], 1, 1.0),
        ("musique", "the", ["a b"], 0, 0.0),
        ("musique", "Mets", ["Pittsburgh Pirates", "Mets", "New York Mets"], 1, 1.0),
        # words are counted: two of "a a b" … "b b c" share one b of two and two
        ("musique", "b b c", ["x b"], 0, 0.4),
        ("musique", "München", ["münchen"], 1, 1.0),
    ],
)
def test_worked_cases(dataset, prediction, golds, em, f1_):
    scores = score(dataset, prediction, golds)
    assert scores["em"] == em
    assert scores["f1"] == pytest.approx(f1_)


def test_f1_and_exact_match_are_symmetric_enough():
    rules = RULES["hotpotqa"]
    assert f1("a b c", "c d", rules) == pytest.approx(f1("c d", "b c a", rules))
    assert exact_match("x", "y") == 0


def test_errors_name_what_exists():
    with pytest.raises(ValueError, match="musique"):
        score("triviaqa", "x", ["x"])
    with pytest.raises(ValueError, match="gold answer"):
        score("musique", "x", [])
