"""One play of a ScienceWorld task by the expert, and how its observations are read.

The expert's plans (`plans`) are functions that play a task through a `Playthrough`. They see what a
player sees, and always choose the same in the same situation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from stepagent.envs.scienceworld.gateway import JavaError
from stepagent.envs.scienceworld.jvm import Simulator

_UNKNOWN = ("No known action matches", "Unknown action")
_QUESTION = "Ambiguous request"


class PlanEnded(Exception):
    """The episode is over, its steps are used up, or the plan does not fit the task."""


class UnknownAction(PlanEnded):
    """The parser does not know the action: what it names is not there."""


class Playthrough:
    """One play of a task from its start, or from where the actions `before` lead to.

    `do` raises PlanEnded when there is nothing left to do, UnknownAction if it did nothing, and
    SimulatorError if the Java process fails.
    """

    def __init__(
        self,
        simulator: Simulator,
        task: str,
        variation: int,
        switches: Sequence[str],
        limit: int,
        before: Sequence[str] = (),
    ):
        start = simulator.start(task, variation, switches)
        self._simulator, self._limit = simulator, limit
        self.goal, self.score, self._needed = start.description, start.score, 0
        for action in before:
            with suppress(JavaError):
                self.score = max(self.score, simulator.step(action)[1])
        self._actions: list[str] = []
        self._room = ""
        self.unknown_actions = 0
        """Actions tried that the parser does not know, which `actions` leaves out."""

    @property
    def actions(self) -> tuple[str, ...]:
        """What was done up to the best score, answers to questions included."""
        return tuple(self._actions[: self._needed])

    def do(self, action: str, *other_names: str, number: int = 0) -> str:
        """Takes an action, or the first of its other names that the parser knows; returns
        what is seen. A question is answered with `number`."""
        if len(self._actions) >= self._limit:
            raise PlanEnded
        observation, score, over = self._simulator.step(action)
        if observation.startswith(_UNKNOWN):
            self.unknown_actions += 1
            if not other_names:
                raise UnknownAction(action)
            return self.do(*other_names, number=number)
        self._record(action, score, over)
        return self.do(str(number)) if observation.startswith(_QUESTION) else observation

    def answer(self, text: str) -> None:
        """Answers a numbered question that was open at the start, or cancels it: by no number."""
        if len(self._actions) >= self._limit:
            raise PlanEnded
        _, score, over = self._simulator.step(text)
        self._record(text, score, over)

    def _record(self, action: str, score: float, over: bool) -> None:
        self._actions.append(action)
        if score > self.score:
            self.score, self._needed = score, len(self._actions)
        if over or score < 0:
            raise PlanEnded

    def go(self, room: str) -> None:
        """Teleports to a room, unless this was where it went last."""
        if room != self._room:
            self.do(f"teleport to {room}")
            self._room = room

    def look(self) -> str:
        return self.do("look around")


Plan = Callable[[Playthrough], None]
"""Plays a task as far as it can; PlanEnded may be raised at any time."""


def read(pattern: str, text: str) -> tuple[str, ...]:
    """The groups of a pattern; raises PlanEnded if the text does not match."""
    match = re.search(pattern, text)
    if not match:
        raise PlanEnded
    return match.groups()
