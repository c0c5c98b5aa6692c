"""The expert: upstream's gold path for a task, with a reasoned thought before each action.

Upstream's path walks through every door, and opens doors that stand open. The paper's prompt offers
teleporting, and its step limits are too short for walking. So a walk becomes one `teleport to`, and
what changes nothing is left out. Every plan is played through before it is handed out, and the
shorter one is taken only where it earns no less; the path as it is given is the last resort.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache

from envs.scienceworld import data
from envs.scienceworld.jvm import Simulator

_OPEN = "The door is already open"
_UNKNOWN = "No known action matches"
_QUESTION = "Ambiguous request"
_WALK = re.compile(r"(?:go to|open door to) (?P<place>.+)")


@lru_cache(maxsize=4096)
def plan(task_id: str, simplifications: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(thought, action) pairs that solve the task from its beginning.

    Raises SimulatorError where the Java process fails.
    """
    task, variation = task_id.rsplit("/", 1)
    with closing(Simulator()) as simulator:
        simulator.load(task, int(variation), simplifications, gold=True)
        gold = simulator.gold_actions()
        goal = simulator.task_description()
        chosen = _best(simulator, task, int(variation), simplifications, gold)
    return tuple((_thought(task_id, goal, chosen, i), action) for i, action in enumerate(chosen))


def _best(
    simulator: Simulator,
    task: str,
    variation: int,
    simplifications: tuple[str, ...],
    gold: Sequence[str],
) -> list[str]:
    """The candidate that scores most within the step limit, and of those the shortest."""
    limit = data.step_limit(task)
    found: list[tuple[float, int, list[str]]] = []
    candidates = [list(gold)]
    if "teleportAction" in simplifications:
        short = _teleporting(gold)
        direct = _without_searching(short)
        candidates = [direct, _without_measuring(direct), short, *candidates]
    for candidate in candidates:
        simulator.load(task, variation, simplifications)
        score, played = _play(simulator, candidate, limit)
        found.append((-score, len(played), played))
        if score >= 1:
            break
    return min(found)[2]


def _play(simulator: Simulator, actions: Sequence[str], limit: int) -> tuple[float, list[str]]:
    """Plays at most `limit` actions that do something: best score, and the actions up to it."""
    best, needed = 0.0, 0
    played: list[str] = []
    for action in actions:
        if len(played) == limit:
            break
        observation, score, complete = simulator.step(action)
        if observation.startswith(_OPEN):
            continue
        for plain in _other_names(action) if observation.startswith(_UNKNOWN) else ():
            observation, score, complete = simulator.step(plain)
            if not observation.startswith(_UNKNOWN):
                action = plain
                break
        if observation.startswith(_UNKNOWN):
            continue
        played.append(action)
        if observation.startswith(_QUESTION) and "0" not in actions:
            played.append("0")
            observation, score, complete = simulator.step("0")
        if score > best:
            best, needed = score, len(played)
        if complete or score < 0:
            break
    return best, played[:needed]


def _other_names(action: str) -> list[str]:
    """What the path may have meant where the parser does not know it.

    Upstream's path numbers things of one name ("bee 2"), and gives up where it finds no name.
    """
    lost = re.fullmatch(r"ERROR FINDING UNIQUE REFERENT FOR \((.+?)(?: \d+)?\)", action)
    if lost:
        return [f"pick up {lost[1]}"]
    plain = re.sub(r" \d+(?=$| )", "", action)
    return [plain, re.sub(r"\b(adult|baby|juvenile) ", "", plain)]


def _without_measuring(actions: Sequence[str]) -> list[str]:
    """The path without looks at how far a substance has come; only waiting moves it on."""
    return [a for a in actions if not a.startswith(("examine ", "use thermometer"))]


def _without_searching(actions: Sequence[str]) -> list[str]:
    """The path without rooms that are only looked into on the way to another."""
    found: list[str] = []
    for action in actions:
        if action.startswith("teleport to"):
            while found and (found[-1].startswith("teleport to") or found[-1] == "look around"):
                found.pop()
        if action == "look around" and found and found[-1] == action:
            continue
        found.append(action)
    return found


def _teleporting(gold: Sequence[str]) -> list[str]:
    """The path with every walk through doors as one `teleport to`."""
    found: list[str] = []
    place = ""
    for action in [*gold, ""]:
        walk = _WALK.fullmatch(action)
        if walk:
            place = walk["place"] if action.startswith("go") else place
            continue
        if place:
            found.append(f"teleport to {place}")
            place = ""
        found.append(action)
    return found[:-1]


# Thoughts -------------------------------------------------------------------------------------


def _thought(task_id: str, goal: str, actions: Sequence[str], i: int) -> str:
    """One sentence on why this action comes now. The same for the same task, in every process."""
    action, following = actions[i], actions[i + 1 :]
    for pattern, reasons in _REASONS:
        found = re.fullmatch(pattern, action)
        if found:
            words = {k: v or "" for k, v in found.groupdict().items()}
            words |= {"goal": _goal(goal), "next": _purpose(following)}
            reason = reasons[zlib.crc32(f"{task_id}/{i}".encode()) % len(reasons)]
            return reason.format(**words)
    return f"{_purpose(actions[i:]).capitalize()} is the next step to {_goal(goal)}."


def _goal(description: str) -> str:
    """What the task is for, as it says itself: `find a(n) plant`, `boil water`, …"""
    found = re.search(r"[Yy]our task is to (.+?)(?:\.|,| from |$)", description)
    return found.group(1).strip().replace("a(n)", "a") if found else "do the task"


def _purpose(actions: Sequence[str]) -> str:
    """What the first of the actions is about, as a noun phrase: `reading the note`, …"""
    for action in actions:
        for pattern, phrase in _PURPOSES:
            found = re.fullmatch(pattern, action)
            if found:
                return phrase.format(**found.groupdict())
    return "the rest of the work"


_PURPOSES = (
    (r"look around", "seeing what is there"),
    (r"look (?:at|in|on) (?P<x>.+)", "a closer look at the {x}"),
    (r"read (?P<x>.+)", "reading the {x}"),
    (r"focus on (?P<x>.+)", "the focus on the {x}"),
    (r"pick up (?P<x>.+)", "taking the {x}"),
    (r"(?:move|put) (?P<x>.+?) (?:to|in) (?P<y>.+)", "getting the {x} to the {y}"),
    (r"pour (?P<x>.+?) (?:into|in|to) (?P<y>.+)", "pouring the {x}"),
    (r"dunk (?P<x>.+?) (?:into|in) (?P<y>.+)", "filling the {x}"),
    (r"mix (?P<x>.+)", "mixing what is in the {x}"),
    (r"activate (?P<x>.+)", "switching on the {x}"),
    (r"deactivate (?P<x>.+)", "switching off the {x}"),
    (r"use (?P<x>.+?) on (?P<y>.+)", "using the {x}"),
    (r"connect (?P<x>.+?) to (?P<y>.+)", "wiring the {x}"),
    (r"open (?P<x>.+)", "opening the {x}"),
    (r"wait\d*", "waiting"),
)
_REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"teleport to (?P<x>.+)|go to (?P<y>.+)",
        (
            "What I have to do next, {next}, is to be done in the {x}{y}.",
            "To {goal} I need the {x}{y} now, for {next}.",
            "I am not where I should be: the {x}{y} is the place for {next}.",
        ),
    ),
    (
        r"look around",
        (
            "Before I choose anything I should see what is here.",
            "I want to know what this place holds; {next} depends on it.",
            "A look around tells me what I can work with to {goal}.",
        ),
    ),
    (
        r"look (?:at|in|on) (?P<x>.+)",
        (
            "How things stand with the {x} decides what comes next.",
            "I check the {x} before I go on with {next}.",
        ),
    ),
    (r"read (?P<x>.+)", ("The {x} may say how to {goal}.",)),
    (
        r"focus on (?P<x>.+)",
        (
            "The task asks me to declare my choice, and the {x} is what it means.",
            "To {goal} I must single out one thing: the {x} fits.",
            "Of all that is here, the {x} answers the task, so I focus on it.",
        ),
    ),
    (
        r"pick up (?P<x>.+)",
        (
            "I will need the {x} elsewhere, so I take it along.",
            "Without the {x} in my hands there is no {next}.",
        ),
    ),
    (
        r"(?:move|put) (?P<x>.+?) (?:to|in) (?P<y>.+)",
        (
            "The {x} has to be in the {y} for this to work out.",
            "Next, the {x} belongs in the {y}.",
            "To {goal}, I put the {x} where it should be: the {y}.",
        ),
    ),
    (
        r"pour (?P<x>.+?) (?:into|in|to) (?P<y>.+)",
        ("The {x} must come together with what is in the {y}.",),
    ),
    (r"dunk (?P<x>.+?) (?:into|in) (?P<y>.+)", ("Dipping the {x} in fills it from the {y}.",)),
    (
        r"mix (?P<x>.+)",
        ("All that is needed lies in the {x}; mixing should make something new of it.",),
    ),
    (
        r"activate (?P<x>.+)",
        (
            "The {x} does nothing while it is off, and I need it to {goal}.",
            "With the {x} switched on, {next} becomes possible.",
        ),
    ),
    (
        r"deactivate (?P<x>.+)",
        ("The {x} has done its part; I switch it off before {next}.",),
    ),
    (
        r"use (?P<x>.+?) on (?P<y>.+)",
        (
            "The {x} will tell or do what I need with the {y}.",
            "I apply the {x} to the {y} and see what comes of it.",
        ),
    ),
    (
        r"connect (?P<x>.+?) to (?P<y>.+)",
        (
            "The circuit needs a link from the {x} to the {y}.",
            "Current can only flow once the {x} meets the {y}.",
        ),
    ),
    (r"disconnect (?P<x>.+)", ("The {x} is in the way of the right circuit.",)),
    (
        r"open (?P<x>.+)",
        ("What I need may be behind it, so I open the {x}.", "An open {x} allows {next}."),
    ),
    (r"close (?P<x>.+)", ("The {x} should be shut for what comes next, {next}.",)),
    (
        r"wait\d*",
        (
            "This takes its time; I let some pass before {next}.",
            "Nothing can be hurried here, so I wait a little to {goal}.",
        ),
    ),
    (
        r"(?P<x>\d+)",
        (
            "The list asks which one I mean: number {x} will do.",
            "Any line of this list that fits is fine; I answer with its number.",
        ),
    ),
    (r"inventory", ("I should know what I carry before {next}.",)),
    (r"eat (?P<x>.+)", ("The task wants the {x} to be eaten.",)),
)
"""Pattern of an action → thoughts to choose from; {goal} and {next} are worked out."""
