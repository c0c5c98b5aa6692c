"""ScienceWorld's actions as functions."""

from __future__ import annotations

from dataclasses import replace

from stepagent.envs.tools import Tool

_OBJECT = {"description": "a thing you can see or carry, named as the observations name it"}
_KNOWN = {
    **dict.fromkeys(("object", "other", "container", "tool"), _OBJECT),
    "location": {"description": "a room, or a door"},
    "number": {"type": "integer", "description": "the number of a line"},
}


def _tool(name: str, description: str, form: str) -> Tool:
    tool = Tool(name, description, form)
    return replace(tool, parameters={name: _KNOWN[name] for name in tool.names})


TOOLS = (
    _tool("look_around", "Describes the room you are in.", "look around"),
    _tool("look_at", "Describes a thing.", "look at {object}"),
    _tool("look_in", "Describes what is inside a thing.", "look in {object}"),
    _tool("read", "Reads a note or a book.", "read {object}"),
    _tool("inventory", "Lists what you carry.", "inventory"),
    _tool("task", "Shows the task once more.", "task"),
    _tool("teleport", "Goes straight to a room.", "teleport to {location}"),
    _tool("go", "Walks through an open door into the next room.", "go to {location}"),
    _tool("open", "Opens a door or a container.", "open {object}"),
    _tool("close", "Closes a door or a container.", "close {object}"),
    _tool("pick_up", "Takes a thing into your inventory.", "pick up {object}"),
    _tool("put_down", "Leaves a thing in the room.", "put down {object}"),
    _tool("move", "Puts a thing into or onto another thing.", "move {object} to {other}"),
    _tool("pour", "Empties a container into another.", "pour {object} into {other}"),
    _tool("dunk", "Fills a container by dipping it into a liquid.", "dunk {object} into {other}"),
    _tool("mix", "Mixes, chemically too, all that is in a container.", "mix {container}"),
    _tool("activate", "Switches a device on.", "activate {object}"),
    _tool("deactivate", "Switches a device off.", "deactivate {object}"),
    _tool("use_on", "Uses a tool or an instrument on a thing.", "use {tool} on {object}"),
    _tool("use", "Uses a thing.", "use {tool}"),
    _tool("connect", "Wires electrical parts at their terminals.", "connect {object} to {other}"),
    _tool("disconnect", "Removes the wires of an electrical part.", "disconnect {object}"),
    _tool("eat", "Eats a thing.", "eat {object}"),
    _tool("flush", "Flushes a toilet.", "flush {object}"),
    _tool("focus_on", "Declares that this is the thing the task asks about.", "focus on {object}"),
    _tool("wait", "Lets ten moments pass.", "wait"),
    _tool("wait_one", "Lets one moment pass.", "wait1"),
    _tool("reset_task", "Begins the task anew.", "reset task"),
    _tool("choose", "Answers a numbered question with the number of a line.", "{number}"),
)
