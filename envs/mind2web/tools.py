"""Mind2Web's answers as functions, in both ways of answering (`answers.py`)."""

from __future__ import annotations

from stepagent.envs.tools import Tool

_ELEMENT = {"type": "integer", "description": "the number of the element on the page"}
_CHOICE = {"enum": list("BCDEF"), "description": "the letter of the element"}
_TEXT = {"description": "the text to write"}
_VALUE = {"description": "the value to choose"}

DIRECT = (
    Tool("click", "Presses a link, button or box.", "CLICK [{element}]", {"element": _ELEMENT}),
    Tool(
        "type",
        "Writes a text into a field.",
        "TYPE [{element}] [{text}]",
        {"element": _ELEMENT, "text": _TEXT},
    ),
    Tool(
        "select",
        "Chooses a value in a list.",
        "SELECT [{element}] [{value}]",
        {"element": _ELEMENT, "value": _VALUE},
    ),
)
CHOICE = (
    Tool("none_of_these", "None of the elements is the right one.", "A"),
    Tool("click", "Presses the element.", "{choice}. CLICK", {"choice": _CHOICE}),
    Tool(
        "type",
        "Writes a text into the element.",
        "{choice}. TYPE [{text}]",
        {"choice": _CHOICE, "text": _TEXT},
    ),
    Tool(
        "select",
        "Chooses a value in the element.",
        "{choice}. SELECT [{value}]",
        {"choice": _CHOICE, "value": _VALUE},
    ),
)
