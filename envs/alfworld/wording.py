"""The two wordings of ALFWorld's commands, and how an agent's actions are read.

Upstream's version 0.4 renamed `put X in/on Y` to `move X to Y`; older games keep the old name. The
paper's prompt, like ETO's, says `put` and, for a lamp's switch, `toggle`, which no game knows
(there it is `use`). Both wordings are understood in every game; the prompt and the expert use one
of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORDINGS = ("old", "new")
MAX_ACTION = 200
"""Characters that an action may have; the longest meaningful one has about 60."""

_PUT = re.compile(r"(?:put|place) (.+?) (?:in/on|in|on|into|onto|inside) (\S+(?: \d+)?)")
_MOVE = re.compile(r"move (.+?) to (\S+(?: \d+)?)")
_ARTICLES = re.compile(r"(?<= )(?:the|a|an) (?=\S)")
_SWITCH = re.compile(r"(?:toggle|use|turn on|switch on) (.+)")
_BLANKS = re.compile(r"\s+")


def readings(action: str) -> Iterator[str]:
    """What an action may mean, as commands: itself, normalised, without articles, in the other
    wording.

    >>> list(readings("Go to the desk 2."))
    ['Go to the desk 2.', 'go to the desk 2', 'go to desk 2']
    """
    action = action.strip()
    if len(action) > MAX_ACTION:
        return
    yield action
    plain = _BLANKS.sub(" ", action.lower()).rstrip(" .!")
    if plain != action:
        yield plain
    bare = _ARTICLES.sub("", plain)
    if bare != plain:
        yield bare
    if match := _PUT.fullmatch(bare) or _MOVE.fullmatch(bare):
        yield f"move {match[1]} to {match[2]}"
        yield f"put {match[1]} in/on {match[2]}"
    elif match := _SWITCH.fullmatch(bare):
        yield f"use {match[1]}"


def spoken(command: str, wording: str) -> str:
    """The command in the given wording.

    >>> spoken("move mug 1 to desk 2", "old"), spoken("use desklamp 1", "old")
    ('put mug 1 in/on desk 2', 'toggle desklamp 1')
    >>> spoken("put mug 1 in/on desk 2", "new"), spoken("look", "new")
    ('move mug 1 to desk 2', 'look')
    """
    if match := _PUT.fullmatch(command) or _MOVE.fullmatch(command):
        form = "put {} in/on {}" if wording == "old" else "move {} to {}"
        return form.format(match[1], match[2])
    if match := _SWITCH.fullmatch(command):
        return f"toggle {match[1]}" if wording == "old" else f"use {match[1]}"
    return command


def spoken_prompt(text: str, wording: str) -> str:
    """A prompt written in the new wording, in the given one."""
    if wording == "new":
        return text
    text = text.replace("move OBJ to RECEP", "put OBJ in/on RECEP")
    text = text.replace("use OBJ", "toggle OBJ")
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    label, colon, action = line.partition("Action: ")
    return label + colon + spoken(action, "old") if colon and not label else line
