"""Conversations as tokens, piece by piece and the same in training and in acting.

A chat template is a program over the entire conversation. `ChatCodec` asks it once, with marker
texts, what it writes around the turns, and from then on writes the conversation as a sequence of
pieces: `state piece, reply, state piece, reply, …`. A reply's span of tokens is thus known by
construction (no searching for strings), a longer conversation always extends the tokens of a
shorter one (so a key-value cache stays valid), and a model sees in acting what it was trained on.

Only the template writes special tokens: where a text contains one (`</s>` in a web page, a forged
end of turn), a space breaks it into ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from stepagent.envs.react import STOP, Message
from stepagent.errors import UsageError

_MARKS = ("⟦system⟧", "⟦one⟧", "⟦two⟧", "⟦three⟧", "⟦four⟧", "⟦five⟧")


class ChatTemplateError(UsageError):
    """The model's chat template is missing, or cannot be applied turn by turn."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    ids: list[int]
    replies: list[tuple[int, int]] = field(default_factory=list)
    """Half-open spans [start, end) of the replies, the end-of-turn token included (but see `cut_at`
    of `encode`). The state that the i-th reply answers is `ids[:replies[i][0]]`."""
    experts: list[list[int]] = field(default_factory=list)
    """The expert's reply in each of these states, where the conversation is not the expert's own;
    empty: it is."""

    def expert(self, step: int) -> list[int]:
        """The expert's reply in the state of a step, counted from 0."""
        start, end = self.replies[step]
        return self.experts[step] if self.experts else self.ids[start:end]


@dataclass(frozen=True)
class _Wrapping:
    """What a template writes around the first observation, later observations and replies."""

    before_first: str
    """Up to the first observation; holds the system mark where the template has a system role."""
    before_reply: str
    end_of_turn: str
    before_next: str


class ChatCodec:
    """Writes conversations for one tokenizer.

    Raises ChatTemplateError where the tokenizer has no chat template, or one whose text before a
    turn depends on later turns.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateError(
                f"{getattr(tokenizer, 'name_or_path', tokenizer)!r} has no chat template: use an "
                "instruction-tuned model, or set `tokenizer.chat_template` and save it again"
            )
        names = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        names = {name for name in names | set(tokenizer.all_special_tokens) if name}
        longest_first = sorted(names, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.has_system_role = self._probe(system=True) is not None
        plain = self._probe(system=False)
        if plain is None:
            raise ChatTemplateError(
                f"the chat template of {tokenizer.name_or_path!r} does not write each turn the "
                "same way, so conversations cannot be extended turn by turn"
            )
        self._plain = plain
        self._with_system = self._probe(system=True) or plain
        eot = self._raw(plain.end_of_turn)
        self.end_of_turn_id: int = eot[-1]
        """Ends every reply; generation stops at it."""
        self._state = lru_cache(maxsize=65536)(self._encode_state)
        self._reply = lru_cache(maxsize=65536)(self._encode_reply)
        self._body = lru_cache(maxsize=65536)(self._encode_body)
        self._closing: dict[int, bool] = {}

    def _probe(self, system: bool) -> _Wrapping | None:
        """Reads the wrapping off the template; None where it is irregular or drops a text."""
        roles = ["user", "assistant", "user", "assistant", "user"]
        marks = list(_MARKS[1:])
        messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
        if system:
            messages.insert(0, {"role": "system", "content": _MARKS[0]})
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # templates raise their own Jinja errors for roles they do not know
            return None
        if any(text.count(m) != 1 for m in marks) or (system and text.count(_MARKS[0]) != 1):
            return None
        between, rest = [], text
        for mark in marks:
            before, rest = rest.split(mark, 1)
            between.append(before)
        first, reply, after, reply2, after2, reply3 = *between, rest
        if not (reply == reply2 == reply3 and after == after2):
            return None
        end = self._first_special_end(after)
        return _Wrapping(first, reply, after[:end], after[end:]) if end else None

    def _first_special_end(self, text: str) -> int:
        """Index at which the first special token of a text ends; 0 if there is none."""
        match = self._special.search(text)
        return match.end() if match else 0

    def _as_text(self, text: str) -> str:
        """The text, with a space in whatever would be read as a special token."""
        return self._special.sub(lambda name: f"{name[0][:1]} {name[0][1:]}", text)

    def _raw(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _after(self, context: str, text: str) -> list[int]:
        """Tokens of `text` after `context`: at the start of a text they may differ."""
        context_ids, all_ids = self._raw(context), self._raw(context + text)
        if all_ids[: len(context_ids)] != context_ids:
            return self._raw(text)
        return all_ids[len(context_ids) :]

    def _encode_state(self, system: str | None, observation: str) -> tuple[int, ...]:
        """From the end of the last reply (or the start) up to where the next reply begins."""
        observation = self._as_text(observation)
        if system is None:
            w = self._plain
            return tuple(self._after(w.end_of_turn, w.before_next + observation + w.before_reply))
        system = self._as_text(system)
        w = self._with_system if system else self._plain
        if system and self.has_system_role:
            text = w.before_first.replace(_MARKS[0], system) + observation
        else:
            text = w.before_first + (f"{system}\n\n{observation}" if system else observation)
        return tuple(self._raw(text + w.before_reply))

    def _encode_body(self, reply: str) -> tuple[int, ...]:
        """A reply without its end of turn."""
        return tuple(self._after(self._plain.before_reply, self._as_text(reply)))

    def _encode_reply(self, reply: str) -> tuple[int, ...]:
        w = self._plain
        return tuple(self._after(w.before_reply, self._as_text(reply) + w.end_of_turn))

    def reply_ids(self, reply: str) -> list[int]:
        """Tokens of a reply in its place, the end-of-turn token last."""
        return list(self._reply(reply.strip()))

    def body_ids(self, reply: str) -> list[int]:
        """Tokens of a reply in its place, without an end of turn."""
        return list(self._body(reply.strip()))

    def encode(self, messages: Sequence[Message], cut_at: int | None = None) -> Encoded:
        """Encodes a conversation that ends in an observation (to answer) or a reply (to learn).

        `cut_at` is the length limit, in tokens, of whoever wrote the replies. One that fills it
        never came to its end: the end of turn after it is part of the next state, not of its span.

        Raises ValueError unless it is [system,] user, assistant, user, assistant, …
        """
        turns = list(messages)
        system = turns.pop(0)["content"].strip() if turns and turns[0]["role"] == "system" else ""
        ids: list[int] = []
        replies = []
        for i, message in enumerate(turns):
            role, text = message["role"], message["content"].strip()
            if role != ("user", "assistant")[i % 2]:
                raise ValueError(
                    f"message {i} of a conversation has the role {role!r}: users and "
                    "assistants must take turns, after at most one system message"
                )
            if role == "user":
                ids += self._state(system if i == 0 else None, text)
            else:
                start = len(ids)
                ids += self._reply(text)
                end = len(ids)
                if cut_at is not None and len(body := self._body(text)) >= cut_at:
                    end = start + len(body)
                replies.append((start, end))
        if not turns:
            raise ValueError("a conversation needs at least one observation")
        return Encoded(ids, replies)

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
        return any(stop in text for stop in STOP)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a generated reply, without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def fit(self, messages: Sequence[Message], limit: int) -> tuple[list[Message], bool]:
        """The conversation cut to at most `limit` tokens, and whether it was cut.

        Turns are removed from the middle: the system message, the first observation (it holds the
        task) and the latest turns stay. They are removed four at a time, so that a growing
        conversation keeps the same beginning for several turns and its cache stays valid. If the
        latest turn alone is too long, its observation loses its middle.
        Raises ValueError if system message and task alone exceed the limit.
        """
        turns = list(messages)
        if len(self.encode(turns).ids) <= limit:
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
            if len(self.encode(cut).ids) <= limit:
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
            if len(self.encode(cut).ids) <= limit:
                return cut
        raise ValueError(
            f"the system message alone needs more than the {limit} tokens of context available: "
            "leave out the example (`example: false`), or use a model with a longer context"
        )


def _middle(text: str, keep: int) -> str:
    """The text without its middle, at most `keep` characters long."""
    return text if len(text) <= keep else f"{text[: keep // 2]} […] {text[-keep // 2 :]}"
