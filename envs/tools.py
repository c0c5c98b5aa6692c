"""Actions as functions that a model calls, beside the text of ReAct.

An environment's actions are texts. A `Tool` stands for those of one form: the name of a function,
its parameters as JSON schemas, and the text with a place for each argument. A call of it is written
down as

    <tool_call>
    {"name": "take", "arguments": {"object": "mug 1", "receptacle": "desk 2"}}
    </tool_call>

whatever the notation of the model that made it (`agents.tool_calls` translates), and wherever an
action may stand: `env.step` carries it out, and a recorded reply holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_PLACE = re.compile(r"\{(\w+)\}")
_NEWLINES = re.compile(r"[\r\n]+")
_INTEGER = re.compile(r"[0-9]{1,9}")
_MAX_CALL = 65_536


class BadCall(ValueError):
    """A call that stands for no action; the message tells the model why, and what it can call."""


@dataclass(frozen=True)
class Tool:
    """A function that stands for all actions of one form.

    >>> take = Tool("take", "Picks a thing up.", "take {thing} from {place}")
    >>> take.action({"thing": "mug 1", "place": "desk 2"})
    'take mug 1 from desk 2'
    >>> take.arguments("take mug 1 from desk 2"), take.arguments("look")
    ({'thing': 'mug 1', 'place': 'desk 2'}, None)
    """

    name: str
    description: str
    form: str
    """The action's text, with each argument's name in braces."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON schemas of arguments; those that are missing are texts."""
    also: tuple[str, ...] = ()
    """Other texts of the same action, with the same arguments, that environments understand."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments, in the order of the text."""
        return tuple(_PLACE.findall(self.form))

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(self._pattern, (self.form, *self.also)))

    def _pattern(self, form: str) -> re.Pattern[str]:
        parts = _PLACE.split(form)
        texts = [re.escape(text) for text in parts[::2]]
        groups = []
        for name in parts[1::2]:
            any_text = "[0-9]{1,9}" if self._schema(name)["type"] == "integer" else ".*?"
            groups.append(f"(?P<{name}>{any_text})")
        return re.compile("".join(a + b for a, b in zip(texts, [*groups, ""], strict=True)))

    def _schema(self, name: str) -> dict[str, Any]:
        return {"type": "string", **self.parameters.get(name, {})}

    def schema(self) -> dict[str, Any]:
        """The function as the `tools` of a chat completions request describe it."""
        parameters = {
            "type": "object",
            "properties": {name: self._schema(name) for name in self.names},
            "required": list(self.names),
        }
        described = {"description": self.description, "parameters": parameters}
        return {"type": "function", "function": {"name": self.name, **described}}

    def signature(self) -> str:
        """Such as `take(thing, place)`."""
        return f"{self.name}({', '.join(self.names)})"

    def action(self, arguments: Mapping[str, Any]) -> str:
        """The action that a call of the function is. Raises BadCall for missing, unknown or
        unsuitable arguments."""
        if missing := [name for name in self.names if arguments.get(name) is None]:
            raise BadCall(f"{self.signature()} lacks {', '.join(missing)}.")
        if unknown := [str(name)[:40] for name in arguments if name not in self.names]:
            raise BadCall(f"{self.signature()} has no argument {', '.join(unknown)}.")
        texts = {name: self._text(name, arguments[name]) for name in self.names}
        return _PLACE.sub(lambda place: texts[place[1]], self.form)

    def _text(self, name: str, value: Any) -> str:
        schema = self._schema(name)
        if isinstance(value, bool | list | dict):
            raise BadCall(f"{self.signature()}: {name} must be a {schema['type']}.")
        text = _NEWLINES.sub(" ", str(value))  # an action is one line
        if schema["type"] == "integer" and not _INTEGER.fullmatch(text):
            raise BadCall(f"{self.signature()}: {name} must be an integer.")
        if "enum" in schema and text not in schema["enum"]:
            allowed = ", ".join(map(str, schema["enum"]))
            raise BadCall(f"{self.signature()}: {name} must be one of {allowed}.")
        return text

    def arguments(self, action: str) -> dict[str, Any] | None:
        """The arguments with which the function is this action; None if it cannot be."""
        for pattern in self._patterns:
            if match := pattern.fullmatch(action):
                values = {
                    name: int(text) if self._schema(name)["type"] == "integer" else text
                    for name, text in match.groupdict().items()
                }
                try:
                    written = self.action(values)
                except BadCall:
                    continue
                if written == action or pattern is not self._patterns[0]:
                    return values
        return None


ACT = Tool("act", "Takes one action.", "{action}")
"""The one function of an environment that names none of its own."""


def write_call(name: str, arguments: Any) -> str:
    """A call as text.

    >>> write_call("look", {})
    '<tool_call>\\n{"name": "look", "arguments": {}}\\n</tool_call>'
    """
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{OPEN}\n{call}\n{CLOSE}"


def call_of(tools: Sequence[Tool], action: str) -> str | None:
    """The call that stands for an action, by the first function that can; None if none can."""
    for tool in sorted(tools, key=lambda tool: bool(tool.names)):  # `wait` before `{anything}`
        if (arguments := tool.arguments(action)) is not None:
            return write_call(tool.name, arguments)
    return None


def is_call(text: str) -> bool:
    """Whether a text is (or begins) a call."""
    return text.startswith(OPEN)


def read_call(text: str) -> tuple[str, Any]:
    """Name and arguments of a call. Raises BadCall for broken JSON."""
    body = text.removeprefix(OPEN).removesuffix(CLOSE).strip()
    try:
        call = json.loads(body[:_MAX_CALL])
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):  # as OpenAI's API writes them
            arguments = json.loads(arguments) if arguments.strip() else {}
        name = call["name"]
    except json.JSONDecodeError as error:
        what = f"{error.msg} at character {error.pos}"
        raise BadCall(f"Your call is not valid JSON ({what}).") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        raise BadCall("A call is a JSON object with the keys name and arguments.") from None
    if not isinstance(name, str):
        raise BadCall("A call is a JSON object with the keys name and arguments.")
    return name, {} if arguments is None else arguments


def action_of(tools: Sequence[Tool], call: str) -> str:
    """The action that a call stands for.

    Raises BadCall, which says what the model can call: for broken JSON, the name of no function,
    and arguments that the function does not have.
    """
    listed = ", ".join(tool.signature() for tool in tools)
    try:
        name, arguments = read_call(call)
        by_name = {tool.name: tool for tool in tools}
        if name not in by_name:
            raise BadCall(f"There is no function {name[:60]!r}.")
        if not isinstance(arguments, Mapping):
            raise BadCall(f"The arguments of {name} must be a JSON object.")
        return by_name[name].action(arguments)
    except BadCall as error:
        raise BadCall(f"{error} The functions are: {listed}.") from None
