"""Plans for tasks about living things: finding them, life spans, life stages, growing plants.

Upstream's paths pick at random among equals and walk until plants have grown. Here the choice is
the first thing listed that fits, and time is passed by waiting.
"""

from __future__ import annotations

import re

from stepagent.envs.scienceworld.attempt import Attempt, Over, read

LONGEST_LIVED = (
    "giant tortoise", "parrot", "elephant", "crocodile", "brown bear", "beaver", "wolf", "chipmunk",
    "frog", "toad", "rabbit", "hedgehog", "mouse", "chameleon", "dragonfly", "ant",
)  # fmt: skip
"""Animals by typical life span, longest first, as the simulator has them (a toad's egg is shown as
a frog egg)."""
_ANIMAL = r"\ta ((?:baby|juvenile|hatchling|adult) (?!bee)[\w ]+|[\w ]+ egg)\n"
_POTTED = r"\ta (flower pot \d+) \(containing a (\w+ (?:tree|plant)) in"


def find(attempt: Attempt) -> None:
    """The first animal outside, plant in the greenhouse or picture beside the box, into the box."""
    kind, box, room = read(r"find a\(n\) (.+?)\. .* to the (.+ box) in the (.+)\.", attempt.goal)
    if kind == "non-living thing":
        attempt.go(room)
        (thing,) = read(r"\b((?:finger )?painting|picture|drawing|battery)\b", attempt.look())
        attempt.do(f"focus on {thing}")
        attempt.do(f"move {thing} to {box}")
        return
    if kind == "plant":
        attempt.go("greenhouse")
        carried, thing = read(_POTTED, attempt.look())
        attempt.do(f"focus on {thing} in {carried}")
    else:
        attempt.go("outside")
        (carried,) = read(_ANIMAL, attempt.look())
        attempt.do(f"focus on {carried}")
    attempt.do(f"pick up {carried}")
    attempt.go(room)
    attempt.do(f"move {carried} to {box}")


def lifespan(attempt: Attempt) -> None:
    """The animal outside with the longest, or the shortest, or the longest and shortest life."""
    attempt.go("outside")
    names = re.findall(_ANIMAL, attempt.look())
    animals = [name for kind in LONGEST_LIVED for name in names if re.search(rf"\b{kind}\b", name)]
    if not animals:
        raise Over
    if "longest" in attempt.goal:
        attempt.do(f"focus on {animals[0]}")
    if "shortest" in attempt.goal:
        attempt.do(f"focus on {animals[-1]}")


def animal_stages(attempt: Attempt) -> None:
    """A life stage lasts as long as two waits: name the animal, wait, look what it has become."""
    (kind,) = read(r"life stages of the (.+),", attempt.goal)
    attempt.go("outside")
    seen = attempt.look()
    for name in _stages(kind):
        if f" {name}\n" not in seen:
            attempt.do("wait")
            attempt.do("wait")
            seen = attempt.look()
        attempt.do(f"focus on {name}")


def _stages(kind: str) -> list[str]:
    """What an animal is called in each stage of its life, earliest first."""
    if kind in ("butterfly", "moth"):
        return ["butterfly egg", "caterpillar", "butterfly pupa", "adult butterfly"]
    if kind in ("frog", "common toad"):
        return ["frog egg", "tadpole", "adult frog"]
    born = [f"{kind} egg", f"hatchling {kind}"]
    if kind in ("wolf", "beaver", "elephant", "brown bear"):
        born = [f"baby {kind}"]
    return [*born, f"juvenile {kind}", f"adult {kind}"]


def plant_stages(attempt: Attempt) -> None:
    """The plants stand in pots outside, one in each stage; which one may change while we name."""
    (kind,) = read(r"life stages of the (\w+) plant", attempt.goal)
    attempt.go("outside")
    seen = attempt.look()
    for stage in ("seed", "seedling", "adult", "reproducing"):
        shown = f"{kind} seed" if stage == "seed" else f"{kind} tree in the {stage} stage"
        (pot,) = read(rf"a ([\w ]*flower pot \d+) \(containing a {shown}", seen)
        attempt.do(f"focus on {shown} in {pot}", f"focus on {kind} seed in the seed stage in {pot}")


# Growing --------------------------------------------------------------------------------------


def grow(attempt: Attempt, keep_bees: bool = True) -> None:
    """Seeds into pots with soil; pots water themselves. Fruit needs two plants, bees and time.

    `keep_bees`: shut the doors so that the bees stay in the greenhouse, if any is there.
    """
    kind, room = read(r"grow a (\w+)\b.*found in the ([\w ]+)\.", attempt.goal)
    fruit = "crosspollinated" in attempt.goal
    attempt.go(room)
    attempt.do("pick up seed jar")
    attempt.go("greenhouse")
    seen = attempt.look()
    if fruit and keep_bees:
        attempt.do("close door to hallway")
        attempt.do("close door to outside")
    pots = re.findall(r"\ta (flower pot \d+) \(", seen)[: 2 if fruit else 1]
    if not pots:
        raise Over
    if "containing soil" not in seen:
        _fetch_soil(attempt, seen, len(pots))
        for pot in pots:
            attempt.do(f"move soil in inventory to {pot}")
    for pot in pots:
        attempt.do(f"move {kind} seed in seed jar to {pot}")
    if not fruit:
        attempt.do(f"focus on {kind} seed in {pots[0]}")
        while True:
            attempt.do("wait")
    for _ in range(3):
        attempt.do("wait")
    while not re.search(rf"you see: [^()]*\b{kind}\b", attempt.look()):
        attempt.do("wait")
    attempt.do(f"focus on {kind} in {kind} tree")


def _fetch_soil(attempt: Attempt, greenhouse: str, pots: int) -> None:
    """Soil for so many pots: what lies in the greenhouse, then out of the ground outside."""
    if "\tsoil\n" in greenhouse:
        attempt.do("pick up soil")
        pots -= 1
    if not pots:
        return
    if "\ta shovel\n" in greenhouse:
        attempt.do("pick up shovel")
    attempt.go("outside")
    for _ in range(pots):
        attempt.do("use shovel on ground")
        attempt.do("pick up soil in outside")
    attempt.go("greenhouse")
