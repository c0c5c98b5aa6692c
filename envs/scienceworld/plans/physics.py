"""Plans for tasks of the laboratory: states of matter, temperatures, circuits, colours.

Upstream's paths measure after every step, beyond the paper's step limits, and try devices that are
broken in half of the variations. Here everything goes to a device that always works.
"""

from __future__ import annotations

import re
from itertools import count

from stepagent.envs.scienceworld.playthrough import PlanEnded, Playthrough, read

LIQUIDS = ("water", "orange juice", "apple juice", "mercury")
FROZEN = ("ice", "ice cream")
"""What a blast furnace turns to vapour at once."""
SOFT = (*FROZEN, "chocolate", "marshmallow", "soap", "rubber")
"""What melts in an oven, and would catch fire in a blast furnace."""
_MIXED = {"orange": ("red", "yellow"), "green": ("yellow", "blue"), "violet": ("red", "blue")}
"""Secondary colours and what they are mixed from."""


def change_state(play: Playthrough) -> None:
    """The blast furnace melts and boils everything; the workshop's freezer freezes everything.

    To melt a liquid it is frozen first; to freeze a solid it is melted first, in the metal pot.
    """
    verb, thing = read(r"to (boil|melt|freeze|change [a-z ]+ of) (.+?)\.", play.goal)
    liquid = thing in LIQUIDS
    carried = _take(play, thing, liquid)
    if (thing in FROZEN and verb in ("boil", "melt")) or (verb == "freeze" and not liquid):
        _melt_in_pot(play, carried, "oven" if thing in SOFT else "blast furnace")
        carried = "metal pot"
    if verb == "freeze" or (verb == "melt" and liquid):
        _freeze(play, carried)
    _heat(play, carried)
    while True:
        play.do("wait")


def _melt_in_pot(play: Playthrough, carried: str, device: str) -> None:
    """Melts a solid in the kitchen's metal pot, and takes the pot out before it gets too hot.

    Whether it has melted is read off the score, which rises by a third.
    """
    before = play.score
    play.go("kitchen")
    play.do(f"move {carried} to metal pot in cupboard")
    play.do("pick up metal pot in cupboard")
    if device != "oven":
        play.go("foundry")
    play.do(f"move metal pot in inventory to {device}")
    play.do(f"activate {device}")
    for i in count():
        if play.score > before + 0.2:
            break
        play.do(f"look in {device}" if i < 8 else "wait")
    play.do(f"pick up metal pot in {device}")


def _take(play: Playthrough, thing: str, liquid: bool) -> str:
    """Focuses on the substance and takes it along; returns what is then carried."""
    play.go("kitchen")
    if thing == "water":
        play.do("pick up metal pot in cupboard")
        play.go("outside")
        play.do("dunk metal pot into fountain")
        play.do("focus on water in metal pot", "focus on substance in metal pot")
        return "metal pot"
    pattern = rf"(?:called |containing |[:,] (?:an? )?)({thing})(?=[,.)\n])"
    seen = play.look()
    if not re.search(pattern, seen):
        play.go("workshop")
        seen = play.look()
    if liquid:
        (holder,) = read(
            rf"a ([a-z]+ cup|jug|[a-z]+ pot) \(containing (?:a substance called )?{thing}", seen
        )
        play.do(f"focus on {thing} in {holder}")
        play.do(f"pick up {holder} containing {thing}", f"pick up {holder}")
        return holder
    play.do(f"pick up {thing}")
    play.do(f"focus on {thing} in inventory", "focus on substance in inventory")
    return f"{thing} in inventory"


def _heat(play: Playthrough, carried: str) -> None:
    play.go("foundry")
    play.do(f"move {carried} to blast furnace")
    play.do("activate blast furnace")


def _freeze(play: Playthrough, carried: str) -> None:
    """Into the freezer of the workshop until it has changed, then it is taken out again."""
    play.go("workshop")
    play.do(f"move {carried} to ultra low temperature freezer")
    before = play.do("look in ultra low temperature freezer")
    play.do("wait")
    while play.do("look in ultra low temperature freezer") == before:
        play.do("wait")
    play.do(f"pick up {carried}")


# Circuits and colours -------------------------------------------------------------------------


def circuit(play: Playthrough) -> None:
    """A source and two wires make the device run; wind and sun are outside."""
    (device,) = read(r"turn on the ([\w ]+?)(?: by powering|\.)", play.goal)
    play.go("workshop")
    seen = play.look()
    wires = _wires(seen, 2)
    source = "battery"
    if "nonrenewable" in play.goal:
        (source,) = read(r"\ta ((?:gas|nuclear) generator)", seen)
    elif "renewable" in play.goal:
        (source,) = read(r"\ta (solar panel|wind generator)", seen)
    play.do(f"focus on {device}")
    if source in ("solar panel", "wind generator"):
        for thing in (device, source, *wires):
            play.do(f"pick up {thing}")
        play.go("outside")
    play.do(f"connect {source} anode to {wires[0]} terminal 1")
    play.do(f"connect {source} cathode to {wires[1]} terminal 1")
    play.do(f"connect {wires[0]} terminal 2 to cathode in {device}")
    play.do(f"connect {wires[1]} terminal 2 to anode in {device}")
    if source.endswith("generator"):
        play.do(f"activate {source}")
    while True:
        play.do("wait1")


def _wires(seen: str, number: int) -> list[str]:
    """The first wires that are seen; raises PlanEnded if there are fewer than `number`."""
    wires = re.findall(r"a (\w+ wire)[,.\n]", seen)[:number]
    if len(wires) < number:
        raise PlanEnded
    return wires


def conductivity(play: Playthrough) -> None:
    """Battery, bulb and the thing in one circuit: does the bulb shine?"""
    thing, room = read(r"if (.+?) is electrically.* located around the ([\w ]+)\.", play.goal)
    boxes = read(r"conductive, place it in the (\w+ box).*place it in the (\w+ box)", play.goal)
    play.go(room)
    if thing not in (seen := play.look()):
        raise PlanEnded
    if "battery" in seen:
        play.do(f"focus on {thing}")
    else:
        play.do(f"pick up {thing}")
        play.do(f"focus on {thing}")
        play.go("workshop")
        seen = play.look()
    wires = _wires(seen, 3)
    (bulb,) = read(r"a (\w+ light bulb), which is off", seen)
    play.do(f"connect battery anode to {wires[0]} terminal 1")
    play.do(f"connect battery cathode to {wires[1]} terminal 1")
    play.do(f"connect {wires[0]} terminal 2 to cathode in {bulb}")
    play.do(f"connect {wires[2]} terminal 2 to anode in {bulb}")
    play.do(f"connect {thing} terminal 1 to {wires[1]} terminal 2")
    play.do(f"connect {thing} terminal 2 to {wires[2]} terminal 1")
    play.do("wait1")
    shines = f"{bulb}, which is on" in play.look()
    play.do(f"move {thing} to {boxes[0] if shines else boxes[1]}")


def mixture(play: Playthrough) -> None:
    """What the recipe asks for, brought together in the kitchen's metal pot and mixed."""
    substance, room = read(r"substance '(.+)'.* near the ([\w ]+)\.", play.goal)
    play.go("kitchen")
    play.do("pick up metal pot in cupboard")
    play.go(room)
    play.do("pick up recipe")
    (recipe,) = read(r"need to mix (.+)\.", play.do("read recipe"))
    play.look()
    parts = recipe.split(", ")
    for part in parts:
        if part != "water" and not part.endswith(" paint"):
            play.do(f"move {part} to metal pot")
    for part in parts:
        if part.endswith(" paint"):
            play.go("art studio")
            play.do(f"pour cup containing {part} in large cupboard into metal pot")
    if "water" in parts:
        play.go("outside")
        play.do("dunk metal pot into fountain")
    play.do("mix metal pot")
    play.do(
        f"focus on {substance}",
        f"focus on {substance} in metal pot",
        "focus on substance in metal pot",
    )


def paint(play: Playthrough) -> None:
    """Paints from the large cupboard, poured together in its drawer."""
    (colour,) = read(r"create ([\w-]+) paint", play.goal)
    secondary = next((c for c in _MIXED if c in colour.split("-")), "")
    if not secondary:
        raise PlanEnded
    drawer = "drawer in large cupboard"
    play.go("art studio")
    play.look()
    for base in _MIXED[secondary]:
        play.do(f"pour cup containing {base} paint in large cupboard into {drawer}")
    play.do(f"mix {drawer}")
    play.do(f"focus on {secondary} paint")
    for other in set(colour.split("-")) - {secondary}:
        play.do(f"pour cup containing {other} paint into {drawer}")
        play.do(f"mix {drawer}")
        play.do(f"focus on {colour} paint")


def temperature(play: Playthrough) -> None:
    """The kitchen's thermometer tells which box the thing belongs in."""
    thing, room = read(r"temperature of (.+?), which is located around the ([\w ]+)\.", play.goal)
    limit, above = read(r"above (-?[\d.]+) degrees celsius, place it in the (\w+ box)", play.goal)
    (below,) = read(r"below -?[\d.]+ degrees celsius, place it in the (\w+ box)", play.goal)
    (boxes,) = read(r"The boxes are located around the ([\w ]+)\.", play.goal)
    play.go("kitchen")
    play.do("pick up thermometer")
    play.do("focus on thermometer")
    play.go(room)
    if thing not in play.look():
        raise PlanEnded
    play.do(f"pick up {thing}")
    play.do(f"focus on {thing}")
    play.go(boxes)
    (degrees,) = read(r"of (-?\d+) degrees", play.do(f"use thermometer on {thing}"))
    play.do(f"move {thing} to {above if float(degrees) > float(limit) else below}")


def melting_point(play: Playthrough) -> None:
    """Heats a solid, or cools a liquid, and measures until it changes: above the limit or not?"""
    (thing,) = read(r"melting point of (.+?), which is located", play.goal)
    limit, above = read(r"above (-?[\d.]+) degrees celsius, focus on the (\w+ box)", play.goal)
    below, boxes = read(r"below .+, focus on the (\w+ box)\..* around the ([\w ]+)\.", play.goal)
    play.go("kitchen")
    play.do("pick up thermometer")
    play.do("focus on thermometer")
    pot = "metal pot"
    if thing in LIQUIDS:
        pot, device = _take(play, thing, liquid=True), "ultra low temperature freezer"
        play.go("workshop")
    else:
        device = "oven" if thing in (*SOFT, "gallium") else "blast furnace"
        play.look()
        play.do(f"focus on {thing}")
        play.do(f"move {thing} to metal pot in cupboard")
        play.do("pick up metal pot in cupboard")
        if device != "oven":
            play.go("foundry")
    play.do(f"move {pot} in inventory to {device}")
    if thing not in LIQUIDS:
        play.do(f"activate {device}")
    before = play.do(f"look in {device}")
    degrees = [_measure(play, thing, pot)]
    while play.do(f"look in {device}") == before:
        for _ in range(3 if len(degrees) > 4 else 0):  # it goes slowly
            play.do("wait")
        degrees.append(_measure(play, thing, pot))
    degrees.append(_measure(play, thing, pot))
    if min(degrees[-2:]) <= float(limit) <= max(degrees[-2:]):
        raise PlanEnded  # it changed so fast that the limit may lie on either side
    play.go(boxes)
    play.do(f"focus on {above if degrees[-1] > float(limit) else below}")


def _measure(play: Playthrough, thing: str, pot: str) -> int:
    """Degrees Celsius of what is in the pot."""
    names = (f"substance in {pot}", f"{thing} in {pot}", f"liquid {thing} in {pot}")
    seen = play.do(*(f"use thermometer on {name}" for name in names))
    return int(read(r"of (-?\d+) degrees", seen)[0])
