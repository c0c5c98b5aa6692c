"""What the experts know of a household: its goal, its places, and how to do a thing in it.

The engine (`envs.alfworld.engine`) plays any game of the kind; this module knows ALFWorld's own
predicates and actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from stepagent.envs.alfworld.engine import Command, Game, Play
from stepagent.envs.alfworld.pddl import GameError

TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six types of tasks."""
TOOLS = {
    "isclean": ("cleanobject", "sinkbasintype"),
    "ishot": ("heatobject", "microwavetype"),
    "iscool": ("coolobject", "fridgetype"),
}
"""Required state of a thing → the action that achieves it, and the type of place for it."""


@dataclass(frozen=True)
class HouseholdGoal:
    """The game's goal: `count` things of a type in one place, or one looked at in light."""

    object_type: str
    receptacle_type: str = ""
    state: str = ""
    """"", or the required state: isclean, ishot, iscool."""
    able: tuple[str, ...] = ()
    """Required abilities of the thing: cleanable, …"""
    lamp_type: str = ""
    count: int = 1


def read_goal(game: Game) -> HouseholdGoal:
    """Raises GameError for a goal that is not one of ALFWorld's six kinds."""
    if len(game.problem.goal) != 1:
        raise GameError("the goal has alternatives: none of ALFWorld's six kinds")
    atoms = game.problem.goal[0].atoms
    types = {a.terms[0]: a.terms[1] for a in atoms if a.predicate == "objecttype"}
    places = [a.terms[1] for a in atoms if a.predicate == "receptacletype"]
    terms = {a.predicate: a.terms for a in atoms}
    if "istoggled" in terms and "holds" in terms:
        thing, lamp = terms["holds"][1], terms["istoggled"][0]
        if thing in types and lamp in types:
            return HouseholdGoal(types[thing], lamp_type=types[lamp])
    things = list(dict.fromkeys(a.terms[0] for a in atoms if a.predicate == "inreceptacle"))
    if things and places and all(types.get(v) == types.get(things[0], "") for v in things):
        state = next((name for name in TOOLS if name in terms), "")
        able = tuple(n for n in ("cleanable", "heatable", "coolable") if n in terms)
        return HouseholdGoal(types[things[0]], places[0], state, able, count=len(things))
    raise GameError("the goal is none of ALFWorld's six kinds")


class Household:
    """A game being played, as the experts look at it."""

    def __init__(self, play: Play):
        self.play, self.game = play, play.game
        self.goal = read_goal(self.game)

    # What never changes -----------------------------------------------------------------------

    @cached_property
    def receptacles(self) -> dict[str, str]:
        """Receptacle → its location, in the order of the names in the text."""
        locations = {f[1]: f[2] for f in self.play.facts.find("receptacleatlocation", None, None)}
        return dict(sorted(locations.items(), key=lambda item: natural(self.name(item[0]))))

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Thing or receptacle → its type, such as appletype."""
        facts = self.play.facts
        thing_types = {f[1]: f[2] for f in facts.find("objecttype", None, None)}
        return thing_types | {f[1]: f[2] for f in facts.find("receptacletype", None, None)}

    def name(self, thing: str) -> str:
        return self.game.entities[thing].name

    def of_type(self, kind: str) -> list[str]:
        """Things or receptacles of a type, in the order of their numbers."""
        return sorted((t for t, k in self.kinds.items() if k == kind), key=self._number)

    def _number(self, thing: str) -> tuple[str, int]:
        return natural(self.name(thing))

    def can_hold(self, receptacle: str, thing: str) -> bool:
        kinds = self.kinds
        return thing in kinds and ("cancontain", kinds[receptacle], kinds[thing]) in self.play.facts

    def suits(self, thing: str) -> bool:
        """Whether the thing is of the goal's type and can get into the required state."""
        facts, goal = self.play.facts, self.goal
        return self.kinds.get(thing) == goal.object_type and all(
            (able, thing) in facts for able in goal.able
        )

    # What changes -----------------------------------------------------------------------------

    @property
    def location(self) -> str:
        return self.play.facts.find("atlocation", None, None)[0][2]

    @property
    def held(self) -> str | None:
        holding = self.play.facts.find("holds", None, None)
        return holding[0][2] if holding else None

    def shut(self, receptacle: str) -> bool:
        facts = self.play.facts
        return ("openable", receptacle) in facts and ("opened", receptacle) not in facts

    def inside(self, receptacle: str) -> list[str]:
        contents = self.play.facts.find("inreceptacle", None, receptacle)
        return sorted((f[1] for f in contents), key=self._number)

    def place_of(self, thing: str) -> str | None:
        places = self.play.facts.find("inreceptacle", thing, None)
        return places[0][2] if places else None

    def ready(self, thing: str) -> bool:
        """Whether the thing is in the required state (clean, hot, cool)."""
        return not self.goal.state or (self.goal.state, thing) in self.play.facts

    # Doing ------------------------------------------------------------------------------------

    def do(self, action: str, **things: str) -> str | None:
        """Carries out an action with these parameters (o=…, r=…); returns the command, None if
        impossible."""
        command = self._find(action, things)
        if command is None:
            return None
        self.play.do(command)
        return command.text

    def _find(self, action: str, things: dict[str, str]) -> Command | None:
        return self.play.find(action, {f"?{name}": thing for name, thing in things.items()})


def natural(name: str) -> tuple[str, int]:
    """Sorts `shelf 10` after `shelf 2`."""
    head, _, number = name.rpartition(" ")
    return (head, int(number)) if number.isdigit() else (name, 0)
