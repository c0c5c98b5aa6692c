"""Calls of functions in the notations of models and of OpenAI's API, and in ours (`envs.tools`).

A conversation holds calls in our notation. Servers get them as `tool_calls` and observations as the
role `tool` (`structured`); what models write, each family in its own way, is read by `translated`:

| family                    | writes                                                            |
|---------------------------|-------------------------------------------------------------------|
| Hermes, Qwen 2.5 and 3    | `<tool_call>{"name": …, "arguments": …}</tool_call>`              |
| Qwen3-Coder               | `<tool_call><function=NAME><parameter=KEY>…` in it                |
| GLM                       | `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>…` in it         |
| Llama 3                   | `{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`    |
| Mistral                   | `[TOOL_CALLS]` and a list, or `NAME[ARGS]{…}`                     |
| gpt-oss                   | `commentary to=functions.NAME` and `{…}`                          |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stepagent.envs.react import parse
from stepagent.envs.tools import CLOSE, OPEN, BadCall, is_call, read_call, write_call

_INSIDE = re.compile(rf"{OPEN}(.*?)(?:{CLOSE}|\Z)", re.DOTALL)
_CODER = re.compile(r"<function=([\w-]+)>(.*)", re.DOTALL)
_CODER_PARAMETER = re.compile(
    r"<parameter=([\w-]+)>\n?((?:(?!\n?</parameter>|<parameter=).)*+)\n?</parameter>", re.DOTALL
)
_GLM = re.compile(r"(?<![\w-])([\w-]++)\s*+(<arg_key>.*|\Z)", re.DOTALL)
_GLM_PARAMETER = re.compile(
    r"<arg_key>((?:(?!</?arg_key>).)*+)</arg_key>\s*+"
    r"<arg_value>((?:(?!</arg_value>|<arg_key>).)*+)</arg_value>",
    re.DOTALL,
)
_HEADED = re.compile(
    r"(?:<\|start\|>assistant)?(?:<\|channel\|>)?commentary to=functions\.([\w-]++)"
    r"\s*+(?:<\|constrain\|>)?+\s*+(?:json)?+\s*+(?:<\|message\|>)?+\s*+(?=\{)"
    r"|\[TOOL_CALLS\]\s*+([\w-]++)(?:\[CALL_ID\]\w++)?+\[ARGS\]\s*+(?=\{)"
)
_OBJECT = re.compile(
    r"(?:(?:<\|python_tag\|>|\[TOOL_CALLS\])\s*+|^[^\S\n]*+)(?=(?:\[\s*+)?+\{\s*+\")", re.MULTILINE
)
_MAX_TRIES = 8
"""Places at which a text may begin a call that are looked at."""


def translated(text: str) -> str:
    """A model's text with its first call in our notation; a text without a call as it is."""
    if OPEN in text:
        return _INSIDE.sub(_inside, text, count=1)
    decoder = json.JSONDecoder()
    if headed := _HEADED.search(text):
        name, rest = headed.group(1) or headed.group(2), text[headed.end() :]
        try:
            arguments, _ = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            arguments = rest.strip()  # broken JSON: the environment says so
        return _joined(text[: headed.start()], write_call(name, arguments))
    for place, _ in zip(_OBJECT.finditer(text), range(_MAX_TRIES), strict=False):
        try:
            call, _ = decoder.raw_decode(text, place.end())
        except (ValueError, RecursionError):
            continue
        call = call[0] if isinstance(call, list) and call else call
        call = call.get("function", call) if isinstance(call, dict) else {}
        arguments = call.get("arguments", call.get("parameters")) if isinstance(call, dict) else 0
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            return _joined(text[: place.start()], write_call(call["name"], arguments or {}))
    return text


def _joined(before: str, call: str) -> str:
    return f"{before.strip()}\n{call}".strip()


def _inside(match: re.Match[str]) -> str:
    """A call in a notation without JSON, in ours."""
    body = match.group(1)
    for head, parameter in ((_CODER, _CODER_PARAMETER), (_GLM, _GLM_PARAMETER)):
        if call := head.fullmatch(body.strip()):
            pairs = parameter.findall(call.group(2))
            return write_call(call.group(1), {key.strip(): value for key, value in pairs})
    return match.group()


def of_message(message: Mapping[str, Any]) -> str:
    """The first call in a server's message, in our notation; "" if there is none."""
    calls = message.get("tool_calls")
    first = calls[0] if isinstance(calls, list) and calls else message.get("function_call")
    if not isinstance(first, Mapping):
        return ""
    function = first.get("function", first)
    if not isinstance(function, Mapping):
        return ""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            pass  # broken JSON: the environment says so
    return write_call(str(function.get("name")), {} if arguments is None else arguments)


def split_call(reply: str) -> tuple[str, str, Mapping[str, Any]] | None:
    """What a reply says before its call, the function's name and its arguments; None if it holds
    no call that can be read."""
    action = parse(reply).action
    if not is_call(action):
        return None
    try:
        name, arguments = read_call(action)
    except BadCall:
        return None
    if not isinstance(arguments, Mapping):
        return None
    return reply[: reply.index(OPEN)].strip(), name, arguments


def structured(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as servers get it: calls as `tool_calls`, their results as the role `tool`."""
    sent: list[dict[str, Any]] = []
    answers = ""  # the call that the next observation is the result of
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "assistant" and (parts := split_call(content)):
            before, name, arguments = parts
            answers = f"call{number:05d}"  # nine letters and digits, as Mistral wants them
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            call = {"id": answers, "type": "function", "function": function}
            sent.append({**message, "content": before, "tool_calls": [call]})
        elif message["role"] == "user" and answers:
            sent.append({"role": "tool", "tool_call_id": answers, "content": content})
            answers = ""
        else:
            sent.append(dict(message))
            answers = ""
    return sent
