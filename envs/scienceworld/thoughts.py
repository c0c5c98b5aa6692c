"""The thought before each of the expert's actions: one sentence on why it comes now.

Made from the action, the task's goal and what comes next. The same for the same task in every
process: where several sentences would do, the task's id and the step's number choose one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

_Reasons = tuple[tuple[str, tuple[str, ...]], ...]


def of(task_id: str, goal: str, actions: Sequence[str]) -> list[str]:
    """A thought for every action of a plan. `goal`: the simulator's description of the task."""
    aim = _aim(goal)
    return [
        _thought(f"{task_id}/{i}", goal, aim, actions[: i + 1], _next(actions[i + 1 :]))
        for i in range(len(actions))
    ]


def _thought(key: str, goal: str, aim: str, actions: Sequence[str], following: str) -> str:
    """The thought before the last of the actions. It must not tell what is only seen later."""
    action = actions[-1]
    reasons = _special(goal, actions) + (_SEARCH if following == _LOOKING else ()) + _REASONS
    for pattern, sentences in reasons:
        match = re.fullmatch(pattern, action)
        if match:
            words = {name: _the(thing) for name, thing in match.groupdict().items()}
            sentence = sentences[zlib.crc32(key.encode()) % len(sentences)]
            text = sentence.format(aim=aim, next=following, **words)
            return (text[0].upper() + text[1:]).replace("in outside", "outside")
    return f"The next step to {aim} is this: {action}."


def _aim(goal: str) -> str:
    """What the task is for, as it says itself: `find a plant`, `boil water`, …"""
    match = re.search(r"[Yy]our task is to (?:use chemistry to )?(.+?)(?:\.|,| from | by |$)", goal)
    if not match:
        return "do the task"
    aim = match[1].strip().replace("a(n)", "a").replace("'", "")
    return re.sub(r"\ba (?=[aeio])", "an ", aim)


def _the(thing: str) -> str:
    """A thing with its article, without where it is: `the metal pot`, `flower pot 3`."""
    thing = _WHERE.sub("", thing)
    bare = thing == "outside" or (re.search(r"(?<!terminal) \d$", thing) and " in " not in thing)
    return thing if bare else f"the {thing}"


def _next(actions: Sequence[str]) -> str:
    """What is done next: `naming the frog egg`, `waiting`, …"""
    for action in actions:
        for pattern, phrase in _DOING:
            match = re.fullmatch(pattern, action)
            if match:
                return phrase.format(**{k: _the(v) for k, v in match.groupdict().items()})
    return "the rest of the work"


def _special(goal: str, actions: Sequence[str]) -> _Reasons:
    """Reasons that hold in one kind of task."""
    count = sum(action.startswith("focus on") for action in actions)
    if kind := re.search(r"find a\(n\) (.+?)\.", goal):
        fits = f"{{x}} is the first {kind[1]} that I see here, so I choose it."
        if kind[1] == "non-living thing":
            fits = "{x} does not live and can be carried, so I choose it."
        return (
            (_FOCUS, (fits,)),
            (r"teleport to outside", ("Animals live outside, so I should find one there.",)),
            (r"teleport to greenhouse", ("Plants grow in the greenhouse, so I look there.",)),
        )
    if "life span" in goal:
        span = "longest" if "longest" in goal and count == 1 else "shortest"
        return (
            (_FOCUS, (f"Of the animals that I see, {{x}} is of the kind with the {span} life.",)),
        )
    if "life stages" in goal:
        order = "{x} comes first in the order of life." if count == 1 else "{x} is the next stage."
        looks = ("I look at what has become of the animal.",) if count else _LOOK
        return ((_FOCUS, (order,)), (r"wait\d*", _GROWING), (r"look around", looks))
    if "grow a" in goal and any(action.startswith("wait") for action in actions):
        looks = ("I check whether there is any fruit yet.",)
        return ((r"wait\d*", _GROWING), (r"look around", looks))
    if rule := _BOX_RULE.search(goal):
        condition, box = rule.groups()
        yes, no = f"What I measured is {condition}", f"What I measured is not {condition}"
        if condition.startswith("electrically"):
            yes, no = "The bulb shines", "The bulb stays dark"
        into = r"(?:focus on|move .+ to) (?P<x>%s)"
        return (
            (into % box, (f"{yes}, so {{x}} is the right one.",)),
            (into % r"\w+ box", (f"{no}, so {{x}} is the right one.",)),
        )
    return ()


_BOX_RULE = re.compile(
    r"is (above [\d.-]+ degrees celsius|electrically conductive)"
    r", (?:place it in|focus on) the (\w+ box)"
)
_WHERE = re.compile(r" in (?:inventory|(?:large )?cupboard|outside|oven|blast furnace)$")
_FOCUS = r"focus on (?P<x>.+)"
_LOOKING = "seeing what is there"
_LOOK = (
    "Before I choose anything I should see what is here.",
    "I want to know what this place holds.",
    "A look around tells me what I can work with.",
)
_GROWING = ("Growing takes its time, so I wait.", "Life goes on while I wait a little.")
_SEARCH: _Reasons = (
    (
        r"(?:teleport|go) to (?P<x>.+)",
        (
            "To {aim}, I first see what there is in {x}.",
            "What I need may well be in {x}.",
            "I should see what I find in {x}.",
        ),
    ),
)
"""Reasons to go somewhere only to look around there."""
_DOING = (
    (r"look around", _LOOKING),
    (r"(?:look (?:at|in|on)|examine) (?P<x>.+)", "a look at {x}"),
    (r"read (?P<x>.+)", "reading {x}"),
    (r"focus on (?P<x>.+)", "naming {x}"),
    (r"pick up (?P<x>.+)", "taking {x}"),
    (r"move (?P<x>.+?) to (?P<y>.+)", "putting {x} into {y}"),
    (r"drop (?P<x>.+)", "putting down {x}"),
    (r"pour .+", "pouring"),
    (r"dunk (?P<x>.+?) (?:into|in) (?P<y>.+)", "filling {x}"),
    (r"mix (?P<x>.+)", "mixing what is in {x}"),
    (r"activate (?P<x>.+)", "switching on {x}"),
    (r"deactivate (?P<x>.+)", "switching off {x}"),
    (r"use (?P<x>.+?) on (?P<y>.+)", "using {x}"),
    (r"connect (?P<x>.+?) to (?P<y>.+)", "connecting {x}"),
    (r"close (?P<x>.+)", "shutting {x}"),
    (r"open (?P<x>.+)", "opening {x}"),
    (r"eat (?P<x>.+)", "eating {x}"),
    (r"wait\d*", "waiting"),
)
"""Pattern of an action → what it is, as a noun phrase."""
_REASONS: _Reasons = (
    (
        r"(?:teleport|go) to (?P<x>.+)",
        (
            "What I have to do next, {next}, is to be done in {x}.",
            "To {aim}, I have to be in {x} now, for {next}.",
            "I am not where I should be: {x} is the place for {next}.",
        ),
    ),
    (r"look around", _LOOK),
    (
        r"look in (?P<x>.+)",
        ("I check how far it has come in {x}.", "What I see in {x} decides what comes next."),
    ),
    (r"(?:look (?:at|on)|examine) (?P<x>.+)", ("I take a closer look at {x} before I go on.",)),
    (r"read (?P<x>.+)", ("{x} may say how to {aim}.",)),
    (
        _FOCUS,
        (
            "The task asks me to focus on {x} at this point.",
            "{x} is what the task wants me to focus on now.",
        ),
    ),
    (r"pick up soil.*", ("Nothing grows without soil, so I take some for the pots.",)),
    (r"pick up (?P<x>shovel)", ("There is no soil in the pots, and with {x} I can dig for some.",)),
    (
        r"pick up (?P<x>.+)",
        (
            "I will need {x} elsewhere, so I take it along.",
            "With {x} in my hands I can go on to {aim}.",
        ),
    ),
    (r"drop (?P<x>.+)", ("{x} is of more use here than in my hands.",)),
    (
        r"(?:move|put) (?P<x>.+?) to (?P<y>.+ box)",
        ("The task wants the thing I named in {y}, and that is {x}.", "{y} is where {x} belongs."),
    ),
    (r"move (?P<x>.+?) seed in .+ to (?P<y>.+)", ("A seed grows in soil, so one goes into {y}.",)),
    (r"move soil .*to (?P<y>.+)", ("{y} has no soil yet, and a plant needs it.",)),
    (
        r"move (?P<x>.+?) to (?P<y>.*(?:furnace|oven|stove))",
        ("{y} gives the heat that {x} needs.", "Heat will change it, so {x} goes into {y}."),
    ),
    (
        r"move (?P<x>.+?) to (?P<y>.*freezer)",
        ("{y} is cold enough to freeze what I have, so {x} goes in.",),
    ),
    (
        r"move (?P<x>.+?) to (?P<y>.+)",
        ("{x} has to be in {y} for this to work out.", "To {aim}, I put {x} into {y}."),
    ),
    (
        r"pour cup containing (?P<x>\w+ paint).* into (?P<y>.+)",
        ("{x} has to go into {y}, to be mixed there.",),
    ),
    (
        r"pour (?P<x>.+?) into (?P<y>.+)",
        ("What is in {x} has to go into {y}, to be mixed there.",),
    ),
    (r"pour (?P<x>.+)", ("What is in {x} has to come together with the rest.",)),
    (r"dunk (?P<x>.+?) (?:into|in) (?P<y>.+)", ("Dipping {x} in fills it from {y}.",)),
    (
        r"mix (?P<x>.+)",
        ("All that is needed lies in {x}; mixing should make something new of it.",),
    ),
    (r"activate (?P<x>.+)", ("{x} does nothing while it is off, and I need it to {aim}.",)),
    (r"deactivate (?P<x>.+)", ("{x} has done its part, so I switch it off.",)),
    (
        r"use (?P<x>.*thermometer.*?) on (?P<y>.+)",
        ("{x} shows how warm {y} is, and that decides what comes next.",),
    ),
    (r"use (?P<x>shovel.*?) on (?P<y>.+)", ("Digging with {x} brings up soil.",)),
    (r"use (?P<x>.+?) on (?P<y>.+)", ("I apply {x} to {y} and see what comes of it.",)),
    (
        r"connect (?P<x>.+?) to (?P<y>.+)",
        (
            "The circuit needs a link from {x} to {y}.",
            "Current can only flow once {x} meets {y}.",
        ),
    ),
    (r"disconnect (?P<x>.+)", ("{x} is in the way of the right circuit.",)),
    (r"open (?P<x>.+)", ("What I need may be behind it, so I open {x}.",)),
    (
        r"close (?P<x>door.*)",
        ("The bees must stay with the plants to pollinate them, so I shut {x}.",),
    ),
    (r"close (?P<x>.+)", ("{x} should be shut for what comes next.",)),
    (
        r"wait\d*",
        (
            "This takes its time; I let some pass.",
            "Nothing can be hurried here, so I wait a little.",
        ),
    ),
    (
        r"\d+",
        (
            "The list asks which one I mean, and the first line will do.",
            "Any line of this list fits, so I answer with the number of the first.",
        ),
    ),
    (r"inventory", ("I should know what I carry before I go on.",)),
    (r"eat (?P<x>.+)", ("The task wants {x} to be eaten.",)),
)
"""Pattern of an action → thoughts to choose from; {aim} and {next} are worked out."""
