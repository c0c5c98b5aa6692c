"""The explorer: acts like someone who knows where such things usually are, but not where these are.

It looks at receptacles one after the other, the likely ones first, until it has seen what it needs,
remembers what it saw on the way, and then does what the goal asks for. It never uses what it has
not seen, be it by itself or by the player whose place it takes in the middle of an episode
(`Sightings`). `attempt` 0 goes by habit and number only; further attempts look in other orders, as
other people might (`envs.alfworld.expert` takes the first that succeeds in time).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from stepagent.envs.alfworld.engine import Play
from stepagent.envs.alfworld.household import TOOLS, Household
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.alfworld.planner import Move

_SURFACES = "countertop diningtable sidetable coffeetable desk dresser shelf"
_HABITS = {
    "apple tomato potato lettuce egg bread": (
        "countertop fridge diningtable sinkbasin garbagecan microwave"
    ),
    "pan pot kettle": "stoveburner countertop diningtable cabinet sinkbasin",
    "fork spoon knife butterknife spatula ladle": "countertop diningtable drawer sinkbasin",
    "bowl cup mug plate": (
        "countertop diningtable cabinet coffeemachine sinkbasin fridge shelf microwave desk"
    ),
    "peppershaker saltshaker winebottle glassbottle dishsponge": (
        "countertop diningtable cabinet sinkbasin drawer"
    ),
    "soapbottle soapbar spraybottle toiletpaper toiletpaperroll papertowelroll tissuebox": (
        "countertop toilet sinkbasin toiletpaperhanger cabinet garbagecan shelf"
    ),
    "candle plunger scrubbrush": "countertop toilet shelf cabinet",
    "cloth": "countertop bathtubbasin sinkbasin cabinet drawer cart",
    "towel": "towelholder",
    "handtowel": "handtowelholder countertop",
    "pillow": "bed sofa armchair ottoman",
    "laptop book newspaper cellphone": "bed desk sofa diningtable coffeetable sidetable dresser",
    "remotecontrol": "sofa coffeetable armchair tvstand diningtable sidetable",
    "box": "diningtable coffeetable sofa dresser sidetable",
    "creditcard keychain pen pencil cd watch": (
        "desk sidetable coffeetable dresser shelf diningtable drawer sofa armchair"
    ),
    "vase statue houseplant": "shelf countertop coffeetable diningtable sidetable",
    "desklamp floorlamp": "desk sidetable dresser shelf",
    "alarmclock": "desk sidetable dresser shelf",
    "basketball baseballbat tennisracket teddybear": "bed floor sofa dresser desk",
}
"""Things → kinds of receptacle where people keep them, the most likely first."""
_LIKELY = {
    thing: {f"{place}type": rank for rank, place in enumerate(places.split())}
    for things, places in _HABITS.items()
    for thing in things.split()
}
_LOOKS = ("gotolocation", "openobject", "examinereceptacle")
"""Actions that show what is in a receptacle."""
_LATER = {f"{place}type": 10 for place in _SURFACES.split()}
_LAST = 12
"""Rank of a place that is not a surface and where the thing is not usually kept."""


class Sightings:
    """A player's episode, command by command, and what it has shown. `play` is moved on."""

    def __init__(self, play: Play):
        self.play, self._house = play, Household(play)
        self.seen: dict[str, list[str]] = {}
        """Receptacle → its contents when they were last in view."""
        self.searches = False
        """Whether the last command was of those that only look."""

    def follow(self, text: str) -> None:
        """Carries out a command that is possible now."""
        command = self.play.understand(text)
        if command is None:
            raise GameError(f"the game does not know this command here: {text}")
        self.play.do(command)
        self.searches = command.action.action.name in _LOOKS
        place = command.binding.get("?r", "")
        if place in self._house.receptacles and not self._house.shut(place):
            self.seen[place] = self._house.inside(place)


class Explorer:
    """One exploration of a house from its present state. `moves` is what it did.

    `seen`: what was in view before, as in `Sightings`.
    """

    def __init__(
        self,
        play: Play,
        attempt: int = 0,
        seed: int = 0,
        limit: int = 1000,
        seen: Mapping[str, list[str]] | None = None,
    ):
        self.house = Household(play.copy())
        self.moves: list[Move] = []
        self.seen = dict(seen or {})
        self.limit = limit
        self._placed: set[str] = set()
        rng = random.Random(f"{seed}/{attempt}")
        self._order = {
            r: (rng.uniform(0, 2 + attempt) if attempt else 0.0, rng.random() if attempt else i)
            for i, r in enumerate(self.house.receptacles)
        }

    def run(self) -> list[Move]:
        """Plays to the end; raises GameError if nothing is left to look at, or at the limit."""
        goal = self.house.goal
        self._free_hands()
        if goal.lamp_type:
            if not self._holds_one():
                self._take(self._look_for(goal.object_type, self._wanted))
            lamp, place = self._look_for(goal.lamp_type, self._is_lamp)
            self._go("lamp", lamp, place)
            if not self.house.play.won():
                self._do("lamp", "toggleobject", lamp, place)
        else:
            self._deliver()
        if not self.house.play.won():
            raise GameError("everything is done, but the goal is not reached")
        return self.moves

    # The work ---------------------------------------------------------------------------------

    def _deliver(self) -> None:
        house, goal = self.house, self.house.goal
        target = self._begun() if goal.count > 1 else ""
        while len(self._placed) < goal.count:
            if not self._holds_one():
                thing, place = self._look_for(
                    goal.object_type, lambda t: self._wanted(t) and t not in self._placed
                )
                if self._is_there(thing, place) and target in ("", place):
                    target = place
                    self._placed.add(thing)
                    continue
                self._take((thing, place))
            thing = house.held or ""
            if not house.ready(thing):
                self._use_tool(thing)
            target = target or self._target(thing)
            self._go("target", thing, target)
            if house.shut(target):
                self._do("target", "openobject", thing, target)
                self._note(target)
            self._placed |= {t for t in house.inside(target) if house.suits(t) and house.ready(t)}
            self._do("target", "putobject", thing, target)
            self._placed.add(thing)
            self._note(target)

    def _free_hands(self) -> None:
        """Puts down what is of no use, at the nearest place that can hold it."""
        house, held = self.house, self.house.held
        if held is None or house.suits(held):
            return
        places = [r for r in house.receptacles if house.can_hold(r, held)]
        if not places:
            raise GameError("what is held cannot be put down anywhere")
        place = min(places, key=self._distance)
        self._go("drop", held, place)
        if house.shut(place):
            self._do("drop", "openobject", held, place)
        self._do("drop", "putobject", held, place)
        self._note(place)

    def _begun(self) -> str:
        """Where most of the things are that the goal wants in one place; "" if none is known."""
        suits = self.house.suits
        there = {
            place: sum(suits(thing) and self._is_there(thing, place) for thing in things)
            for place, things in self.seen.items()
        }
        best = max(there, key=lambda place: there[place], default="")
        return best if there.get(best) else ""

    def _wanted(self, thing: str) -> bool:
        return self.house.suits(thing) and ("pickupable", thing) in self.house.play.facts

    def _is_lamp(self, thing: str) -> bool:
        return self.house.kinds.get(thing) == self.house.goal.lamp_type

    def _holds_one(self) -> bool:
        return self.house.held is not None

    def _is_there(self, thing: str, place: str) -> bool:
        """Whether the thing is where, and how, the goal wants it."""
        house = self.house
        return house.kinds[place] == house.goal.receptacle_type and house.ready(thing)

    def _take(self, thing_and_place: tuple[str, str]) -> None:
        thing, place = thing_and_place
        self._go("fetch", thing, place)
        if self.house.shut(place):  # whoever saw the thing has closed it since
            self._do("fetch", "openobject", thing, place)
        self._do("fetch", "pickupobject", thing, place)
        self._note(place)

    def _use_tool(self, thing: str) -> None:
        action, kind = TOOLS[self.house.goal.state]
        tools = [r for r in self.house.of_type(kind) if r in self.house.receptacles]
        if not tools:
            raise GameError(f"the house has no {kind.removesuffix('type')}")
        tool = min(tools, key=self._distance)
        self._go("tool", thing, tool)
        self._do("tool", action, thing, tool)

    def _target(self, thing: str) -> str:
        """Where to put it: an open place (or one opened before) rather than a closed one."""
        house = self.house
        fitting = [r for r in house.of_type(house.goal.receptacle_type) if r in house.receptacles]
        fitting = [r for r in fitting if house.can_hold(r, thing)]
        if not fitting:
            raise GameError("the house has no place of the goal's kind")
        return min(fitting, key=self._distance)

    def _distance(self, r: str) -> tuple[bool, bool]:
        return self.house.receptacles[r] != self.house.location, self.house.shut(r)

    # Looking ----------------------------------------------------------------------------------

    def _look_for(self, kind: str, suits: Callable[[str], bool]) -> tuple[str, str]:
        """A suitable thing that has been seen, and where; looks around until there is one."""
        for place, things in self.seen.items():
            for thing in things:
                if suits(thing):
                    return thing, place
        likely = _LIKELY.get(kind.removesuffix("type"), {})
        kinds = self.house.kinds
        left = [r for r in self.house.receptacles if r not in self.seen]
        left.sort(key=lambda r: self._rank(likely, kinds[r], r))
        for place in left:
            self._visit(place, kind)
            for thing in self.seen[place]:
                if suits(thing):
                    return thing, place
        raise GameError(f"no {kind.removesuffix('type')} was found anywhere")

    def _rank(self, likely: dict[str, int], kind: str, r: str) -> tuple[float, float]:
        jitter, tie = self._order[r]
        return likely.get(kind, _LATER.get(kind, _LAST)) + jitter, tie

    def _visit(self, place: str, kind: str) -> None:
        house = self.house
        if not self._go("search", kind, place) and not house.shut(place):
            self._do("search", "examinereceptacle", kind, place)
        if house.shut(place):
            self._do("search", "openobject", kind, place)
        self._note(place)

    def _note(self, place: str) -> None:
        self.seen[place] = self.house.inside(place)

    # Moving -----------------------------------------------------------------------------------

    def _go(self, purpose: str, thing: str, place: str) -> bool:
        if self.house.receptacles[place] == self.house.location:
            return False
        self._do(purpose, "gotolocation", thing, place)
        return True

    def _do(self, purpose: str, action: str, thing: str, place: str) -> None:
        if len(self.moves) >= self.limit:
            raise GameError(f"not finished within {self.limit} actions")
        alone = action in _LOOKS
        things = {"r": place} if alone else {"o": thing, "r": place}
        command = self.house.do(action, **things)
        if command is None:
            raise GameError(f"the house does not allow what the goal needs: {action}")
        what = {"gotolocation": "go", "openobject": "open", "examinereceptacle": "look"}
        self.moves.append(Move(f"{purpose}-{what.get(action, 'do')}", thing, place, command))
