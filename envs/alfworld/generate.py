"""Generated games: new households in the rooms of `envs.alfworld.layouts`.

A game is generated from its id when it is needed: the seed draws a room, fills it, and picks a goal
that the room allows; the planner proves that it can be won. Test games play in rooms that
train and dev never see (the last five of each kind: kitchens, living rooms, bedrooms, bathrooms).
`stepagent alfworld-export` writes them in upstream's own layout.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from stepagent.envs.alfworld import engine, planner
from stepagent.envs.alfworld.household import TYPES
from stepagent.envs.alfworld.layouts import LAMPS, ROOMS, TEST_ROOMS, Room, catalogue, room
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.core import SPLITS, checked_sizes, checksum

VERSION = 1
"""Version of the generator: increased whenever the same id would give another game."""
SIZES = (500, 40, 40)
"""Games of each of the six types in train, dev and test."""
MAX_SIZE = 100_000
MAX_PLAN = 20
_TRIES = 200

_MARKS = {"|": "_bar_", "+": "_plus_", "-": "_minus_", ".": "_dot_", ",": "_comma_"}
_LAMP_PLACES = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "Shelf")
_ABLE = {"Cleanable": "cleanable", "Heatable": "heatable", "Coolable": "coolable"}
_TOOL = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
_STATE = {"Cleanable": "isClean", "Heatable": "isHot", "Coolable": "isCool"}


class GeneratedGames:
    """The source of generated games. Ids: `<type>/<split>-<number>`.

    sizes: games of each type in train, dev and test. More are the same ones and further ones.
    Raises ValueError for anything but three numbers from 1 to `MAX_SIZE`.
    """

    def __init__(self, sizes: Sequence[int] = SIZES):
        self._sizes = dict(zip(SPLITS, checked_sizes(sizes), strict=True))
        if max(self._sizes.values()) > MAX_SIZE:
            raise ValueError(f"sizes is {sizes!r}: the most is {MAX_SIZE:,} games of each type")

    def tasks(self, split: str) -> tuple[str, ...]:
        return tuple(f"{kind}/{split}-{n:04d}" for n in range(self._sizes[split]) for kind in TYPES)

    def load(self, task_id: str) -> dict[str, Any]:
        return make(task_id)

    def left_out(self, split: str) -> dict[str, int]:
        return {}

    def checksum(self) -> str:
        return checksum(f"generated {VERSION}", str(self._sizes))


def make(task_id: str) -> dict[str, Any]:
    """The game of an id, as the content of a `game.tw-pddl` (with upstream's `walkthrough`).

    Always the same for the same id. Raises ValueError for an id of no split or type.
    """
    kind, _, rest = task_id.partition("/")
    split = rest.partition("-")[0]
    if kind not in TYPES or split not in SPLITS:
        raise ValueError(
            f"{task_id!r} is not the id of a generated game, such as {TYPES[0]}/test-0001"
        )
    for attempt in range(_TRIES):
        rng = random.Random(f"{VERSION}/{task_id}/{attempt}")
        rooms = TEST_ROOMS if split == "test" else tuple(r for r in ROOMS if r not in TEST_ROOMS)
        drawn = _Draft(kind, room(rng.choice(rooms)), rng).draw(task_id)
        if drawn is None:
            continue
        try:
            moves = planner.plan(engine.load(drawn).start())
        except GameError:
            continue
        if 0 < len(moves) <= MAX_PLAN:
            return {**drawn, "solvable": True, "walkthrough": [move.command for move in moves]}
    raise AssertionError(f"no game for {task_id} in {_TRIES} tries")


class _Draft:
    """A room being filled for a task of some type."""

    def __init__(self, kind: str, place: Room, rng: random.Random):
        self.kind, self.room, self.rng, self.known = kind, place, rng, catalogue()
        self.by_type: dict[str, list[str]] = {}
        self.stands: dict[str, tuple[int, ...]] = {}
        for recep, name, stand in place.receptacles:
            self.by_type.setdefault(recep, []).append(name)
            self.stands[name] = stand
        self.objects: dict[str, tuple[str, str]] = {}
        """Thing → (type, receptacle)."""

    def draw(self, task_id: str) -> dict[str, Any] | None:
        """The game, or None if the room does not allow this type of task."""
        goal = self._goal()
        if goal is None:
            return None
        thing, target = goal
        for kind in self.room.things:
            count = self.rng.choice((1, 1, 1, 2, 2, 3))
            if kind == thing:
                count = max(count, 2 if self.kind == TYPES[5] else 1)
            for _ in range(1 if kind in LAMPS else count):
                self._place(kind, away_from=target if kind == thing else "")
        words = _phrase(self.kind, thing, target, self.rng)
        return {
            "pddl_domain": self.known.domain,
            "grammar": self.known.grammar.replace("UNKNOWN GOAL", words),
            "pddl_problem": self._problem(task_id, thing, target),
            "task": {"type": self.kind, "object": thing, "target": target, "words": words}
            | {"room": self.room.number},
        }

    def _goal(self) -> tuple[str, str] | None:
        """(type of thing, type of receptacle or lamp)."""
        lamps = [kind for kind in self.room.things if kind in LAMPS]
        things = [kind for kind in self.room.things if kind not in LAMPS]
        if self.kind == TYPES[1]:
            small = [t for t in things if self._homes(t)]
            if not lamps or not small or not any(p in self.by_type for p in _LAMP_PLACES):
                return None
            return self.rng.choice(small), self.rng.choice(lamps)
        ability, tool = _TOOL.get(self.kind, ("", ""))
        if tool and tool not in self.by_type:
            return None
        choices = [
            (thing, target)
            for thing in things
            if not ability or thing in self.known.able[ability]
            for target in self.by_type
            if thing in self.known.fits[target] and set(self._homes(thing)) - {target}
        ]
        return self.rng.choice(choices) if choices else None

    def _homes(self, kind: str) -> list[str]:
        """Types of the room's receptacles where a thing of the type can be."""
        if kind in LAMPS:
            return [home for home in _LAMP_PLACES if home in self.by_type]
        return sorted(home for home in self.by_type if kind in self.known.fits[home])

    def _place(self, kind: str, away_from: str) -> None:
        homes = [home for home in self._homes(kind) if home != away_from]
        if not homes:
            return
        weights = [1 if home in self.known.openable else 2 for home in homes]
        where = self.rng.choice(self.by_type[self.rng.choices(homes, weights)[0]])
        x, y, z = (float(part) for part in where.split("|")[1:4])
        for _ in range(20):
            dx, dz = self.rng.uniform(-0.4, 0.4), self.rng.uniform(-0.4, 0.4)
            name = f"{kind}|{x + dx:+06.2f}|{y + 0.05:+06.2f}|{z + dz:+06.2f}"
            if name not in self.objects:
                self.objects[name] = (kind, where)
                return

    # Writing PDDL -----------------------------------------------------------------------------

    def _problem(self, task_id: str, thing: str, target: str) -> str:
        known = self.known
        stands = {name: "loc|" + "|".join(map(str, stand)) for name, stand in self.stands.items()}
        x, z = self.rng.randint(-12, 12), self.rng.randint(-12, 12)
        start = f"loc|{x}|{z}|{self.rng.randrange(4)}|15"
        kinds = sorted(
            set().union(*known.fits.values()) | {kind for kind, _ in self.objects.values()}
        )
        objects = ["agent1 - agent"]
        objects += [
            f"{kind}Type - otype" for kind in sorted({*kinds, "Knife", "ButterKnife", *LAMPS})
        ]
        homes = sorted(set(known.fits) - known.movable)
        places = sorted({*homes, "Sink", "SinkBasin", "Microwave", "Fridge"})
        objects += [f"{kind}Type - rtype" for kind in places]
        objects += [f"{_id(name)} - object" for name in self.objects]
        objects += [f"{_id(name)} - receptacle" for name in self.stands]
        objects += [f"{_id(loc)} - location" for loc in sorted({start, *stands.values()})]
        facts = [f"atLocation agent1 {_id(start)}"]
        for kind, names in self.by_type.items():
            for name in names:
                facts.append(f"receptacleType {_id(name)} {kind}Type")
                facts.append(f"receptacleAtLocation {_id(name)} {_id(stands[name])}")
                if kind in known.openable:
                    facts.append(f"openable {_id(name)}")
        for name, (kind, where) in self.objects.items():
            facts.append(f"objectType {_id(name)} {kind}Type")
            facts.append(f"inReceptacle {_id(name)} {_id(where)}")
            facts.append(f"objectAtLocation {_id(name)} {_id(stands[where])}")
            facts += [f"{word} {_id(name)}" for word in self._abilities(kind)]
        for home in homes:
            facts += [f"canContain {home}Type {kind}Type" for kind in sorted(known.fits[home])]
        name = task_id.replace("/", "_")
        return (
            f"(define (problem {name})\n(:domain alfred)\n(:objects\n{_lines(objects)}\n)\n"
            f"(:init\n{_lines(f'({fact})' for fact in facts)}\n(= (total-cost) 0)\n)\n"
            f"(:goal {_goal(self.kind, thing, target)})\n(:metric minimize (total-cost))\n)\n"
        )

    def _abilities(self, kind: str) -> list[str]:
        known = self.known
        words = [word for ability, word in _ABLE.items() if kind in known.able[ability]]
        words += ["sliceable"] if kind in known.able["Sliceable"] else []
        words += ["isReceptacleObject"] if kind in known.movable else []
        return (
            [*words, "toggleable"] if kind in known.able["Toggleable"] else [*words, "pickupable"]
        )


def _id(name: str) -> str:
    for sign, mark in _MARKS.items():
        name = name.replace(sign, mark)
    return name


def _lines(items: Iterable[str]) -> str:
    return "\n".join(f"  {item}" for item in items)


def _goal(kind: str, thing: str, target: str) -> str:
    """The goal in PDDL."""
    if kind == TYPES[1]:
        return (
            "(and (exists (?o - object ?a - agent) "
            f"(and (objectType ?o {thing}Type) (holds ?a ?o))) "
            "(exists (?t - object ?r - receptacle ?a - agent ?l - location) "
            f"(and (objectType ?t {target}Type) (toggleable ?t) (isToggled ?t) "
            "(receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r))))"
        )
    if kind == TYPES[5]:
        return (
            f"(exists (?r - receptacle) (and (receptacleType ?r {target}Type) "
            "(exists (?o - object ?p - object) (and (not (= ?o ?p)) "
            f"(objectType ?o {thing}Type) (objectType ?p {thing}Type) "
            "(inReceptacle ?o ?r) (inReceptacle ?p ?r)))))"
        )
    state = ""
    if kind in _TOOL:
        ability = _TOOL[kind][0]
        state = f"({_ABLE[ability]} ?o) ({_STATE[ability]} ?o) "
    return (
        f"(exists (?r - receptacle ?o - object) (and (objectType ?o {thing}Type) "
        f"(receptacleType ?r {target}Type) {state}(inReceptacle ?o ?r)))"
    )


_PHRASES = {
    TYPES[0]: (
        "put a {o} in {r}",
        "place some {o} on {r}",
        "find a {o} and leave it in/on the {r}",
        "a {o} belongs in/on the {r}, so bring one there",
    ),
    TYPES[1]: (
        "look at a {o} under the {r}",
        "examine a {o} with the {r}",
        "hold a {o} into the light of the {r}",
        "take a {o} and switch on a {r} to see it",
    ),
    TYPES[2]: (
        "put a clean {o} in {r}",
        "wash a {o} and put it in/on the {r}",
        "clean some {o} and bring it to the {r}",
        "a {o} is to be rinsed, then left in/on the {r}",
    ),
    TYPES[3]: (
        "put a hot {o} in {r}",
        "heat some {o} and put it in {r}",
        "warm up a {o}, then leave it in/on the {r}",
        "bring a heated {o} to the {r}",
    ),
    TYPES[4]: (
        "put a cool {o} in {r}",
        "cool some {o} and put it in {r}",
        "chill a {o}, then leave it in/on the {r}",
        "bring a cold {o} to the {r}",
    ),
    TYPES[5]: (
        "put two {o} in {r}",
        "find two {o} and put them in {r}",
        "bring two pieces of {o} together in/on one {r}",
        "collect a {o} and another {o} in/on the same {r}",
    ),
}
"""Ways to say a goal."""


def _phrase(kind: str, thing: str, target: str, rng: random.Random) -> str:
    return rng.choice(_PHRASES[kind]).format(o=thing.lower(), r=target.lower())
