"""Calls of functions in a local model's own template.

`ToolCodec` writes the functions where the model's template lists them, calls as the template writes
them, and observations as it writes the results of calls; and reads what the model writes. Where
only a special token of the model could tell that (which no reply's text may hold), our own notation
stands in its place, which is that of Hermes and Qwen. For a template without functions they are
listed at the end of the system message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.agents.tool_calls import split_call, translated
from stepagent.envs.react import Message
from stepagent.envs.tools import Tool, write_call

_MARK = "⟦result⟧"
_OWN = ("history_thoughts", "date")
"""Arguments that are the codec's and not the template's."""


class ToolCodec(ChatCodec):
    """Writes conversations in which actions are calls of some functions.

    Raises what `ChatCodec` raises.
    """

    def __init__(
        self, tokenizer: Any, tools: Sequence[Tool], arguments: Mapping[str, Any] | None = None
    ):
        schemas = [tool.schema() for tool in tools]
        self.listed = "" if _knows_tools(tokenizer, schemas) else _listed(schemas)
        """What the system message says of the functions, where the template cannot."""
        given = dict(arguments or {})
        super().__init__(tokenizer, given if self.listed else {**given, "tools": schemas})
        self._options = {name: value for name, value in given.items() if name not in _OWN}
        self._schemas = schemas
        self._native = lru_cache(maxsize=65536)(self._write)
        self._around = ("", "") if self.listed else self._around_results()

    # Writing ------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> Encoded:
        return super().encode(self.native(messages), *args, **kwargs)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return super().prompt(self.native(messages))

    def reply_ids(self, reply: str) -> list[int]:
        return super().reply_ids(self._native(reply.strip()))

    def body_ids(self, reply: str) -> list[int]:
        return super().body_ids(self._native(reply.strip()))

    def native(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with calls and results as the template writes them; one that is written
        so already stays as it is."""
        written: list[Message] = []
        before, after = self._around
        follows_call = False
        for message in messages:
            role, text = message["role"], message["content"]
            if role == "assistant":
                follows_call = split_call(translated(text)) is not None
                text = self._native(text.strip())
            elif role == "user" and follows_call and not text.startswith(before or "\0"):
                text = f"{before}{text}{after}"
            written.append({"role": role, "content": text})
        if self.listed and (not written or written[0]["role"] != "system"):
            written.insert(0, {"role": "system", "content": self.listed})
        elif self.listed and self.listed not in written[0]["content"]:
            written[0]["content"] += f"\n\n{self.listed}"
        return written

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generated reply, its call in our notation."""
        return translated(super().decode(ids))

    def _write(self, reply: str) -> str:
        """A reply as the template writes it in history, the call included."""
        parts = None if self.listed else split_call(translated(reply))
        if parts is None:
            return reply
        before, name, arguments = parts
        call = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        question: dict[str, Any] = {"role": "user", "content": "?"}
        prompt = self._template([question], True)
        text = self._template(
            [question, {"role": "assistant", "content": before, "tool_calls": [call]}], False
        )
        ours = f"{before}\n{write_call(name, arguments)}".strip()
        if text is None or prompt is None or not text.startswith(prompt):
            return ours
        body = self._without_end(text[len(prompt) :])
        return body if body is not None and split_call(translated(body)) else ours

    def _without_end(self, text: str) -> str | None:
        """A reply's text up to its end of turn; None if a special token stands within."""
        ids = self._raw(text)
        specials = set(self.tokenizer.all_special_ids)
        end = next((i for i, token in enumerate(ids) if token in specials), len(ids))
        rest = self.tokenizer.decode(ids[end:], skip_special_tokens=True)
        return None if rest.strip() else self.tokenizer.decode(ids[:end]).strip()

    def _around_results(self) -> tuple[str, str]:
        """What the template writes around the result of a call, in the place of an observation."""
        call = {
            "id": "call00000",
            "type": "function",
            "function": {"name": self._schemas[0]["function"]["name"], "arguments": {}},
        }
        talk: list[dict[str, Any]] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        result = {"role": "tool", "tool_call_id": "call00000", "content": _MARK}
        as_result = self._template([*talk, result], True) or ""
        as_turn = self._template([*talk, {"role": "user", "content": _MARK}], True) or ""
        if as_result.count(_MARK) != 1 or as_turn.count(_MARK) != 1:
            return "", ""
        (head, tail), (turn_head, turn_tail) = as_result.split(_MARK), as_turn.split(_MARK)
        if not (head.startswith(turn_head) and tail.endswith(turn_tail)):
            return "", ""
        around = head[len(turn_head) :], tail[: len(tail) - len(turn_tail)]
        specials = set(self.tokenizer.all_special_ids)
        plain = not any(specials & set(self._raw(text)) for text in around if text)
        return around if plain else ("", "")

    def _template(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str | None:
        """What the template writes; None if it cannot."""
        options = {**self._options, "tools": self._schemas}
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompt, **options
                )
            )
        except Exception:  # templates raise errors of their own
            return None


def _knows_tools(tokenizer: Any, schemas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the template lists functions."""
    question = [{"role": "user", "content": "?"}]
    try:
        text = tokenizer.apply_chat_template(question, tokenize=False, tools=list(schemas))
    except Exception:  # templates raise errors of their own
        return False
    return all(schema["function"]["name"] in text for schema in schemas)


def _listed(schemas: Sequence[Mapping[str, Any]]) -> str:
    functions = "\n".join(json.dumps(schema["function"]) for schema in schemas)
    example = write_call("<name>", {"<argument>": "<value>"})
    return f"These are the functions:\n{functions}\n\nWrite a call so:\n{example}"
