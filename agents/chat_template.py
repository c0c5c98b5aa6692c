"""A tokenizer's chat template: asked for prompts, and read off for how it writes a reply.

A template is a program over the entire conversation. Where it writes every turn the same way,
`regular` holds what it writes around the turns. Any other is asked again for the prompt of every
turn; of it we have to know how a reply continues a prompt, which `Continuation` holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from stepagent.agents import bounded_template
from stepagent.agents.bounded_template import TemplateLimit
from stepagent.envs.react import Message
from stepagent.errors import UsageError

DATE = date(2024, 7, 26)
"""Today, for templates that write the date: the one that Llama 3 falls back to."""
HISTORY = ("template", "keep", "drop")
"""What becomes of a reply's thought (`<think>…</think>`) once the next turn has come."""
SYSTEM = "⟦system⟧"
_MARKS = ("⟦one⟧", "⟦two⟧", "⟦three⟧", "⟦four⟧", "⟦five⟧")
_THOUGHT = "⟦thought⟧"
_SHOWN = 30
"""Tokens on either side of a difference that an error shows."""
_OPENED = re.compile(r"<think>\s*\Z")
THINK_BLOCK = re.compile(r"(<think>\s*)?(</think>\s*)?\Z")
_NOW = re.compile(r"strftime_now\(\s*+(['\"])((?:(?!\1).)*+)\1\s*+\)")


class ChatTemplateError(UsageError):
    """The model's chat template is missing, fails, or does not say how a reply is written."""


@dataclass(frozen=True)
class Wrapping:
    """What a regular template writes around the first observation, later ones and replies."""

    before_first: str
    """Up to the first observation; holds `SYSTEM` where the template has a system role."""
    before_reply: str
    end_of_turn: str
    before_next: str


@dataclass(frozen=True)
class Continuation:
    """How a reply continues a prompt."""

    prompt: str
    """What the template writes after the last observation."""
    lead: str
    """What the template writes between the prompt and a reply without a thought: a blank, a channel
    header, a closed thought."""
    end_of_turn: str
    opened: bool
    """The prompt ends within a thought."""
    thought: tuple[str, str] | None
    """What the template writes before and after a thought, where that is not `<think>…</think>` in
    the reply itself (gpt-oss's channels)."""
    rewrites_thoughts: bool
    """A reply with a thought is written otherwise in history."""

    def body(self, reply: str, ended: bool = True) -> str:
        """A reply as it stands behind its prompt, without the end of turn.

        A prompt that has opened a thought needs it closed before the rest, except by a reply that
        was cut while it thought (`ended` False).
        """
        thought, answer = split_thought(reply)
        if thought is None:
            if not ended and reply.startswith("<think>") and self.thought:
                return self.thought[0] + reply.removeprefix("<think>").lstrip()
            if not ended and self.opened:
                return reply.removeprefix("<think>").lstrip("\n")
            return self.close + reply if self.opened else self.lead + reply
        if self.thought:
            opening, closing = self.thought
            return f"{opening}{thought}{closing}{answer}" if thought else self.lead + answer
        if self.opened:
            if not thought:
                return self.close + answer
            return reply.removeprefix("<think>").lstrip("\n")
        if "</think>" in self.lead:
            return reply if thought else self.lead + answer
        return self.lead + reply

    @property
    def close(self) -> str:
        """What ends an empty thought that the prompt has opened."""
        return self.lead if "</think>" in self.lead else "\n</think>\n\n"


def split_thought(reply: str) -> tuple[str | None, str]:
    """A reply's thought (None where it has none) and the rest. All before `</think>` is thought,
    whether the reply opened it or the prompt.

    >>> split_thought("<think>a</think>b"), split_thought("a</think>b"), split_thought("b")
    (('a', 'b'), ('a', 'b'), (None, 'b'))
    """
    thought, closed, answer = reply.partition("</think>")
    if not closed:
        return None, reply
    return thought.strip().removeprefix("<think>").strip(), answer.strip()


class ChatTemplate:
    """The chat template of a tokenizer.

    Parameters
    ----------
    arguments: of the template, such as `enable_thinking`; and two of our own, `history_thoughts`
        (one of `HISTORY`) and `date` (YYYY-MM-DD; today, for the template).
    in_replies: what a reply may hold, even if it is a special token, besides the tags of a thought.

    Raises ChatTemplateError where there is none, where it fails on a conversation, runs too long or
    makes too much (`agents.bounded_template`), drops its texts, or does not say how a reply is
    written and ended; ValueError for a wrong argument.
    """

    def __init__(
        self,
        tokenizer: Any,
        arguments: Mapping[str, Any] | None = None,
        in_replies: Iterable[str] = (),
    ):
        self.tokenizer = tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ChatTemplateError(
                f"{_name(tokenizer)!r} has no chat template: use an instruction-tuned model, or "
                "set `tokenizer.chat_template` and save it again"
            )
        self.arguments = dict(arguments or {})
        self.history = self.arguments.pop("history_thoughts", "template")
        if self.history not in HISTORY:
            raise ValueError(
                f"template.history_thoughts is {self.history!r}: it must be one of "
                f"{', '.join(HISTORY)}"
            )
        self._source = self._dated(self.arguments.pop("date", None))
        names = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        names = {name for name in names | set(tokenizer.all_special_tokens) if name}
        self.special = _any_of(names)
        """Matches the tokens that only the template may write."""
        self._not_in_replies = _any_of(names - {"<think>", "</think>", *in_replies})
        plain = self._try(*self._marked(system=False))
        if isinstance(plain, Exception):
            raise self._error(f"fails on a plain conversation: {_short(str(plain))}")
        with_system = self._try(*self._marked(system=True))
        self.has_system_role = isinstance(with_system, str) and SYSTEM in with_system
        self.regular = self._regular(plain, system=False)
        self.regular_with_system = self.regular
        if self.has_system_role:
            self.regular_with_system = self._regular(str(with_system), system=True)
        self.continuation = self._continuation(plain)

    def _error(self, problem: str) -> ChatTemplateError:
        return ChatTemplateError(f"{template_of(self.tokenizer)} {problem}")

    def _dated(self, today: Any) -> str:
        """The template, with a fixed date where it asks for one: `strftime_now` is the one thing by
        which tokens would depend on the day."""
        source = self.tokenizer.get_chat_template(None, self.arguments.get("tools"))
        try:
            day = date.fromisoformat(str(today)) if today else DATE
        except ValueError:
            raise ValueError(f"template.date is {today!r}: it must be like {DATE}") from None
        return _NOW.sub(lambda call: repr(day.strftime(call[2])), source)

    # Asking -------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool = True) -> str:
        """What the template writes, up to where a reply begins if `prompt`."""
        return render(self.tokenizer, self._source, messages, prompt, self.arguments)

    def _try(self, messages: Sequence[Mapping[str, Any]], prompt: bool = True) -> str | Exception:
        try:
            return self.render(messages, prompt)
        except TemplateLimit as error:
            raise self._error(f"needs too much: {error}") from None
        except Exception as error:  # templates raise errors of their own
            return error

    def prompt(self, system: str, turns: Sequence[Message]) -> str:
        """The prompt for the reply to the last of the turns, which an observation ends.

        Raises ChatTemplateError where the template fails on this conversation.
        """
        messages = self.given(turns)
        kept: dict[str, str] = {}
        if self.history == "keep":
            kept = self._marks([system, *(turn["content"] for turn in turns)], messages)
        if system := self.plain(system):
            if self.has_system_role:
                messages.insert(0, {"role": "system", "content": system})
            else:
                messages[0]["content"] = f"{system}\n\n{messages[0]['content']}"
        text = self._try(messages)
        if isinstance(text, Exception):
            raise self._error(
                f"fails on a conversation of {len(turns)} turns: {type(text).__name__}: "
                f"{_short(str(text))}"
            )
        for mark, reply in kept.items():
            lead, body = self.continuation.lead, self.continuation.body(reply)
            if self.continuation.opened:
                body = f"<think>\n{body}"
            text = text.replace(lead + mark if lead + mark in text else mark, body)
        return text

    def given(self, turns: Sequence[Message]) -> list[dict[str, Any]]:
        """The turns as the template is given them."""
        return [self._message(turn) for turn in turns]

    def _message(self, turn: Message) -> dict[str, Any]:
        text = turn["content"].strip()
        if turn["role"] != "assistant":
            return {**turn, "content": self.plain(text)}
        text = self.plain_reply(text)
        thought, answer = split_thought(text)
        if thought is not None and self.history == "drop":
            return {**turn, "content": answer}
        if thought is not None and self.history == "template" and self.continuation.thought:
            return {**turn, "content": answer, "reasoning_content": thought, "thinking": thought}
        return {**turn, "content": text}

    @staticmethod
    def _marks(texts: Sequence[str], messages: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Puts a mark in place of every reply that thinks, so that the template leaves its thought
        alone; returns mark → reply. No mark is part of `texts`."""
        replies: dict[str, str] = {}
        for number, message in enumerate(messages):
            if message["role"] == "assistant" and "</think>" in message["content"]:
                mark = f"⟦reply {number}⟧"
                while any(mark in text for text in texts):
                    mark = f"⟦{mark}⟧"
                replies[mark], message["content"] = message["content"], mark
        return replies

    def plain(self, text: str) -> str:
        """The text, with a space in whatever would be read as a special token."""
        return self.special.sub(_broken, text)

    def plain_reply(self, text: str) -> str:
        """The same for a reply, which may think."""
        return self._not_in_replies.sub(_broken, text)

    def without_special(self, text: str) -> str:
        """The text of generated tokens without the special ones that are no part of a reply."""
        return self._not_in_replies.sub("", text)

    # Reading off --------------------------------------------------------------------------------

    @staticmethod
    def _marked(system: bool) -> tuple[list[dict[str, Any]], bool]:
        roles = ["user", "assistant", "user", "assistant", "user"]
        messages = [{"role": r, "content": m} for r, m in zip(roles, _MARKS, strict=True)]
        if system:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        return messages, True

    def _regular(self, text: str, system: bool) -> Wrapping | None:
        """What the template writes around the turns; None where it is irregular or drops a text."""
        if any(text.count(m) != 1 for m in (*_MARKS, *[SYSTEM] * system)):
            return None
        between, rest = [], text
        for mark in _MARKS:
            if mark not in rest:
                return None
            before, rest = rest.split(mark, 1)
            between.append(before)
        first, reply, after, reply2, after2, reply3 = *between, rest
        if not (reply == reply2 == reply3 and after == after2):
            return None
        end = self._first_special_end(after)
        return Wrapping(first, reply, after[:end], after[end:]) if end else None

    def _first_special_end(self, text: str) -> int:
        """Index at which the first special token of a text ends; 0 if there is none."""
        match = self.special.search(text)
        return match.end() if match else 0

    def _continuation(self, text: str) -> Continuation:
        one, two, three, four, five = _MARKS
        if any(text.count(mark) != 1 for mark in _MARKS):
            raise self._error("does not write every turn of a conversation once")
        first = text.split(one)[1].split(two)[0]
        history = text.split(three)[1].split(four)[0]
        if first != history:
            raise self._misaligned(
                "does not write each turn the same way",
                {"before the first reply": first, "before the second": history},
            )
        after, prompt = text.split(four)[1].split(five)
        opened = bool(_OPENED.search(prompt))
        if history.startswith(prompt):
            lead = history[len(prompt) :]
        else:
            bare, header = (THINK_BLOCK.sub("", side) for side in (history, prompt))
            if not bare.startswith(header):
                raise self._misaligned(
                    "writes a reply in history behind other tokens than it prompts for one, so "
                    "what the model is to write first is not known",
                    {"in history": history, "as a prompt": prompt},
                )
            lead = bare[len(header) :]
        rewrites, thought = self._thoughts(opened, text)
        end = self._end_of_turn(after)
        return Continuation(prompt, lead, end, opened, thought, rewrites)

    def _misaligned(self, problem: str, texts: Mapping[str, str]) -> ChatTemplateError:
        """An error that shows the tokens of two texts which should be the same, by their names."""
        rows = {
            name: self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for name, text in texts.items()
        }
        place = first_difference(self.tokenizer, rows)
        return self._error(f"{problem}. {place[0].upper()}{place[1:]}")

    def _end_of_turn(self, after: str) -> str:
        """What ends a reply, up to a special token: at the end of a conversation, or (GLM-4) before
        the next turn, or else the tokenizer's end token."""
        messages, _ = self._marked(system=False)
        last = self._try(messages[:-1], prompt=False)
        tail = last.partition(_MARKS[3])[2] if isinstance(last, str) else ""
        for text in (tail, after):
            if end := self._first_special_end(text):
                return text[:end]
        if self.tokenizer.eos_token:
            return self.tokenizer.eos_token
        raise self._error(
            "writes no special token after a reply, and the tokenizer has no end token, so a "
            "model would not know where to stop: set `tokenizer.eos_token` and save it again"
        )

    def _thoughts(self, opened: bool, text: str) -> tuple[bool, tuple[str, str] | None]:
        """Whether history rewrites a thought, and what is written around one (`Continuation`)."""
        messages, _ = self._marked(system=False)
        two = _MARKS[1]
        reply = f"{_THOUGHT}\n</think>\n\n{two}"
        reply = reply if opened else f"<think>\n{reply}"
        messages[1]["content"] = reply
        if self._try(messages) != text.replace(two, reply):
            return True, None
        fields = {"reasoning_content": _THOUGHT, "thinking": _THOUGHT}
        messages[1] = {"role": "assistant", "content": two, **fields}
        prompt, last = self._try(messages[:1]), self._try(messages[:2], prompt=False)
        if isinstance(prompt, str) and isinstance(last, str) and last.startswith(prompt):
            before, has_thought, rest = last[len(prompt) :].partition(_THOUGHT)
            between, has_reply, _ = rest.partition(two)
            if has_thought and has_reply:
                return True, (before, between)
        return False, None


def first_difference(tokenizer: Any, rows: Mapping[str, Sequence[int]]) -> str:
    """Where two rows of token ids begin to differ, and their tokens there, each under its name."""
    pairs = enumerate(zip(*rows.values(), strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(map(len, rows.values())))
    begin = max(0, first - _SHOWN)
    known = range(len(tokenizer))
    shown = "".join(
        f"\n  {name}: {[tokenizer.convert_ids_to_tokens(i) if i in known else i for i in ids]}"
        for name, ids in ((name, row[begin : first + _SHOWN]) for name, row in rows.items())
    )
    place = f"from token {first} on" + (f" (shown from {begin})" if begin else "")
    return f"{place}, these differ:{shown}"


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__


def template_of(tokenizer: Any) -> str:
    """How errors name a tokenizer's template."""
    return f"the chat template of {_name(tokenizer)!r}"


def render(
    tokenizer: Any,
    source: str,
    messages: Sequence[Mapping[str, Any]],
    prompt: bool,
    arguments: Mapping[str, Any],
) -> str:
    """What `apply_chat_template` gives, within bounds: raises TemplateLimit, and what the template
    itself raises."""
    given = {
        **tokenizer.special_tokens_map,
        "tools": None,
        "documents": None,
        **arguments,
        "messages": [{k: v for k, v in m.items() if v is not None} for m in messages],
        "add_generation_prompt": prompt,
    }
    return bounded_template.render(source, given)


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]} …"


def _any_of(names: set[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _broken(name: re.Match[str]) -> str:
    return f"{name[0][:1]} {name[0][1:]}"
