"""The expert: the recorded actions, with a reasoned thought before each.

The thought says why the task needs the action, in a wording drawn from the task's id, so that it is
the same in every process. In rounds of multiple choice the expert takes the recorded element
wherever it is offered, and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from zlib import crc32

from stepagent.envs.core import Plan
from stepagent.envs.mind2web.answers import NONE
from stepagent.envs.mind2web.questions import Question
from stepagent.envs.mind2web.records import RecordedStep, Task

_TARGET = re.compile(
    r"\[(?P<role>[^\]]*+)\]\s*+(?P<label>(?:\S|\s++)*?)\s*->\s*+\w++(?:: .*)?\Z", re.DOTALL
)


def plan(task: Task, questions: Iterable[Question], first: int = 0) -> Plan:
    """(thought, action) pairs; `questions` are those of the task's steps from `first` on, in order.
    They are answered."""
    pairs = []
    for number, question in enumerate(questions, first):
        step = task.steps[number]
        decision = None
        while decision is None:
            action = question.best(step.positives, step.op, step.value)
            thought = _passing(task, number) if action == NONE else _thought(task, number)
            pairs.append((thought, action))
            decision, _ = question.answer(action)
    return pairs


def _thought(task: Task, number: int) -> str:
    step = task.steps[number]
    words = {
        "it": _element(step),
        "value": step.value,
        "next": _next(task, number),
        "first": "To begin with" if number == 0 else "Next",
    }
    return _chosen(_REASONS.get(step.op, _REASONS["CLICK"]), task, number).format_map(words)


def _passing(task: Task, number: int) -> str:
    words = {"it": _element(task.steps[number])}
    return _chosen(_PASSING, task, number).format_map(words)


def _chosen(reasons: tuple[str, ...], task: Task, number: int) -> str:
    return reasons[crc32(f"{task.id}/{number}".encode("utf-8", "replace")) % len(reasons)]


def _element(step: RecordedStep) -> str:
    """The recorded element in words: `the link "Rooms"`."""
    match = _TARGET.match(step.target)
    if match and match["label"]:
        return f'the {match["role"] or "element"} "{match["label"][:80]}"'
    if match and match["role"]:
        return f"the {match['role']}"
    tags = {c.node: c.tag for c in step.candidates}
    tag = next((tags[node] for node in step.positives if tags.get(node)), "")
    return f"the {_TAGS.get(tag, tag) or 'element'} that fits"


def _next(task: Task, number: int) -> str:
    """What the action prepares."""
    if number + 1 == len(task.steps):
        return "and the task is done"
    following = task.steps[number + 1]
    purpose = {"TYPE": "to fill in", "SELECT": "to choose in"}.get(following.op, "to reach")
    return f"{purpose} {_element(following)}"


_TAGS = {"a": "link", "input": "field", "select": "list", "textarea": "field", "svg": "symbol"}
_REASONS: dict[str, tuple[str, ...]] = {
    "CLICK": (
        "{first} comes {it}, {next}.",
        "On this page {it} is what brings the task on, {next}.",
        "I need {it} now, {next}.",
    ),
    "TYPE": (
        "The task names {value}, and {it} is where that belongs.",
        "{first} I write {value} into {it}, {next}.",
    ),
    "SELECT": (
        "The task asks for {value}, which {it} offers.",
        "{first} I set {it} to {value}, {next}.",
    ),
}
_PASSING = (
    "What the task needs now is {it}, and that is not among these.",
    "None of these serves the task at this point; I look for {it}.",
)
