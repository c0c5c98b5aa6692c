"""Plans for tasks of the laboratory: states of matter, temperatures, circuits, colours.

Upstream's paths measure after every step, beyond the paper's step limits, and try devices that are
broken in half of the variations. Here everything goes to a device that always works.
"""

from __future__ import annotations

import re
from itertools import count

from stepagent.envs.scienceworld.attempt import Attempt, Over, read

LIQUIDS = ("water", "orange juice", "apple juice", "mercury")
FROZEN = ("ice", "ice cream")
"""What a blast furnace turns to vapour at once."""
SOFT = (*FROZEN, "chocolate", "marshmallow", "soap", "rubber")
"""What melts in an oven, and would catch fire in a blast furnace."""
_MIXED = {"orange": ("red", "yellow"), "green": ("yellow", "blue"), "violet": ("red", "blue")}
"""Secondary colours and what they are mixed from."""


def change_state(attempt: Attempt) -> None:
    """The blast furnace melts and boils everything; the workshop's freezer freezes everything.

    To melt a liquid it is frozen first; to freeze a solid it is melted first, in the metal pot.
    """
    verb, thing = read(r"to (boil|melt|freeze|change [a-z ]+ of) (.+?)\.", attempt.goal)
    liquid = thing in LIQUIDS
    carried = _take(attempt, thing, liquid)
    if (thing in FROZEN and verb in ("boil", "melt")) or (verb == "freeze" and not liquid):
        _melt_in_pot(attempt, carried, "oven" if thing in SOFT else "blast furnace")
        carried = "metal pot"
    if verb == "freeze" or (verb == "melt" and liquid):
        _freeze(attempt, carried)
    _heat(attempt, carried)
    while True:
        attempt.do("wait")


def _melt_in_pot(attempt: Attempt, carried: str, device: str) -> None:
    """Melts a solid in the kitchen's metal pot, and takes the pot out before it gets too hot.

    Whether it has melted is read off the score, which rises by a third.
    """
    before = attempt.score
    attempt.go("kitchen")
    attempt.do(f"move {carried} to metal pot in cupboard")
    attempt.do("pick up metal pot in cupboard")
    if device != "oven":
        attempt.go("foundry")
    attempt.do(f"move metal pot in inventory to {device}")
    attempt.do(f"activate {device}")
    for i in count():
        if attempt.score > before + 0.2:
            break
        attempt.do(f"look in {device}" if i < 8 else "wait")
    attempt.do(f"pick up metal pot in {device}")


def _take(attempt: Attempt, thing: str, liquid: bool) -> str:
    """Focuses on the substance and takes it along; returns what is then carried."""
    attempt.go("kitchen")
    if thing == "water":
        attempt.do("pick up metal pot in cupboard")
        attempt.go("outside")
        attempt.do("dunk metal pot into fountain")
        attempt.do("focus on water in metal pot", "focus on substance in metal pot")
        return "metal pot"
    listed = rf"(?:called |containing |[:,] (?:an? )?)({thing})(?=[,.)\n])"
    seen = attempt.look()
    if not re.search(listed, seen):
        attempt.go("workshop")
        seen = attempt.look()
    if liquid:
        (holder,) = read(
            rf"a ([a-z]+ cup|jug|[a-z]+ pot) \(containing (?:a substance called )?{thing}", seen
        )
        attempt.do(f"focus on {thing} in {holder}")
        attempt.do(f"pick up {holder} containing {thing}", f"pick up {holder}")
        return holder
    attempt.do(f"pick up {thing}")
    attempt.do(f"focus on {thing} in inventory", "focus on substance in inventory")
    return f"{thing} in inventory"


def _heat(attempt: Attempt, carried: str) -> None:
    attempt.go("foundry")
    attempt.do(f"move {carried} to blast furnace")
    attempt.do("activate blast furnace")


def _freeze(attempt: Attempt, carried: str) -> None:
    """Into the freezer of the workshop until it has changed, then it is taken out again."""
    attempt.go("workshop")
    attempt.do(f"move {carried} to ultra low temperature freezer")
    before = attempt.do("look in ultra low temperature freezer")
    attempt.do("wait")
    while attempt.do("look in ultra low temperature freezer") == before:
        attempt.do("wait")
    attempt.do(f"pick up {carried}")


# Circuits and colours -------------------------------------------------------------------------


def circuit(attempt: Attempt) -> None:
    """A source and two wires make the device run; wind and sun are outside."""
    (device,) = read(r"turn on the ([\w ]+?)(?: by powering|\.)", attempt.goal)
    attempt.go("workshop")
    seen = attempt.look()
    wires = _wires(seen, 2)
    source = "battery"
    if "nonrenewable" in attempt.goal:
        (source,) = read(r"\ta ((?:gas|nuclear) generator)", seen)
    elif "renewable" in attempt.goal:
        (source,) = read(r"\ta (solar panel|wind generator)", seen)
    attempt.do(f"focus on {device}")
    if source in ("solar panel", "wind generator"):
        for thing in (device, source, *wires):
            attempt.do(f"pick up {thing}")
        attempt.go("outside")
    attempt.do(f"connect {source} anode to {wires[0]} terminal 1")
    attempt.do(f"connect {source} cathode to {wires[1]} terminal 1")
    attempt.do(f"connect {wires[0]} terminal 2 to cathode in {device}")
    attempt.do(f"connect {wires[1]} terminal 2 to anode in {device}")
    if source.endswith("generator"):
        attempt.do(f"activate {source}")
    while True:
        attempt.do("wait1")


def _wires(seen: str, number: int) -> list[str]:
    """The first wires that are seen; raises Over where there are fewer than `number`."""
    wires = re.findall(r"a (\w+ wire)[,.\n]", seen)[:number]
    if len(wires) < number:
        raise Over
    return wires


def conductivity(attempt: Attempt) -> None:
    """Battery, bulb and the thing in one circuit: does the bulb shine?"""
    thing, room = read(r"if (.+?) is electrically.* located around the ([\w ]+)\.", attempt.goal)
    boxes = read(r"conductive, place it in the (\w+ box).*place it in the (\w+ box)", attempt.goal)
    attempt.go(room)
    if thing not in (seen := attempt.look()):
        raise Over
    if "battery" in seen:
        attempt.do(f"focus on {thing}")
    else:
        attempt.do(f"pick up {thing}")
        attempt.do(f"focus on {thing}")
        attempt.go("workshop")
        seen = attempt.look()
    wires = _wires(seen, 3)
    (bulb,) = read(r"a (\w+ light bulb), which is off", seen)
    attempt.do(f"connect battery anode to {wires[0]} terminal 1")
    attempt.do(f"connect battery cathode to {wires[1]} terminal 1")
    attempt.do(f"connect {wires[0]} terminal 2 to cathode in {bulb}")
    attempt.do(f"connect {wires[2]} terminal 2 to anode in {bulb}")
    attempt.do(f"connect {thing} terminal 1 to {wires[1]} terminal 2")
    attempt.do(f"connect {thing} terminal 2 to {wires[2]} terminal 1")
    attempt.do("wait1")
    shines = f"{bulb}, which is on" in attempt.look()
    attempt.do(f"move {thing} to {boxes[0] if shines else boxes[1]}")


def mixture(attempt: Attempt) -> None:
    """What the recipe asks for, brought together in the kitchen's metal pot and mixed."""
    wanted, room = read(r"substance '(.+)'.* near the ([\w ]+)\.", attempt.goal)
    attempt.go("kitchen")
    attempt.do("pick up metal pot in cupboard")
    attempt.go(room)
    attempt.do("pick up recipe")
    (recipe,) = read(r"need to mix (.+)\.", attempt.do("read recipe"))
    attempt.look()
    parts = recipe.split(", ")
    for part in parts:
        if part != "water" and not part.endswith(" paint"):
            attempt.do(f"move {part} to metal pot")
    for part in parts:
        if part.endswith(" paint"):
            attempt.go("art studio")
            attempt.do(f"pour cup containing {part} in large cupboard into metal pot")
    if "water" in parts:
        attempt.go("outside")
        attempt.do("dunk metal pot into fountain")
    attempt.do("mix metal pot")
    attempt.do(
        f"focus on {wanted}", f"focus on {wanted} in metal pot", "focus on substance in metal pot"
    )


def paint(attempt: Attempt) -> None:
    """Paints from the large cupboard, poured together in its drawer."""
    (colour,) = read(r"create ([\w-]+) paint", attempt.goal)
    secondary = next((c for c in _MIXED if c in colour.split("-")), "")
    if not secondary:
        raise Over
    drawer = "drawer in large cupboard"
    attempt.go("art studio")
    attempt.look()
    for base in _MIXED[secondary]:
        attempt.do(f"pour cup containing {base} paint in large cupboard into {drawer}")
    attempt.do(f"mix {drawer}")
    attempt.do(f"focus on {secondary} paint")
    for other in set(colour.split("-")) - {secondary}:
        attempt.do(f"pour cup containing {other} paint into {drawer}")
        attempt.do(f"mix {drawer}")
        attempt.do(f"focus on {colour} paint")


def temperature(attempt: Attempt) -> None:
    """The kitchen's thermometer tells which box the thing belongs in."""
    thing, room = read(
        r"temperature of (.+?), which is located around the ([\w ]+)\.", attempt.goal
    )
    limit, above = read(
        r"above (-?[\d.]+) degrees celsius, place it in the (\w+ box)", attempt.goal
    )
    (below,) = read(r"below -?[\d.]+ degrees celsius, place it in the (\w+ box)", attempt.goal)
    (boxes,) = read(r"The boxes are located around the ([\w ]+)\.", attempt.goal)
    attempt.go("kitchen")
    attempt.do("pick up thermometer")
    attempt.do("focus on thermometer")
    attempt.go(room)
    if thing not in attempt.look():
        raise Over
    attempt.do(f"pick up {thing}")
    attempt.do(f"focus on {thing}")
    attempt.go(boxes)
    (degrees,) = read(r"of (-?\d+) degrees", attempt.do(f"use thermometer on {thing}"))
    attempt.do(f"move {thing} to {above if float(degrees) > float(limit) else below}")


def melting_point(attempt: Attempt) -> None:
    """Heats a solid, or cools a liquid, and measures until it changes: above the limit or not?"""
    (thing,) = read(r"melting point of (.+?), which is located", attempt.goal)
    limit, above = read(r"above (-?[\d.]+) degrees celsius, focus on the (\w+ box)", attempt.goal)
    below, boxes = read(r"below .+, focus on the (\w+ box)\..* around the ([\w ]+)\.", attempt.goal)
    attempt.go("kitchen")
    attempt.do("pick up thermometer")
    attempt.do("focus on thermometer")
    pot = "metal pot"
    if thing in LIQUIDS:
        pot, device = _take(attempt, thing, liquid=True), "ultra low temperature freezer"
        attempt.go("workshop")
    else:
        device = "oven" if thing in (*SOFT, "gallium") else "blast furnace"
        attempt.look()
        attempt.do(f"focus on {thing}")
        attempt.do(f"move {thing} to metal pot in cupboard")
        attempt.do("pick up metal pot in cupboard")
        if device != "oven":
            attempt.go("foundry")
    attempt.do(f"move {pot} in inventory to {device}")
    if thing not in LIQUIDS:
        attempt.do(f"activate {device}")
    before = attempt.do(f"look in {device}")
    degrees = [_measure(attempt, thing, pot)]
    while attempt.do(f"look in {device}") == before:
        for _ in range(3 if len(degrees) > 4 else 0):  # it goes slowly
            attempt.do("wait")
        degrees.append(_measure(attempt, thing, pot))
    degrees.append(_measure(attempt, thing, pot))
    if min(degrees[-2:]) <= float(limit) <= max(degrees[-2:]):
        raise Over  # it changed so fast that the limit may lie on either side
    attempt.go(boxes)
    attempt.do(f"focus on {above if degrees[-1] > float(limit) else below}")


def _measure(attempt: Attempt, thing: str, pot: str) -> int:
    """Degrees Celsius of what is in the pot."""
    names = (f"substance in {pot}", f"{thing} in {pot}", f"liquid {thing} in {pot}")
    seen = attempt.do(*(f"use thermometer on {name}" for name in names))
    return int(read(r"of (-?\d+) degrees", seen)[0])
