"""ALFWorld's actions as functions, in either wording (`wording.py`)."""

from __future__ import annotations

from dataclasses import replace

from stepagent.envs.alfworld.wording import spoken
from stepagent.envs.tools import Tool

_OBJECT = {"description": "a thing with its number, such as mug 2"}
_PLACE = {"description": "a piece of furniture or an appliance with its number"}


def _tool(name: str, description: str, form: str, *also: str) -> Tool:
    known = {"object": _OBJECT, "receptacle": _PLACE, "target": {"description": "thing or place"}}
    tool = Tool(name, description, form, also=also)
    return replace(tool, parameters={name: known[name] for name in tool.names})


_NEW = (
    _tool("look", "Shows where you stand.", "look"),
    _tool("inventory", "Shows what you carry.", "inventory"),
    _tool("go_to", "Walks there; shows what is on it, or that it is closed.", "go to {receptacle}"),
    _tool("open", "Opens a cabinet, drawer, fridge or the like.", "open {receptacle}"),
    _tool("close", "Closes it.", "close {receptacle}"),
    _tool("take", "Picks a thing up where you stand.", "take {object} from {receptacle}"),
    _tool("clean", "Washes what you carry, at a sinkbasin.", "clean {object} with {receptacle}"),
    _tool("heat", "Warms what you carry, at a microwave.", "heat {object} with {receptacle}"),
    _tool("cool", "Chills what you carry, at a fridge.", "cool {object} with {receptacle}"),
    _tool("slice", "Cuts a thing with the knife you carry.", "slice {object} with {target}"),
    _tool("examine", "Looks closely at where you stand or what you carry.", "examine {target}"),
    _tool("help", "Lists what commands there are.", "help"),
)


def tools(wording: str) -> tuple[Tool, ...]:
    """The functions with which a game in that wording is played."""
    put, use = "move {object} to {receptacle}", "use {object}"
    forms = [(spoken(form, wording), form, spoken(form, "old")) for form in (put, use)]
    return (
        *_NEW,
        _tool("move", "Puts down what you carry, in or on the place where you stand.", *forms[0]),
        _tool("use", "Switches a lamp on where you stand.", *forms[1]),
    )
