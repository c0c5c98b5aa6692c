"""Calls of functions in a local model's own template.

Where the model's template lists functions, `ToolCodec` gives it calls and their results as such: a
state is what the template makes of them, special tokens and all (`[TOOL_CALLS]`, a channel, …), and
a reply is learned as the template writes it, up to the token that ends a call. What the model
generates is read with its special tokens (`agents.tool_calls`). Under a template without functions
these are listed in the system message, and calls are text in our own notation, which is that of
Hermes and Qwen; so is a call that could not be read back as its template writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stepagent.agents.bounded_template import TemplateLimit
from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.agents.chat_template import (
    THINK_BLOCK,
    ChatTemplate,
    ChatTemplateError,
    Wrapping,
    render,
    split_thought,
    template_of,
)
from stepagent.agents.tool_calls import (
    listed,
    split_call,
    thought_end,
    translated,
    with_list,
)
from stepagent.envs.react import Message, parse
from stepagent.envs.tools import CLOSE, OPEN, Tool, write_call

_QUESTION, _SAID, _RESULT = "⟦question⟧", "⟦said⟧", "⟦result⟧"
_CALL = re.compile(rf"{OPEN}.*?(?:{CLOSE}|\Z)", re.DOTALL)
_EMPTY_THOUGHT = re.compile(r"\A\s*+(<think>)?+\s*+</think>\s*+")
_CALL_IDS = ("call00000", "functions.{name}:0")
"""Ids of calls: nine letters and digits, as Mistral has them; Kimi's, which hold the function's
name. They are the same in every turn: some models write them, and these can be learned."""


class ToolTemplate(ChatTemplate):
    """A chat template that lists functions, and is given calls and their results as such.

    Parameters
    ----------
    tools: the functions' schemas, at least one.
    arguments: as for `ChatTemplate`.
    """

    def __init__(
        self, tokenizer: Any, tools: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
    ):
        super().__init__(tokenizer, {**arguments, "tools": list(tools)}, in_replies=(OPEN, CLOSE))
        self.written = lru_cache(maxsize=65536)(self._written)
        self.call_end = ""
        """What ends a reply that calls a function; "" where the template writes no calls."""
        call = write_call(tools[0]["function"]["name"], {})
        for self._call_id in _CALL_IDS:
            if written := self._written(call):
                self.call_end = written[1]
                break
        talk = [_message("user", _QUESTION), _message("assistant", call), _message("user", _RESULT)]
        self._has_results = True
        shown = self._try(self.given(talk))
        self._has_results = isinstance(shown, str) and shown.count(_RESULT) == 1

    def given(self, turns: Sequence[Message]) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        call: Mapping[str, Any] | None = None  # that the next observation is the result of
        for turn in turns:
            if turn["role"] == "assistant":
                has_call = self.written(turn["content"].strip())
                message = self._structured(turn) if has_call else self._message(turn)
                [call] = message.get("tool_calls", [None])
            else:
                message = self._message(turn)
                if call and self._has_results:
                    message |= _result_of(call)
            messages.append(message)
        return messages

    def _structured(self, turn: Message) -> dict[str, Any]:
        """The message of a reply that calls a function."""
        before, name, arguments = self._parts(turn["content"].strip())
        message = self._message(_message("assistant", before))
        if self.continuation.thought:  # such a template takes no content beside a call
            thought, said = split_thought(message["content"])
            words = _lines(message.get("thinking"), thought, said)
            message = {"role": "assistant", "content": "", **_as_thought(words)}
        call = {
            "id": self._call_id.format(name=name),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        return {**message, "tool_calls": [call]}

    def _parts(self, reply: str) -> tuple[str, str, dict[str, Any]]:
        """What a reply says before its call, the function's name and its arguments."""
        parts = split_call(self.plain_reply(translated(reply)))
        assert parts is not None
        return parts[0], parts[1], dict(parts[2])

    # Replies ------------------------------------------------------------------------------------

    def _written(self, reply: str) -> tuple[str, str] | None:
        """How a reply that calls a function stands behind its prompt, and what ends its turn; None
        for one that calls none, or could not be read back."""
        if split_call(self.plain_reply(translated(reply))) is None:
            return None
        call = {**self._structured(_message("assistant", reply)), "content": ""}
        for field in _as_thought("."):
            call.pop(field, None)
        bare = self._behind_prompt(call)
        if bare is None:
            return None
        (text, end), (before, *_) = bare, self._parts(reply)
        if before:
            text = self._with_words(before, call, text.lstrip())
        elif self.continuation.opened or "</think>" in self.continuation.lead:
            text = self.continuation.body("") + text.lstrip()
        same = _meaning(self.read(text + end)) == _meaning(self.plain_reply(translated(reply)))
        return (text, end) if same else None

    def _with_words(self, before: str, call: Mapping[str, Any], text: str) -> str:
        """The text of a call behind what the reply thinks and says before it."""
        continuation, (thought, said) = self.continuation, split_thought(before)
        fields = _as_thought(_SAID) if continuation.thought else {"content": _SAID}
        head, has_words, tail = (self._behind_prompt({**call, **fields}) or ("",))[0].partition(
            _SAID
        )
        if continuation.thought:
            return f"{head}{_lines(thought, said)}{tail}" if has_words else text
        if not said:
            return continuation.body(f"{before}\n\n") + text
        # A template that leaves the words out in history does not say what comes between.
        return continuation.body(before) + (tail if has_words else f"\n{text}")

    def _behind_prompt(self, call: Mapping[str, Any]) -> tuple[str, str] | None:
        """What the template writes of a call behind its prompt, without an empty thought, and what
        ends its turn; None where it fails, or writes it elsewhere."""
        talk = [{"role": "user", "content": _QUESTION}, call]
        prompt, text = self._try(talk[:1]), self._try(talk, prompt=False)
        if isinstance(prompt, Exception) or isinstance(text, Exception):
            return None
        header, after = (side.partition(_QUESTION)[2] for side in (prompt, text))
        if not after.startswith(header):
            header = THINK_BLOCK.sub("", header)
        if not after.startswith(header):
            return None
        rest = _EMPTY_THOUGHT.sub("", after[len(header) :]).rstrip()
        specials = [match[0] for match in self.special.finditer(rest)]
        own_end = self.special.search(self.continuation.end_of_turn)
        if own_end and own_end[0] in specials:
            return rest[: rest.index(own_end[0])], own_end[0]
        if specials and rest.endswith(specials[-1]) and specials[-1] != CLOSE:
            return rest.removesuffix(specials[-1]), specials[-1]
        return rest, self._beginning_of_result(text.rstrip(), talk)

    def _beginning_of_result(self, text: str, talk: Sequence[Mapping[str, Any]]) -> str:
        """The special token with which the next turn begins, which ends a call that nothing else
        does (GLM); without one, what ends any reply."""
        result = {"content": _RESULT, **_result_of(talk[-1]["tool_calls"][0])}
        longer = self._try([*talk, result])
        if not (isinstance(longer, str) and longer.startswith(text)):
            return self.continuation.end_of_turn
        begins = self.special.match(longer[len(text) :].lstrip())
        return begins[0] if begins else self.continuation.end_of_turn

    def read(self, text: str) -> str:
        """A generated text, special tokens included, with its call in our notation; "" if it calls
        no function."""
        text = translated(text)
        call = _CALL.search(text, thought_end(text))
        if call is None:
            return ""
        before, rest = text[: call.start()], text[call.start() :]
        if self.continuation.thought and self.special.search(before):
            parsed = parse(before)
            thought = _lines(parsed.thought, parsed.action)
            before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
        return self.without_special(before + rest)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _result_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message that is the result of a call, but for its content."""
    return {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"]}


def _as_thought(text: str) -> dict[str, str]:
    """A thought in the fields that templates know."""
    return dict.fromkeys(("reasoning_content", "thinking"), text) if text else {}


def _lines(*texts: str | None) -> str:
    return "\n".join(filter(None, texts))


def _meaning(reply: str) -> Any:
    """What a reply says and calls; some notations write all arguments as texts."""
    parts = split_call(reply)
    if parts is None:
        return None
    _, name, arguments = parts
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    return parse(reply).thought, name, values


class ToolCodec(ChatCodec):
    """Writes conversations in which actions are calls of some functions.

    Raises what `ChatCodec` raises.
    """

    def __init__(
        self, tokenizer: Any, tools: Sequence[Tool], arguments: Mapping[str, Any] | None = None
    ):
        self._schemas = [tool.schema() for tool in tools]
        self.listed = "" if _knows_tools(tokenizer, self._schemas) else listed(self._schemas)
        """What the system message says of the functions, where the template cannot."""
        super().__init__(tokenizer, arguments)
        self._tools = self.template if isinstance(self.template, ToolTemplate) else None
        if self._tools and self._tools.call_end:
            self.end_ids |= {self._raw(self._tools.call_end)[-1]}
        self._decodes_special |= bool(self.template.special.search(OPEN))

    def _make_template(self, arguments: Mapping[str, Any] | None) -> ChatTemplate:
        if self.listed:
            return ChatTemplate(self.tokenizer, arguments, in_replies=(OPEN, CLOSE))
        return ToolTemplate(self.tokenizer, self._schemas, arguments or {})

    def _wrapping(self, system: str, turns: Sequence[Message]) -> Wrapping | None:
        return super()._wrapping(system, turns) if self.listed else None

    def encode(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> Encoded:
        return super().encode(self._with_list(messages), *args, **kwargs)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return super().prompt(self._with_list(messages))

    def _with_list(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the functions in its system message, where the template does not
        list them."""
        return with_list(messages, self.listed) if self.listed else list(messages)

    def _encode_reply(self, reply: str) -> tuple[int, ...]:
        written = self._tools.written(reply) if self._tools else None
        return self._behind_prompt("".join(written)) if written else super()._encode_reply(reply)

    def _encode_body(self, reply: str) -> tuple[int, ...]:
        written = self._tools.written(reply) if self._tools else None
        return self._behind_prompt(written[0]) if written else super()._encode_body(reply)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generated reply, its call in our notation."""
        if self._tools:
            text = self.tokenizer.decode(ids, skip_special_tokens=False)
            if reply := self._tools.read(text):
                return reply
        return translated(super().decode(ids))

    def _bare(self, reply: str) -> str:
        """A reply whose call is written in the one way that we do."""
        text = translated(reply)
        meaning, call = _meaning(text), _CALL.search(text, thought_end(text))
        if meaning is None or call is None:
            return super()._bare(reply)
        return f"{meaning}{text[call.end() :].strip()}"


def codec_of(
    tokenizer: Any, arguments: Mapping[str, Any] | None = None, tools: Sequence[Tool] = ()
) -> ChatCodec:
    """The codec of conversations with these functions; without any, that of ReAct's lines."""
    return ToolCodec(tokenizer, tools, arguments) if tools else ChatCodec(tokenizer, arguments)


def _knows_tools(tokenizer: Any, schemas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the template lists functions."""
    arguments = {"tools": list(schemas)}
    try:
        source = tokenizer.get_chat_template(None, arguments["tools"])
        text = render(tokenizer, source, [_message("user", "?")], False, arguments)
    except TemplateLimit as error:
        raise ChatTemplateError(f"{template_of(tokenizer)} needs too much: {error}") from None
    except Exception:  # templates raise errors of their own
        return False
    return all(schema["function"]["name"] in text for schema in schemas)
