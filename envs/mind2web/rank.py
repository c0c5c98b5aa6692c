"""Ranking of a page's candidates against task and history, for when no ranks are given.

MindAct ranks with a trained cross-encoder and keeps the best 50; its published ranks are read by
`data.read_ranks`. Our own ranking is BM25 (Robertson & Zaragoza, 2009) over the candidates of one
page: each is a short text (its attributes, its own words, and those beside it), the query is the
task and the last actions. Among equals, interactive elements come first. A custom ranking is a
`Ranker`, named `module:Class`; `agents.cross_encoder` has one that runs a cross-encoder from
Hugging Face (this layer knows no model library).
"""

from __future__ import annotations

import importlib
import math
import re
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stepagent.envs.mind2web.prune import Candidate, Page, attributes_text
from stepagent.envs.mind2web.records import RecordedStep

HISTORY = 5
"""Actions of the history that observations show and ranking uses."""
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\da-zA-Z_]+")
_STOP_WORDS = (
    "a an the of for to in on at and or with by from is are be it its this that i my me you your "
    "as if not no all any"
)
_STOP = frozenset(_STOP_WORDS.split())
_ACTIVE = frozenset({"a", "button", "input", "select", "textarea", "option", "label", "summary"})


class Ranker(ABC):
    """Scores candidates. A subclass named `module:Class` can be given to the environment."""

    @abstractmethod
    def scores(self, query: str, texts: Sequence[str]) -> Sequence[float]:
        """A score for each text (higher is better), for one page's candidates."""


class BM25(Ranker):
    """BM25 over the texts of one page.

    Parameters
    ----------
    k1: how soon repetitions stop counting. Usual range 0.5 to 2.
    b: how much long texts are discounted, 0 to 1.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        if k1 < 0 or not 0 <= b <= 1:
            raise ValueError(f"BM25: k1 is {k1} (0 or more is due) and b is {b} (0 to 1)")
        self.k1, self.b = k1, b

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        documents = [Counter(terms(text)) for text in texts]
        lengths = [sum(document.values()) for document in documents]
        mean = sum(lengths) / max(1, len(lengths)) or 1.0
        counts = Counter(terms(query))
        frequency = Counter(term for document in documents for term in document if term in counts)
        weights = {
            term: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) * min(counts[term], 2)
            for term, n in frequency.items()
        }
        return [
            sum(
                weight * n * (self.k1 + 1) / (n + self.k1 * (1 - self.b + self.b * length / mean))
                for term, weight in weights.items()
                if (n := document.get(term))
            )
            for document, length in zip(documents, lengths, strict=True)
        ]


@lru_cache(maxsize=65536)
def terms(text: str) -> tuple[str, ...]:
    """The stems of a text's words; names such as `searchInput` and `zip_code` are split.

    >>> terms("Searching the zipCode_1")
    ('search', 'zip', 'code', '1')
    """
    words = [word.lower() for word in _PART.findall(text)]
    return tuple(_stemmer().stemWords([word for word in words if word not in _STOP]))


_local = threading.local()


def _stemmer() -> Any:
    """This thread's stemmer (Snowball's is not thread-safe)."""
    if not hasattr(_local, "stemmer"):
        _local.stemmer = importlib.import_module("Stemmer").Stemmer("english")
    return _local.stemmer


def make_ranker(ranker: str | Ranker, args: Mapping[str, Any] | None = None) -> Ranker:
    """The ranker of a name: "bm25", or `module:Class` of a subclass of `Ranker`.

    Raises ValueError if there is none of that name, or where `args` do not fit.
    """
    if isinstance(ranker, Ranker):
        return ranker
    module, _, name = ranker.partition(":")
    kind: Any = BM25
    if ranker != "bm25":
        try:
            kind = getattr(importlib.import_module(module), name) if name.isidentifier() else None
        except (ImportError, AttributeError) as error:
            raise ValueError(f"no ranker {ranker!r} ({error})") from None
        # Only rankers: a setting must not be able to call an arbitrary function.
        if not (isinstance(kind, type) and issubclass(kind, Ranker)):
            raise ValueError(
                f"unknown ranker {ranker!r}: choose 'bm25', or name a subclass of "
                "envs.mind2web.rank.Ranker as 'module:Class', such as "
                "'stepagent.agents.cross_encoder:CrossEncoder'"
            )
    try:
        return kind(**(args or {}))
    except TypeError as error:
        raise ValueError(f"ranker {ranker!r}: {error}") from None


def query(instruction: str, history: Sequence[str]) -> str:
    """The query against which candidates are ranked."""
    return "\n".join([instruction, *history[-HISTORY:]])


def text_of(candidate: Candidate, page: Page) -> str:
    """A candidate as one short text: tag, attributes, words in it and beside it."""
    if candidate.node not in page:
        return f"{candidate.tag} {attributes_text(dict(candidate.attributes))}"
    own = page.words(candidate.node)
    return f"{candidate.tag} {own} {page.around(candidate.node)}" if len(own) < 80 else own


def ranked(step: RecordedStep, page: Page, instruction: str, ranker: Ranker) -> list[Candidate]:
    """The step's candidates, best first."""
    texts = [text_of(candidate, page) for candidate in step.candidates]
    scores = ranker.scores(query(instruction, step.history), texts)
    order = sorted(
        range(len(texts)),
        key=lambda i: (-scores[i], step.candidates[i].tag not in _ACTIVE, i),
    )
    return [step.candidates[i] for i in order]


def recall(ranks: Sequence[tuple[Sequence[str], Sequence[str]]], k: int) -> float:
    """Share of steps with a positive among the best k, of (node ids best first, positives) pairs.

    >>> recall([(["a", "b"], ["b"]), (["c"], ["d"])], 2)
    0.5
    """
    hits = [bool(set(order[:k]) & set(positives)) for order, positives in ranks]
    return sum(hits) / max(1, len(hits))
