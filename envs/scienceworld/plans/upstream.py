"""Upstream's gold path, made fit for the paper's prompt and step limits.

Upstream's path walks through every door, and opens what stands open. The paper's prompt offers
teleporting, and its step limits are too short for walking. So a walk becomes one `teleport to`, and
what changes nothing is left out. The path as it is given is the last resort.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest

from stepagent.envs.scienceworld.playthrough import Plan, Playthrough, UnknownAction

_WALK = re.compile(r"(?:go to|open door to) (?P<place>.+)")
_NOTHING = re.compile(r"pour (.+) into \1")
_LOST = re.compile(r"ERROR FINDING UNIQUE REFERENT FOR \((.+?)(?: \d+)?\)")


def plans(path: Sequence[str], switches: Sequence[str]) -> Iterator[Plan]:
    """Plays of upstream's path, the shortest first."""
    if "teleportAction" in switches:
        short = teleporting(path)
        direct = without_searching(short)
        yield from map(replay, (direct, without_measuring(direct), short))
    yield replay(path)


def replay(path: Sequence[str]) -> Plan:
    def plan(play: Playthrough) -> None:
        for action, answer in zip_longest(path, path[1:], fillvalue=""):
            if action.isdigit():
                continue  # the answer to a question, given with it
            number = int(answer) if answer.isdigit() else 0
            with suppress(UnknownAction):
                play.do(action, *_other_names(action), number=number)

    return plan


def _other_names(action: str) -> list[str]:
    """What the path may have meant where the parser does not know it.

    Upstream's path numbers things of one name ("bee 2"), and gives up where it finds no name.
    """
    if lost := _LOST.fullmatch(action):
        return [f"pick up {lost[1]}"]
    plain = re.sub(r" \d+(?=$| )", "", action)
    return [plain, re.sub(r"\b(adult|baby|juvenile) ", "", plain)]


def without_measuring(actions: Sequence[str]) -> list[str]:
    """The path without looks at how far a substance has come; only waiting moves it on."""
    return [a for a in actions if not a.startswith(("examine ", "use thermometer"))]


def without_searching(actions: Sequence[str]) -> list[str]:
    """The path without rooms that are only looked into on the way to another."""
    path: list[str] = []
    for action in actions:
        if action.startswith("teleport to"):
            while path and (path[-1].startswith("teleport to") or path[-1] == "look around"):
                path.pop()
        if action == "look around" and path and path[-1] == action:
            continue
        path.append(action)
    return path


def teleporting(gold: Sequence[str]) -> list[str]:
    """The path with every walk through doors as one `teleport to`, and nothing opened: where one
    may teleport, the prompt's promise holds that all is open."""
    path: list[str] = []
    place = ""
    for action in [*gold, ""]:
        if walk := _WALK.fullmatch(action):
            place = walk["place"] if action.startswith("go") else place
            continue
        if place:
            path.append(f"teleport to {place}")
            place = ""
        if not action.startswith("open ") and not _NOTHING.fullmatch(action):
            path.append(action)
    return path[:-1]
