"""Plans for tasks about living things: finding them, life spans, life stages, growing plants.

Upstream's paths pick at random among equals and walk until plants have grown. Here the choice is
the first thing listed that fits, and time is passed by waiting.
"""

from __future__ import annotations

import re

from stepagent.envs.scienceworld.playthrough import PlanEnded, Playthrough, read

LONGEST_LIVED = (
    "giant tortoise", "parrot", "elephant", "crocodile", "brown bear", "beaver", "wolf", "chipmunk",
    "frog", "toad", "rabbit", "hedgehog", "mouse", "chameleon", "dragonfly", "ant",
)  # fmt: skip
"""Animals by typical life span, longest first, as the simulator has them (a toad's egg is shown as
a frog egg)."""
_ANIMAL = r"\ta ((?:baby|juvenile|hatchling|adult) (?!bee)[\w ]+|[\w ]+ egg)\n"
_POTTED = r"\ta (flower pot \d+) \(containing a (\w+ (?:tree|plant)) in"


def find(play: Playthrough) -> None:
    """The first animal outside, plant in the greenhouse or picture beside the box, into the box."""
    kind, box, room = read(r"find a\(n\) (.+?)\. .* to the (.+ box) in the (.+)\.", play.goal)
    if kind == "non-living thing":
        play.go(room)
        (thing,) = read(r"\b((?:finger )?painting|picture|drawing|battery)\b", play.look())
        play.do(f"focus on {thing}")
        play.do(f"move {thing} to {box}")
        return
    if kind == "plant":
        play.go("greenhouse")
        carried, thing = read(_POTTED, play.look())
        play.do(f"focus on {thing} in {carried}")
    else:
        play.go("outside")
        (carried,) = read(_ANIMAL, play.look())
        play.do(f"focus on {carried}")
    play.do(f"pick up {carried}")
    play.go(room)
    play.do(f"move {carried} to {box}")


def lifespan(play: Playthrough) -> None:
    """The animal outside with the longest, or the shortest, or the longest and shortest life."""
    play.go("outside")
    names = re.findall(_ANIMAL, play.look())
    animals = [name for kind in LONGEST_LIVED for name in names if re.search(rf"\b{kind}\b", name)]
    if not animals:
        raise PlanEnded
    if "longest" in play.goal:
        play.do(f"focus on {animals[0]}")
    if "shortest" in play.goal:
        play.do(f"focus on {animals[-1]}")


def animal_stages(play: Playthrough) -> None:
    """A life stage lasts as long as two waits: name the animal, wait, look what it has become."""
    (kind,) = read(r"life stages of the (.+),", play.goal)
    play.go("outside")
    seen = play.look()
    for name in _stages(kind):
        if f" {name}\n" not in seen:
            play.do("wait")
            play.do("wait")
            seen = play.look()
        play.do(f"focus on {name}")


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


def plant_stages(play: Playthrough) -> None:
    """The plants stand in pots outside, one in each stage; which one may change while we name."""
    (kind,) = read(r"life stages of the (\w+) plant", play.goal)
    play.go("outside")
    seen = play.look()
    for stage in ("seed", "seedling", "adult", "reproducing"):
        shown = f"{kind} seed" if stage == "seed" else f"{kind} tree in the {stage} stage"
        (pot,) = read(rf"a ([\w ]*flower pot \d+) \(containing a {shown}", seen)
        play.do(f"focus on {shown} in {pot}", f"focus on {kind} seed in the seed stage in {pot}")


# Growing --------------------------------------------------------------------------------------


def grow(play: Playthrough, keep_bees: bool = True) -> None:
    """Seeds into pots with soil; pots water themselves. Fruit needs two plants, bees and time.

    `keep_bees`: shut the doors so that the bees stay in the greenhouse, if any is there.
    """
    kind, room = read(r"grow a (\w+)\b.*found in the ([\w ]+)\.", play.goal)
    fruit = "crosspollinated" in play.goal
    play.go(room)
    play.do("pick up seed jar")
    play.go("greenhouse")
    seen = play.look()
    if fruit and keep_bees:
        play.do("close door to hallway")
        play.do("close door to outside")
    pots = re.findall(r"\ta (flower pot \d+) \(", seen)[: 2 if fruit else 1]
    if not pots:
        raise PlanEnded
    if "containing soil" not in seen:
        _fetch_soil(play, seen, len(pots))
        for pot in pots:
            play.do(f"move soil in inventory to {pot}")
    for pot in pots:
        play.do(f"move {kind} seed in seed jar to {pot}")
    if not fruit:
        play.do(f"focus on {kind} seed in {pots[0]}")
        while True:
            play.do("wait")
    for _ in range(3):
        play.do("wait")
    while not re.search(rf"you see: [^()]*\b{kind}\b", play.look()):
        play.do("wait")
    play.do(f"focus on {kind} in {kind} tree")


def _fetch_soil(play: Playthrough, greenhouse: str, pots: int) -> None:
    """Soil for so many pots: what lies in the greenhouse, then out of the ground outside."""
    if "\tsoil\n" in greenhouse:
        play.do("pick up soil")
        pots -= 1
    if not pots:
        return
    if "\ta shovel\n" in greenhouse:
        play.do("pick up shovel")
    play.go("outside")
    for _ in range(pots):
        play.do("use shovel on ground")
        play.do("pick up soil in outside")
    play.go("greenhouse")
