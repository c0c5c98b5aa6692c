"""The question about a page: one direct answer, or MindAct's rounds of multiple choice.

`Direct` shows the page around all candidates and takes one answer. `Rounds` shows the page around
five candidates at a time, as choices B to F beside `A. None of the above`; a chosen element
waits for another round, until at most one is left, whose last operation is the answer. Choices are
in the order of the page, as upstream. Unlike upstream, one that is left without ever having been
shown gets a round of its own (upstream scores the step 0, though the agent did nothing wrong).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from stepagent.envs.mind2web.answers import (
    NONE,
    OPERATIONS,
    Answer,
    read_choice,
    read_direct,
    write_choice,
    write_direct,
)
from stepagent.envs.mind2web.prune import Candidate, View

GROUP = 5
"""Elements in one round of multiple choice."""
ANSWERS = ("direct", "choice")
Draw = Callable[[tuple[Candidate, ...]], View]
"""Shows the page around some candidates."""


@dataclass(frozen=True)
class Decision:
    """The chosen element (its node id; None: none) and the operation."""

    node: str | None
    op: str = ""
    value: str = ""


class Question(ABC):
    """A question about one page, which an agent answers in one turn or several."""

    view: View

    @abstractmethod
    def text(self) -> str:
        """The page and what can be answered now."""

    @abstractmethod
    def answer(self, action: str) -> tuple[Decision | None, str]:
        """Takes an answer: (decision, or None if the question continues; what was wrong)."""

    @abstractmethod
    def turns(self) -> int:
        """Answers that the question may take in all."""

    @abstractmethod
    def best(self, positives: Sequence[str], op: str, value: str) -> str:
        """The right answer now, or the nearest one."""

    def copy(self) -> Question:
        """One that can be answered without answering this one."""
        return copy.copy(self)

    def admissible(self) -> list[str]:
        """An answer for each element shown: its usual operation; each option of a select."""
        answers = []
        for number, tag in enumerate(self.view.tags):
            options = self.view.options.get(number, ())
            if options:
                answers += [self._write(number, "SELECT", option) for option in options]
            else:
                typed = tag in ("input", "textarea") and "checkbox" not in self.view.labels[number]
                answers.append(self._write(number, "TYPE" if typed else "CLICK", ""))
        return answers

    @abstractmethod
    def _write(self, number: int, op: str, value: str) -> str: ...

    def _wrong(self, answer: Answer | None, expected: str, value_of: str = "") -> str:
        """What is wrong with an answer; "" if nothing is. `value_of`: a value that is accepted as
        it is."""
        if answer is None:
            return (
                f"That answer was not understood. Operations are {', '.join(OPERATIONS)}; write "
                f"{expected}."
            )
        if answer.number is None:
            return ""
        if answer.number >= len(self.view.nodes):
            return f"There was no element {self._write(answer.number, answer.op, '')!r} to act on."
        options = self.view.options.get(answer.number, ())
        if answer.op == "SELECT" and options and answer.value not in (*options, value_of):
            shown = ", ".join(options[:8])
            return f"{answer.value[:80]!r} was not among the options: {shown}."
        return ""


class Direct(Question):
    """One answer, such as `CLICK [12]`."""

    def __init__(self, candidates: tuple[Candidate, ...], draw: Draw, value: str):
        self.view, self._value = draw(candidates), value

    def text(self) -> str:
        return f"Page:\n{self.view.text}"

    def turns(self) -> int:
        return 1

    def answer(self, action: str) -> tuple[Decision | None, str]:
        answer = read_direct(action)
        wrong = self._wrong(answer, "CLICK [n], TYPE [n] [text] or SELECT [n] [value]", self._value)
        if answer is None:
            return Decision(None), wrong
        known = answer.number is not None and answer.number < len(self.view.nodes)
        node = self.view.nodes[answer.number or 0] if known else None
        return Decision(node, answer.op, answer.value), wrong

    def best(self, positives: Sequence[str], op: str, value: str) -> str:
        number = _first(self.view.nodes, positives)
        return write_direct(number if number is not None else len(self.view.nodes), op, value)

    def _write(self, number: int, op: str, value: str) -> str:
        return write_direct(number, op, value)


class Rounds(Question):
    """Rounds of five, answered `A` or such as `C. SELECT [value]`."""

    def __init__(self, candidates: Iterable[Candidate], draw: Draw, value: str):
        self._waiting, self._draw, self._value = list(candidates), draw, value
        self._last = Decision(None)
        self._turns = max(1, -(-(len(self._waiting) - 1) // (GROUP - 1)))
        self._next()

    def copy(self) -> Rounds:
        twin = copy.copy(self)
        twin._waiting = list(self._waiting)
        return twin

    def _next(self) -> None:
        group = tuple(self._waiting[:GROUP])
        del self._waiting[:GROUP]
        self._group = {candidate.node: candidate for candidate in group}
        self.view = self._draw(group)

    def text(self) -> str:
        choices = [f"{chr(ord('B') + i)}. {label}" for i, label in enumerate(self.view.labels)]
        return "\n".join(
            [f"Page:\n{self.view.text}", "Choices:", f"{NONE}. None of the above", *choices]
        )

    def turns(self) -> int:
        return self._turns

    def answer(self, action: str) -> tuple[Decision | None, str]:
        answer = read_choice(action)
        letters = "B" if len(self.view.nodes) == 1 else f"B to {chr(64 + len(self.view.nodes) + 1)}"
        wrong = self._wrong(
            answer, f"A, or a letter ({letters}) and an operation, such as B. CLICK", self._value
        )
        number = answer.number if answer else None
        if answer and number is not None and number < len(self.view.nodes):
            node = self.view.nodes[number]
            self._last = Decision(node, answer.op, answer.value)
            self._waiting.append(self._group[node])
        if len(self._waiting) > 1 or (self._waiting and self._last.node is None):
            self._next()
            return None, wrong
        return (self._last if self._waiting else Decision(None)), wrong

    def best(self, positives: Sequence[str], op: str, value: str) -> str:
        number = _first(self.view.nodes, positives)
        return write_choice(number, op, value) if number is not None else NONE

    def admissible(self) -> list[str]:
        return [NONE, *super().admissible()]

    def _write(self, number: int, op: str, value: str) -> str:
        return write_choice(number, op, value)


def _first(nodes: Sequence[str], positives: Sequence[str]) -> int | None:
    return next((i for i, node in enumerate(nodes) if node in positives), None)
