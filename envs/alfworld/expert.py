"""The experts' plans as (thought, action) pairs.

Two experts: `planner` knows where everything is and takes a shortest path; `explorer` (the default)
has to look. Agents should imitate the explorer: the planner's first action often goes straight to a
drawer that it has never seen inside, and whoever learns from it learns to guess. The explorer's
actions follow from its observations, and its thoughts say so.

If the explorer does not succeed within the limit, it looks in another order (20 attempts); if that
fails too, the planner's plan is taken. Both can take over in the middle of an episode
(`plan_onwards`), the explorer with what the player has seen so far.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from stepagent.envs.alfworld.engine import Game, Play
from stepagent.envs.alfworld.explorer import Explorer, Sightings
from stepagent.envs.alfworld.household import HouseholdGoal, read_goal
from stepagent.envs.alfworld.pddl import GameError
from stepagent.envs.alfworld.planner import Move
from stepagent.envs.alfworld.planner import plan as shortest

EXPERTS = ("explorer", "planner")
ATTEMPTS = 20


def plan(game: Game, expert: str = "explorer", limit: int = 50) -> list[tuple[str, str]]:
    """(thought, action) pairs that win the game from its start, at most `limit` if possible.

    Raises ValueError for an unknown expert, GameError for a game that cannot be won.
    """
    return _spoken(game, _until_won(game.start(), find_moves(game, expert, limit)))


def plan_onwards(
    sightings: Sightings, expert: str, limit: int, number: int
) -> list[tuple[str, str]]:
    """The same from the middle of an episode; empty if `limit` actions are too few to win.

    `number`: actions taken so far.
    """
    play = sightings.play
    try:
        moves = find_moves(play.game, expert, limit, sightings)
    except GameError:
        return []
    if len(moves) > limit:
        return []
    previous = "search" if sightings.searches else ""
    return _spoken(play.game, _until_won(play.copy(), moves), number, previous)


def find_moves(
    game: Game, expert: str, limit: int, sightings: Sightings | None = None
) -> list[Move]:
    """The moves alone, from the game's start or after what has been seen."""
    if expert not in EXPERTS:
        raise ValueError(f"unknown expert {expert!r}: choose one of {', '.join(EXPERTS)}")
    play, seen = (game.start(), {}) if sightings is None else (sightings.play, sightings.seen)
    if expert == "explorer":
        seed = zlib.crc32(game.start().intro().encode())
        for attempt in range(ATTEMPTS):
            try:
                return Explorer(play, attempt, seed, limit, seen).run()
            except GameError:
                continue
    return shortest(play)


def _until_won(play: Play, moves: Sequence[Move]) -> list[Move]:
    """The moves up to the one that wins, which may come before the last: upstream's games have
    some things in two places at once, and taking one removes it from only one of them."""
    for count, move in enumerate(moves, 1):
        play.step(move.command)
        if play.won():
            return list(moves[:count])
    return list(moves)


# Thoughts -------------------------------------------------------------------------------------

_STATES = {"isclean": "clean", "ishot": "hot", "iscool": "cool", "": ""}
_DEEDS = {"isclean": "clean", "ishot": "heat", "iscool": "cool down"}


def _spoken(
    game: Game, moves: Sequence[Move], begin: int = 0, previous: str = ""
) -> list[tuple[str, str]]:
    """(thought, command) of every move. The same for the same game in every process.

    `begin`: actions taken before; `previous`: the purpose of the last one.
    """
    intro, goal = game.start().intro(), read_goal(game)
    pairs = []
    for number, move in enumerate(moves, begin):
        words = _words(game, goal, move)
        reasons = _REASONS[move.purpose]
        if number == 0:
            opening = _OPENINGS[zlib.crc32(intro.encode()) % len(_OPENINGS)]
            thought = f"{opening.format(**words)} {reasons[0].format(**words)}"
        else:
            if move.purpose == "search-go" and previous.startswith("search"):
                reasons = _SEARCHING_ON
            seed = zlib.crc32(f"{intro}/{number}".encode())
            thought = reasons[seed % len(reasons)].format(**words)
        pairs.append((thought, move.command))
        previous = move.purpose
    return pairs


def _words(game: Game, goal: HouseholdGoal, move: Move) -> dict[str, str]:
    """What the thoughts speak of."""
    entity = game.entities.get(move.thing)
    thing = entity.name.strip().removesuffix("type") if entity else move.thing
    return {
        "thing": thing,
        "kind": re.sub(r" \d+$", "", thing),
        "place": game.entities[move.receptacle].name,
        "state": _STATES[goal.state],
        "deed": _DEEDS.get(goal.state, ""),
        "goal": _in_words(goal),
        "target": goal.receptacle_type.removesuffix("type"),
        "lamp": goal.lamp_type.removesuffix("type"),
        "next": _then(goal),
    }


def _in_words(goal: HouseholdGoal) -> str:
    kind = goal.object_type.removesuffix("type")
    if goal.lamp_type:
        return f"look at a {kind} in the light of a {goal.lamp_type.removesuffix('type')}"
    what = f"two {kind}s" if goal.count > 1 else f"a {_STATES[goal.state]} {kind}"
    place = goal.receptacle_type.removesuffix("type")
    return f"have {' '.join(what.split())} in or on a {place}"


def _then(goal: HouseholdGoal) -> str:
    if goal.lamp_type:
        return "take it to the light"
    if goal.state:
        return f"{_DEEDS[goal.state]} it, then put it where it belongs"
    return "put it where it belongs"


_OPENINGS = (
    "I have to {goal}. So I first find what I need, then {next}.",
    "The task is to {goal}: get hold of the thing, then {next}.",
    "What is wanted: {goal}. I get the thing and {next}.",
)
_SEARCHING_ON = (
    "No {kind} here. The {place} is the next place where one could be.",
    "That was not it. I go on to the {place}.",
    "I still need a {kind}; I try the {place}.",
    "Nothing of use to me here, so I look at the {place}.",
)
_REASONS: dict[str, tuple[str, ...]] = {
    "search-go": (
        "The {place} is a likely place for a {kind}, so I look there.",
        "I do not know yet where a {kind} is. I look at the {place}.",
        "Now I need a {kind}. The {place} is worth a look.",
    ),
    "search-open": (
        "The {place} is shut; there may be a {kind} in it, so I open it.",
        "I cannot see into the {place} while it is closed.",
    ),
    "search-look": (
        "The {place} is within reach from here, so I look at it too.",
        "I stand at the {place} already and only need to look.",
    ),
    "fetch-go": (
        "There is a {kind} at the {place}, so I go there.",
        "I need the {thing}, and its place is the {place}.",
    ),
    "fetch-open": ("The {thing} is in the {place}, which has to be opened first.",),
    "fetch-do": (
        "Here is the {thing}. I take it.",
        "The {thing} is what I need, so I pick it up.",
        "This is it: the {thing}.",
    ),
    "tool-go": (
        "I hold the {thing}. To {deed} it I go to the {place}.",
        "The {thing} has to be {state} first, which the {place} is good for.",
    ),
    "tool-open": ("The {place} has to be open for this.",),
    "tool-do": (
        "At the {place} I can {deed} the {thing}.",
        "Now I make the {thing} {state}.",
    ),
    "target-go": (
        "The {thing} is as it should be and belongs at the {place}.",
        "With the {thing} in my hands I go to the {place}.",
    ),
    "target-open": ("The {place} is closed, so I open it before I put the {thing} in.",),
    "target-do": (
        "This is the right place for the {thing}.",
        "I put the {thing} down here, at the {place}.",
    ),
    "drop-go": ("The {thing} is of no use here, and the {place} can take it.",),
    "drop-open": ("The {place} is closed, so I open it to put the {thing} away.",),
    "drop-do": (
        "I do not need the {thing}, so I put it down.",
        "To have my hands free I leave the {thing} here.",
    ),
    "lamp-go": (
        "I hold what is to be looked at. The {kind} stands at the {place}.",
        "Now to the {thing}, which I saw at the {place}.",
    ),
    "lamp-do": (
        "I switch the {thing} on, to look at what I hold in its light.",
        "The {thing} only needs to be turned on.",
    ),
}
