"""Scores of an answer: exact match and F1, by the rules of each data set. Pure functions.

Answers are normalised as in SQuAD (Rajpurkar et al., 2016): lower case, no ASCII punctuation,
no articles, single blanks. The paper's score of an episode is the exact match.

| data set        | gold answers         | yes / no / noanswer                                 |
|-----------------|----------------------|-----------------------------------------------------|
| HotpotQA        | the answer           | F1 is 0 unless both sides are the same word         |
| 2WikiMultihopQA | answer and aliases   | the same                                            |
| MuSiQue         | answer and aliases   | words like any other; two empty answers are equal   |

>>> score("hotpotqa", "The Beatles!", ["beatles"])
{'em': 1.0, 'f1': 1.0}
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Rules:
    """What a data set's own scorer does besides normalising."""

    whole_words: frozenset[str]
    """Normalised answers that only match an equal answer."""
    empty_f1: float
    """F1 of two answers without any remaining word (such as an article)."""


_YES_NO = frozenset({"yes", "no", "noanswer"})
RULES = {
    "hotpotqa": Rules(_YES_NO, 0.0),
    "2wikimultihopqa": Rules(_YES_NO, 0.0),
    "musique": Rules(frozenset(), 1.0),
}


def normalize(answer: str) -> str:
    """The answer in the form that is compared.

    >>> normalize("An  Apple, the (red) one.")
    'apple red one'
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if both are the same after normalisation, else 0.0."""
    return float(normalize(prediction) == normalize(gold))


def f1(prediction: str, gold: str, rules: Rules) -> float:
    """Harmonic mean of precision and recall over the words of both, in [0, 1].

    >>> round(f1("Barack Hussein Obama", "Barack Obama", RULES["hotpotqa"]), 3)
    0.8
    >>> f1("yes it is", "yes", RULES["hotpotqa"]), f1("yes it is", "yes", RULES["musique"])
    (0.0, 0.5)
    """
    answer, gold_text = normalize(prediction), normalize(gold)
    if answer != gold_text and (answer in rules.whole_words or gold_text in rules.whole_words):
        return 0.0
    if not answer and not gold_text:
        return rules.empty_f1
    my_words, gold_words = answer.split(), gold_text.split()
    shared = sum((Counter(my_words) & Counter(gold_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(my_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def score(dataset: str, prediction: str, golds: Iterable[str]) -> dict[str, float]:
    """`{"em": …, "f1": …}`, each the best over the gold answers.

    Raises ValueError for an unknown data set or if there is no gold answer.
    """
    if dataset not in RULES:
        raise ValueError(f"unknown data set {dataset!r}: choose one of {', '.join(RULES)}")
    golds = list(golds)
    if not golds:
        raise ValueError("an answer needs at least one gold answer to be compared with")
    return {
        "em": max(exact_match(prediction, gold) for gold in golds),
        "f1": max(f1(prediction, gold, RULES[dataset]) for gold in golds),
    }
