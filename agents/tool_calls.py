"""Calls of functions in the notations of models and of OpenAI's API, and in ours (`envs.tools`).

A conversation holds calls in our notation. Servers get them as `tool_calls` and observations as the
role `tool` (`structured`); what models write, each family in its own way, is read by `translated`:

| family                    | writes                                                            |
|---------------------------|-------------------------------------------------------------------|
| Hermes, Qwen 2.5 and 3    | `<tool_call>{"name": …, "arguments": …}</tool_call>`              |
| Qwen3-Coder, Nemotron 3   | `<tool_call><function=NAME><parameter=KEY>…` in it                |
| GLM-4.5                   | `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>…` in it         |
| GLM-4                     | `NAME` on a line, `{…}` on the next                               |
| Llama 3                   | `{"name": …, "parameters": …}`, perhaps after `<|python_tag|>`    |
| Mistral                   | `[TOOL_CALLS]` and a list, or `NAME[CALL_ID]…[ARGS]{…}`           |
| Granite, Phi-4-mini       | `<|tool_call|>` and a list                                        |
| Nemotron Nano             | `<TOOLCALL>` and a list                                           |
| InternLM                  | `<|action_start|><|plugin|>{…}`                                   |
| Command R and A           | a list of `tool_name` and `parameters`, after `<|START_ACTION|>`  |
| Kimi K2                   | `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}` |
| DeepSeek V3, R1           | `<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME` and fenced `{…}` |
| DeepSeek V3.1             | `<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}`                        |
| MiniMax, DeepSeek V3.2    | `<invoke name="NAME"><parameter name="KEY">…`                     |
| gpt-oss                   | `to=functions.NAME`, `commentary` and `{…}`                       |

Where a call is marked as one and its JSON is broken, the environment says so.
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
_INVOKE = re.compile(
    r"(?:<[\w:｜]*(?:tool|function)_calls?>\s*+)?<[\w:｜]*invoke name=\"([\w-]++)\">(.*?)"
    r"(?:</[\w:｜]*invoke>|\Z)",
    re.DOTALL,
)
_INVOKE_PARAMETER = re.compile(
    r"<[\w:｜]*parameter name=\"([\w-]++)\"[^<>]*+>"
    r"((?:(?!</[\w:｜]*parameter>|<[\w:｜]*parameter name=).)*+)</[\w:｜]*parameter>",
    re.DOTALL,
)
_HARMONY_JSON = r"\s*+(?:<\|constrain\|>)?+\s*+(?:json|code)?+\s*+(?:<\|message\|>)?+\s*+(?=\{)"
_HEADED = re.compile(
    r"(?:<\|start\|>assistant)?(?:<\|channel\|>)?commentary to=functions\.([\w-]++)"
    + _HARMONY_JSON
    + r"|(?:<\|start\|>assistant)? ?to=functions\.([\w-]++)<\|channel\|>(?:commentary|analysis)"
    + _HARMONY_JSON
    + r"|\[TOOL_CALLS\]\s*+([\w-]++)(?:\[CALL_ID\]\w++)?+(?:\[ARGS\])?+\s*+(?=\{)"
    r"|(?:<\|tool_calls_section_begin\|>)?<\|tool_call_begin\|>\s*+(?:functions\.)?+([\w-]++):\d++"
    r"\s*+<\|tool_call_argument_begin\|>\s*+(?=\{)"
    r"|(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?+([\w-]++)"
    r"(?:<｜tool▁sep｜>|\s*+```json)\s*+(?=\{)"
)
_NAME = re.compile(r"^([A-Za-z_][\w-]*+)\n(?=\{)", re.MULTILINE)
_MARK = (
    r"<\|python_tag\|>|\[TOOL_CALLS\]|<\|tool_call\|>|<TOOLCALL>|<\|START_ACTION\|>"
    r"|<\|action_start\|>\s*+(?:<\|plugin\|>)?+"
)
_OBJECT = re.compile(
    rf"(?:(?:{_MARK}|^Action:\s*+```json)\s*+|^[^\S\n]*+)(?=(?:\[\s*+)?+\{{\s*+\")", re.MULTILINE
)
_BROKEN = re.compile(rf"(?:{_MARK})\s*+(?=[\[{{])")
_THOUGHT = re.compile(
    r"\A(?:\s*+<think>.*?(?:</think>|\Z)|\s*+\[THINK\].*?(?:\[/THINK\]|\Z)"
    r"|(?:(?!<think>).)*</think>)",
    re.DOTALL | re.IGNORECASE,
)
_MAX_TRIES = 8
"""Places at which a text may begin a call that are looked at."""


def thought_end(text: str) -> int:
    """Where a reply goes on behind its thought, in which a model may rehearse a call."""
    thought = _THOUGHT.match(text)
    return thought.end() if thought else 0


def translated(text: str) -> str:
    """A model's text with its first call in our notation; a text without a call as it is."""
    start = thought_end(text)
    if OPEN in text[start:]:
        return text[:start] + _INSIDE.sub(_inside, text[start:], count=1)
    if "invoke name=" in text and (invoked := _INVOKE.search(text, start)):
        pairs = _INVOKE_PARAMETER.findall(invoked.group(2))
        return _joined(text[: invoked.start()], write_call(invoked.group(1), dict(pairs)))
    decoder = json.JSONDecoder()
    if headed := _HEADED.search(text, start):
        name, rest = headed.group(headed.lastindex or 1), text[headed.end() :]
        try:
            arguments, _ = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            arguments = rest.strip()  # broken JSON: the environment says so
        return _joined(text[: headed.start()], write_call(name, arguments))
    for place, _ in zip(_NAME.finditer(text, start), range(_MAX_TRIES), strict=False):
        try:
            arguments, _ = decoder.raw_decode(text, place.end())
        except (ValueError, RecursionError):
            continue
        if not _named(arguments):
            return _joined(text[: place.start()], write_call(place.group(1), arguments))
    for place, _ in zip(_OBJECT.finditer(text, start), range(_MAX_TRIES), strict=False):
        try:
            call, _ = decoder.raw_decode(text, place.end())
        except (ValueError, RecursionError):
            continue
        if written := _named(call):
            return _joined(text[: place.start()], written)
    if broken := _BROKEN.search(text, start):
        return _joined(text[: broken.start()], f"{OPEN}{text[broken.end() :].strip()}{CLOSE}")
    return text


def _named(call: Any) -> str:
    """A call (the first of a list) that is an object with a name, in our notation; else ""."""
    call = call[0] if isinstance(call, list) and call else call
    call = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict):
        return ""
    name = call.get("name", call.get("tool_name"))
    arguments = call.get("arguments", call.get("parameters"))
    return write_call(name, arguments or {}) if isinstance(name, str) else ""


def _joined(before: str, call: str) -> str:
    return f"{before.strip()}\n{call}".strip()


def _inside(match: re.Match[str]) -> str:
    """A call in a notation without JSON, in ours."""
    body = match.group(1)
    for head, parameter in ((_CODER, _CODER_PARAMETER), (_GLM, _GLM_PARAMETER)):
        if call := head.fullmatch(body.strip()):
            pairs = parameter.findall(call.group(2))
            return write_call(call.group(1), {key.strip(): value for key, value in pairs})
    if body.lstrip().startswith("["):  # a list of calls
        try:
            return _named(json.loads(body)) or match.group()
        except (ValueError, RecursionError):
            pass
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
    place = reply.find(OPEN, thought_end(reply))
    return reply[: place if place >= 0 else reply.index(OPEN)].strip(), name, arguments


def listed(schemas: Sequence[Mapping[str, Any]]) -> str:
    """What the system message says of functions, for a model whose template does not list them."""
    functions = "\n".join(json.dumps(schema["function"]) for schema in schemas)
    example = write_call("<name>", {"<argument>": "<value>"})
    return f"These are the functions:\n{functions}\n\nWrite a call so:\n{example}"


def with_list(messages: Sequence[Mapping[str, Any]], text: str) -> list[Any]:
    """The conversation with this text, the list of the functions, at the end of its system message
    (unless it is there)."""
    first, rest = {"role": "system", "content": ""}, list(messages)
    if rest and rest[0]["role"] == "system":
        first = dict(rest.pop(0))
    if text in first["content"]:
        return list(messages)
    return [{**first, "content": f"{first['content']}\n\n{text}".strip()}, *rest]


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
