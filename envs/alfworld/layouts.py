"""The 120 AI2-THOR rooms whose layouts alfworld ships, and what it says about things in general.

The package (MIT; `stepagent install alfworld-data`) has, for every room, the things in it and the
places of its receptacles, and the rules of the game (`alfred.pddl`, `alfred.twl2`, what fits
where). They are read from there; nothing is copied here.
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepagent import optional
from stepagent.files import read_text

ROOMS = tuple(kind + number for kind in (0, 200, 300, 400) for number in range(1, 31))
"""Kitchens, living rooms, bedrooms, bathrooms."""
TEST_ROOMS = tuple(room for room in ROOMS if room % 100 > 25)
LAMPS = ("DeskLamp", "FloorLamp")

_STEM = {"SinkBasin": "Sink", "BathtubBasin": "Bathtub"}
"""A basin is named after what contains it: `Sink|x|y|z|SinkBasin`."""


@dataclass(frozen=True)
class Catalogue:
    """What the package says about things in general."""

    domain: str
    grammar: str
    fits: Mapping[str, frozenset[str]]
    """Type of receptacle → types of things it can hold."""
    able: Mapping[str, frozenset[str]]
    """Cleanable, Heatable, Coolable, Toggleable, Sliceable → types of things."""
    openable: frozenset[str]
    movable: frozenset[str]
    """Portable receptacles such as bowls: things, for the text engine."""


@dataclass(frozen=True)
class Room:
    """A room's receptacles, and the types of things that occur in it."""

    number: int
    receptacles: tuple[tuple[str, str, tuple[int, ...]], ...]
    """(type, name such as `Cabinet|+00.68|+00.50|-02.20`, where the agent stands to use it)."""
    things: tuple[str, ...]


def package() -> Path:
    """The folder of the installed alfworld package. Raises MissingPackage."""
    spec = importlib.util.find_spec("alfworld")
    if spec is None or not spec.submodule_search_locations:
        raise optional.missing(
            "alfworld", "a generated ALFWorld game", "or point data= to ALFWorld's own games"
        )
    return Path(next(iter(spec.submodule_search_locations)))


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    folder = package()
    # Loaded as a single file: importing the package would import TextWorld.
    spec = importlib.util.spec_from_file_location(
        "stepagent_alfworld_constants", folder / "gen" / "constants.py"
    )
    assert spec is not None
    assert spec.loader is not None
    constants: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    able = {name: frozenset(kinds) for name, kinds in constants.VAL_ACTION_OBJECTS.items()}
    fits = {name: frozenset(kinds) for name, kinds in constants.VAL_RECEPTACLE_OBJECTS.items()}
    movable = frozenset(constants.MOVABLE_RECEPTACLES)
    openable = frozenset(constants.OPENABLE_CLASS_LIST) - movable
    domain = read_text(folder / "data" / "alfred.pddl")
    grammar = read_text(folder / "data" / "alfred.twl2")
    return Catalogue(domain, grammar, fits, able, openable, movable)


@lru_cache(maxsize=len(ROOMS))
def room(number: int) -> Room:
    """One of the 120 rooms."""
    layouts = package() / "gen" / "layouts"
    known = catalogue()
    stands: dict[str, Any] = _json(layouts / f"FloorPlan{number}-openable.json")
    kinds: list[str] = sorted(_json(layouts / f"FloorPlan{number}-objects.json"))
    receptacles = []
    for name in sorted(stands):
        kind, *rest = name.split("|")
        if len(rest) > 3:  # Sink|x|y|z|SinkBasin
            kind = rest[3]
        if kind in known.fits:
            x, z, turn, tilt = stands[name]
            stand = (round(4 * x), round(4 * z), round(turn / 90) % 4, round(tilt))
            receptacles.append((kind, name, stand))
    placed = {kind for kind, _, _ in receptacles}
    rng = random.Random(number)
    for kind in kinds:  # the layouts leave out the places of burners, bins and the like
        if kind in known.fits and kind not in known.movable and kind not in placed:
            for _ in range(rng.randint(2, 4) if kind == "StoveBurner" else 1):
                x, z = rng.uniform(-3, 3), rng.uniform(-3, 3)
                name = f"{_STEM.get(kind, kind)}|{x:+06.2f}|+00.90|{z:+06.2f}"
                name += f"|{kind}" if kind in _STEM else ""
                stand = (round(4 * x), round(4 * z), rng.randrange(4), 30)
                receptacles.append((kind, name, stand))
    things = tuple(
        kind
        for kind in kinds
        if kind in LAMPS
        or (kind not in placed and any(kind in held for held in known.fits.values()))
    )
    return Room(number, tuple(receptacles), things)


def _json(path: Path) -> Any:
    return json.loads(read_text(path))
