"""The planner: a shortest path to the goal from any state, with full knowledge of the house.

A plan is a few stops: where a thing is taken, where it is cleaned, heated or cooled, where it is
put down (or looked at). Going, opening and acting cost one action each, so every choice of things
and places is tried and the cheapest is taken. The only choice not searched exhaustively is where to
put something useless that is held at the start (the few nearest places are tried).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from stepagent.envs.alfworld.engine import Play
from stepagent.envs.alfworld.household import TOOLS, Household
from stepagent.envs.alfworld.pddl import GameError


@dataclass(frozen=True)
class Stop:
    """One action at a receptacle; an empty action: only being there."""

    receptacle: str
    action: str = ""
    thing: str = ""
    opens: bool = False
    """The receptacle must be open for it."""


@dataclass(frozen=True)
class Move:
    """One command of a plan and its purpose."""

    purpose: str
    """search, fetch, tool, target, lamp or drop, then the action: go, open, take, put, …"""
    thing: str
    receptacle: str
    command: str


def plan(play: Play) -> list[Move]:
    """Moves that win from the play's state, which is not changed.

    Raises GameError if the goal cannot be reached.
    """
    if play.won():
        return []
    house = Household(play.copy())
    start, shut = house.location, {r for r in house.receptacles if house.shut(r)}
    places, best, cost = house.receptacles, None, 1 << 30
    for route in _routes(house):
        at, opened, steps = start, set(), 0
        for stop in route:
            if places[stop.receptacle] != at:
                at, steps = places[stop.receptacle], steps + 1
            if stop.opens and stop.receptacle in shut and stop.receptacle not in opened:
                opened.add(stop.receptacle)
                steps += 1
            steps += bool(stop.action)
        if steps < cost:
            best, cost = route, steps
    moves = [] if best is None else list(_carried_out(house, best))
    if not house.play.won():
        raise GameError("the goal cannot be reached: what it needs is not in the house")
    return moves


def _carried_out(house: Household, route: list[Stop]) -> Iterator[Move]:
    for stop in route:
        r, thing = stop.receptacle, stop.thing
        purpose = _PURPOSES.get(stop.action, "tool")
        if purpose == "target" and not house.suits(thing):
            purpose = "drop"
        if house.receptacles[r] != house.location:
            yield _move(house, purpose, "go", "gotolocation", thing, r)
        if stop.opens and house.shut(r):
            yield _move(house, purpose, "open", "openobject", thing, r)
        if stop.action:
            yield _move(house, purpose, "do", stop.action, thing, r)


_PURPOSES = {"pickupobject": "fetch", "putobject": "target", "toggleobject": "lamp", "": "lamp"}


def _move(house: Household, purpose: str, what: str, action: str, thing: str, r: str) -> Move:
    things = {"r": r} if what in ("go", "open") else {"o": thing, "r": r}
    command = house.do(action, **things)
    if command is None:
        raise GameError(f"the house does not allow what the goal needs: {action} {things}")
    return Move(f"{purpose}-{what}", thing, r, command)


def _routes(house: Household) -> Iterator[list[Stop]]:
    goal, held = house.goal, house.held
    things = [t for t in house.of_type(goal.object_type) if house.suits(t)]
    if goal.lamp_type:
        for thing in things:
            for fetch in _fetches(house, thing, held):
                for lamp in house.of_type(goal.lamp_type):
                    if place := house.place_of(lamp):
                        lit = ("istoggled", lamp) in house.play.facts
                        action = "" if lit else "toggleobject"
                        yield [*fetch, Stop(place, action, lamp)]
        return
    targets = [r for r in house.of_type(goal.receptacle_type) if r in house.receptacles]
    for target in targets:
        fitting = [t for t in things if house.can_hold(target, t)]
        there = [t for t in fitting if house.place_of(t) == target and house.ready(t)]
        left = [t for t in fitting if t not in there]
        for chosen in permutations(left, max(goal.count - len(there), 0)):
            yield from _deliveries(house, chosen, target, held)


def _deliveries(
    house: Household, things: tuple[str, ...], target: str, held: str | None
) -> Iterator[list[Stop]]:
    """Ways to bring the things to the target, one after the other."""
    if not things:
        if held is None:
            yield []
        return
    first, *rest = things
    for fetch in _fetches(house, first, held):
        for tool in _tools(house, first):
            way = [*fetch, *tool, Stop(target, "putobject", first, opens=True)]
            for further in _deliveries(house, tuple(rest), target, None):
                yield [*way, *further]


def _fetches(house: Household, thing: str, held: str | None) -> Iterator[list[Stop]]:
    """Ways to get hold of the thing."""
    if held == thing:
        yield []
        return
    place = house.place_of(thing)
    if place is None or ("pickupable", thing) not in house.play.facts:
        return
    take = Stop(place, "pickupobject", thing, opens=True)
    if held is None:
        yield [take]
        return
    near = (house.location, house.receptacles.get(place))
    free = [r for r in house.receptacles if house.can_hold(r, held)]
    free.sort(key=lambda r: (house.receptacles[r] not in near, house.shut(r)))
    for r in free[:6]:
        yield [Stop(r, "putobject", held, opens=True), take]


def _tools(house: Household, thing: str) -> Iterator[list[Stop]]:
    """Ways to get the thing into the required state."""
    if house.ready(thing):
        yield []
        return
    action, kind = TOOLS[house.goal.state]
    for r in house.of_type(kind):
        if r in house.receptacles:
            yield [Stop(r, action, thing)]
