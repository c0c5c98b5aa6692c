"""Questions: text, gold answers, hops, and the paragraphs that come with them.

The same record for the three data sets and for the bundled encyclopedia; `data.py` reads files into
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from stepagent.envs.wikipedia.corpus import Page


@dataclass(frozen=True)
class Hop:
    """One step of the reasoning: a sub-question, and the page that answers it."""

    title: str
    """Title of the page that supports the step."""
    facts: tuple[str, ...] = ()
    """The supporting sentences on it, if the data set has them."""
    question: str = ""
    """The sub-question; "" if the data set has no decomposition."""
    answer: str = ""
    """Its answer; "" if the data set has no decomposition."""
    text: str = ""
    """The page's text in the data set (several of its passages may share a title)."""


@dataclass(frozen=True)
class Question:
    """A multi-hop question."""

    id: str
    kind: str
    """bridge, comparison, compositional, inference, bridge_comparison, 2hop, 3hop1, …"""
    text: str
    answers: tuple[str, ...]
    """The gold answer first, then its aliases."""
    hops: tuple[Hop, ...] = ()
    """In the order of the reasoning; empty if the file has no supporting facts."""
    passages: tuple[Page, ...] = ()
    """The paragraphs that the question comes with, supporting and distracting."""

    @property
    def task_id(self) -> str:
        return f"{self.kind}/{self.id}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Question:
        return Question(
            id=data["id"],
            kind=data["kind"],
            text=data["text"],
            answers=tuple(data["answers"]),
            hops=tuple(Hop(**{**hop, "facts": tuple(hop["facts"])}) for hop in data["hops"]),
            passages=tuple(Page(**page) for page in data["passages"]),
        )


def pooled_pages(questions: list[Question]) -> Iterator[Page]:
    """The paragraphs of all questions, one after the other (with repetitions)."""
    return (page for question in questions for page in question.passages)
