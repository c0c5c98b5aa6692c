"""Conversations as tokens, turn by turn and the same in training and in acting.

The state that a reply answers is what the model's own chat template gives as the prompt of that
turn; the reply follows, and what ends a turn. Where the template writes every turn the same way,
`ChatCodec` reads off once, with marker texts, what it writes around them, and from then on puts
the conversation together from pieces: `state piece, reply, state piece, reply, …`. A longer
conversation then extends the tokens of a shorter one, so that a key-value cache stays valid. Any
other template is asked for the prompt of every turn, and the row of tokens branches where it has
rewritten history (`agents.encoded`). Either way a reply's span of tokens is known by construction
(no searching for strings), and a model sees in acting what it was trained on.

Only the template writes special tokens: where a text contains one (`</s>` in a web page, a forged
end of turn), a space breaks it into ordinary text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from stepagent.agents.chat_template import (
    SYSTEM,
    ChatTemplate,
    ChatTemplateError,
    Wrapping,
    split_thought,
)
from stepagent.agents.encoded import Encoded, encode_paths
from stepagent.envs.react import STOP, Message, cut

__all__ = ["ChatCodec", "ChatTemplateError", "Encoded"]


class ChatCodec:
    """Writes conversations for one tokenizer; `arguments` are those of its chat template.

    `arguments` are those of the chat template, and two of our own (`agents.chat_template`). Raises
    what `ChatTemplate` raises.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any] | None = None):
        self.tokenizer = tokenizer
        self.template = self._make_template(arguments)
        self.has_system_role = self.template.has_system_role
        wrapping = self.template.regular
        self._end = (wrapping or self.template.continuation).end_of_turn
        self.end_of_turn_id: int = self._raw(self._end)[-1]
        """Ends every reply; generation stops at it."""
        self.end_ids = frozenset({self.end_of_turn_id})
        """All tokens that the template ends a reply with."""
        self._state = lru_cache(maxsize=65536)(self._encode_state)
        self._reply = lru_cache(maxsize=65536)(self._encode_reply)
        self._body = lru_cache(maxsize=65536)(self._encode_body)
        self._closing: dict[int, bool] = {}
        self._decodes_special = bool(
            self.template.continuation.thought or self.template.special.search("<think></think>")
        )

    def _make_template(self, arguments: Mapping[str, Any] | None) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, arguments)

    def _raw(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _after(self, context: str, text: str) -> list[int]:
        """Tokens of `text` after `context`: at the start of a text they may differ."""
        context_ids, all_ids = self._raw(context), self._raw(context + text)
        if all_ids[: len(context_ids)] != context_ids:
            return self._raw(text)
        return all_ids[len(context_ids) :]

    # Templates that write every turn the same way ------------------------------------------------

    def _wrapping(self, system: str, turns: Sequence[Message]) -> Wrapping | None:
        """The pieces of this conversation; None where the template has to be asked turn by turn."""
        template = self.template
        if template.continuation.rewrites_thoughts or template.history == "drop":
            replies = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            kept = template.history == "keep" and not template.continuation.thought
            if not kept and any(split_thought(reply)[0] is not None for reply in replies):
                return None
        return template.regular_with_system if system else template.regular

    def _encode_state(self, system: str | None, observation: str) -> tuple[int, ...]:
        """From the end of the last reply (or the start) up to where the next reply begins."""
        plain = self.template.regular
        assert plain is not None
        observation = self.template.plain(observation)
        if system is None:
            text = plain.before_next + observation + plain.before_reply
            return tuple(self._after(plain.end_of_turn, text))
        system = self.template.plain(system)
        w = self.template.regular_with_system if system else plain
        assert w is not None
        if system and self.has_system_role:
            text = w.before_first.replace(SYSTEM, system) + observation
        else:
            text = w.before_first + (f"{system}\n\n{observation}" if system else observation)
        return tuple(self._raw(text + w.before_reply))

    # Replies ------------------------------------------------------------------------------------

    def _written(self, reply: str, ended: bool = True) -> str:
        return self.template.continuation.body(self.template.plain_reply(reply), ended)

    def _encode_body(self, reply: str) -> tuple[int, ...]:
        """A reply without its end of turn."""
        return self._behind_prompt(self._written(reply, ended=False))

    def _encode_reply(self, reply: str) -> tuple[int, ...]:
        return self._behind_prompt(self._written(reply) + self._end)

    def _behind_prompt(self, text: str) -> tuple[int, ...]:
        return tuple(self._after(self.template.continuation.prompt, text))

    def reply_ids(self, reply: str) -> list[int]:
        """Tokens of a reply in its place, the end-of-turn token last."""
        return list(self._reply(reply.strip()))

    def body_ids(self, reply: str) -> list[int]:
        """Tokens of a reply in its place, without an end of turn."""
        return list(self._body(reply.strip()))

    # Conversations ------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation that ends in an observation, up to where the reply begins.

        Raises what `encode` raises.
        """
        system, turns = _turns(messages)
        if self._wrapping(system, turns):
            return self.encode(messages).ids
        return self._raw(self.template.prompt(system, turns))

    def encode(
        self,
        messages: Sequence[Message],
        cut_at: int | None = None,
        tokens: Sequence[Sequence[int]] = (),
    ) -> Encoded:
        """Encodes a conversation that ends in an observation (to answer) or a reply (to learn).

        `cut_at` is the length limit, in tokens, of whoever wrote the replies. One that fills it
        never came to its end: the end of turn after it is part of the next state, not of its span.
        `tokens` are those that a model really produced for each reply, as far as they are known
        (none: empty). They are the reply's, as far as they are its text (`produced`); the states
        hold what the model was shown.

        Raises ValueError unless it is [system,] user, assistant, user, assistant, …;
        ChatTemplateError where the template fails on it.
        """
        encoded = self._encode(*_turns(messages), cut_at)
        if not any(tokens):
            return encoded
        replies = [m["content"].strip() for m in messages if m["role"] == "assistant"]
        paths = []
        for step, (text, ids) in enumerate(zip(replies, tokens, strict=True)):
            start, end = encoded.replies[step]
            paths.append((encoded.state(step), self.produced(text, ids) or encoded.ids[start:end]))
        return encode_paths(paths)

    def _encode(self, system: str, turns: Sequence[Message], cut_at: int | None) -> Encoded:
        if not self._wrapping(system, turns):
            return self._encode_by_turn(system, turns, cut_at)
        ids: list[int] = []
        replies = []
        for i, message in enumerate(turns):
            text = message["content"].strip()
            if i % 2 == 0:
                ids += self._state(system if i == 0 else None, text)
                continue
            start = len(ids)
            ids += self._reply(text)
            end = len(ids)
            if cut_at is not None and len(body := self._body(text)) >= cut_at:
                end = start + len(body)
            replies.append((start, end))
        return Encoded(ids, replies)

    def _encode_by_turn(self, system: str, turns: Sequence[Message], cut_at: int | None) -> Encoded:
        paths = []
        for i in range(0, len(turns), 2):
            state = self._raw(self.template.prompt(system, turns[: i + 1]))
            reply: list[int] = []
            if i + 1 < len(turns):
                text = turns[i + 1]["content"]
                reply = self.reply_ids(text)
                if cut_at is not None and len(body := self.body_ids(text)) >= cut_at:
                    reply = body
            paths.append((state, reply))
        return encode_paths(paths)

    def produced(self, reply: str, ids: Sequence[int]) -> list[int]:
        """The tokens of a reply among those that a model produced, its end of turn included unless
        it was cut or went on behind what was kept of it; none where they are not this tokenizer's:
        it would spell the reply otherwise.
        """
        if not ids or max(ids) >= len(self.tokenizer):  # which `decode` would leave out
            return []
        ended, text = ids[-1] in self.end_ids, self._bare(reply)
        if self._bare(self.decode(ids[:-1] if ended else ids)) == text:
            return list(ids)
        size = bisect_left(
            range(len(ids)), True, key=lambda n: self._bare(cut(self.decode(ids[:n]))) == text
        )
        return list(ids[:size]) if self._bare(self.decode(ids[:size])) == text else []

    def _bare(self, reply: str) -> str:
        """A reply without the blanks around its thought, and the opening that the prompt has:
        servers that return thoughts apart do not tell them."""
        thought, closed, answer = reply.strip().partition("</think>")
        if opens := thought.startswith("<think>"):
            thought = thought.removeprefix("<think>")
        opening = "<think>" if opens and not self.opens_thought else ""
        return f"{opening}{thought.strip()}{closed}{answer.strip()}"

    @property
    def opens_thought(self) -> bool:
        """Whether the prompt of a reply ends within a thought."""
        return self.template.continuation.opened

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply for an engine that can look for texts alone: `has_stop` without
        an eye for thoughts, which may hold such texts."""
        return () if self.opens_thought else STOP

    def is_thinking(self, reply: str) -> bool:
        """Whether a reply that is being generated is still a thought: anything may stand there."""
        opened = self.opens_thought or reply.lstrip().startswith("<think>")
        return opened and "</think>" not in reply

    def has_stop(self, ids: Sequence[int]) -> bool:
        """Whether a reply that is being generated contains a stop text (`envs.react.STOP`): after
        it the agent plays the environment. Decoded only after a token that could end one."""
        last = ids[-1]
        if last not in self._closing:
            text = self.decode([last])
            self._closing[last] = any(stop[-1] in text for stop in STOP)
        if not self._closing[last]:
            return False
        text = self.decode(ids)
        return not self.is_thinking(text) and any(stop in text for stop in STOP)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generated reply, without special tokens; a thought stands in `<think>`."""
        if not self._decodes_special:
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        continuation = self.template.continuation
        if continuation.thought:
            written = (*continuation.thought, continuation.lead)
            for part, tag in zip(written, ("<think>", "</think>", ""), strict=True):
                text = text.replace(part, tag)
        return self.template.without_special(text)

    def used(self, ids: Sequence[int]) -> list[int]:
        """The tokens of a generated reply that thought and action were read from.

        As in a conversation's text (`envs.react.cut`), what follows the action is left out, its end
        of turn too: after all that, it says nothing about the action.
        """
        text = self.decode(ids).strip()
        kept = cut(text)
        if kept in ("", text):
            return list(ids)
        size = bisect_left(range(len(ids)), True, key=lambda n: cut(self.decode(ids[:n])) == kept)
        return list(ids[:size])

    def fit(self, messages: Sequence[Message], limit: int) -> tuple[list[Message], bool]:
        """The conversation cut to at most `limit` tokens, and whether it was cut.

        Turns are removed from the middle: the system message, the first observation (it holds the
        task) and the latest turns stay. They are removed four at a time, so that a growing
        conversation keeps the same beginning for several turns and its cache stays valid. If the
        latest turn alone is too long, its observation loses its middle.
        Raises ValueError if system message and task alone exceed the limit.
        """
        turns = list(messages)
        if len(self.prompt(turns)) <= limit:
            return turns, False
        first = 2 if turns[0]["role"] == "system" else 1
        head, pairs = turns[:first], (len(turns) - first) // 2
        for dropped in range(4, pairs + 4, 4):
            # The first observation is followed by its reply, so a pair is (reply, observation).
            # One note replaces all that are dropped.
            tail = turns[first + 2 * min(dropped, pairs) :]
            note = f"{head[-1]['content']}\n\n[{min(dropped, pairs)} turns left out]"
            if dropped >= pairs:
                break
            cut: list[Message] = [*head[:-1], {"role": "user", "content": note}, *tail]
            if len(self.prompt(cut)) <= limit:
                return cut, True
        last = turns[-1]["content"] if pairs else ""
        return self._fit_last(head, last, pairs, limit), True

    def _fit_last(self, head: list[Message], last: str, pairs: int, limit: int) -> list[Message]:
        """Task and latest observation in one message, each without its middle where it is long."""
        task = head[-1]["content"]
        note = f"\n\n[{pairs} turns left out]\n\n" if pairs else ""
        for keep in (8192, 4096, 2048, 1024, 512, 256, 128, 64):
            text = _middle(task, keep) + note + _middle(last, keep)
            cut: list[Message] = [*head[:-1], {"role": "user", "content": text}]
            if len(self.prompt(cut)) <= limit:
                return cut
        raise ValueError(
            f"the system message alone needs more than the {limit} tokens of context available: "
            "leave out the example (`example: false`), or use a model with a longer context"
        )


def _middle(text: str, keep: int) -> str:
    """The text without its middle, at most `keep` characters long."""
    return text if len(text) <= keep else f"{text[: keep // 2]} […] {text[-keep // 2 :]}"


def _turns(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """The system message ("" where there is none), and the turns. Raises ValueError unless users
    and assistants take turns."""
    turns = list(messages)
    system = turns.pop(0)["content"].strip() if turns and turns[0]["role"] == "system" else ""
    for i, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[i % 2]:
            raise ValueError(
                f"message {i} of a conversation has the role {message['role']!r}: users and "
                "assistants must take turns, after at most one system message"
            )
    if not turns:
        raise ValueError("a conversation needs at least one observation")
    return system, turns
