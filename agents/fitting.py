"""What of a conversation and its reply fits a server's context, learnt from its refusals.

First the reply's limit is lowered to what the prompt leaves of the context; only a prompt that
leaves next to nothing loses its middle.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from stepagent.agents.responses import Rejection
from stepagent.envs.react import Message

_LEAST = 64
"""Tokens that a reply must be left with; below, the prompt is shortened instead."""
_UNKNOWN = 6
"""Characters per token of a prompt that the server has not counted: more than in any language, so
that the estimate is too low rather than too high."""


class Fitting:
    """The limits of one model's context; shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._characters: int | None = None  # allowed in a prompt
        self._reply: int | None = None  # tokens that the model can generate at all

    def reply_limit(self, tokens: int) -> int:
        """The limit for a reply of at most `tokens` tokens."""
        return tokens if self._reply is None else min(tokens, self._reply)

    def prompt(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation as far as it fits."""
        if self._characters is None:
            return list(messages)
        return cut_middle(messages, self._characters)

    def lower(self, rejection: Rejection, size: int, limit: int) -> int | None:
        """A lower limit of tokens for the reply to a prompt of `size` characters, under which the
        request may fit; None: it is the prompt that has to become shorter."""
        if rejection.limit is None:
            lower = limit // 4
        elif rejection.reply_too_long and rejection.prompt is None:
            lower = rejection.limit
            with self._lock:
                self._reply = min(self._reply or lower, lower)
        elif rejection.prompt is None:
            lower = rejection.limit - size // _UNKNOWN
            lower = limit // 4 if lower >= limit else lower
        else:
            lower = rejection.limit - rejection.prompt
        return lower if min(_LEAST, limit) <= lower < limit else None

    def shorten(self, rejection: Rejection, size: int, limit: int) -> None:
        """From now on prompts are shorter than `size` characters, to leave `limit` tokens."""
        share = 2 / 3
        if rejection.limit and rejection.prompt and rejection.limit > limit:
            share = min(0.9, (rejection.limit - limit) / rejection.prompt * 0.95)
        with self._lock:
            self._characters = min(self._characters or size, int(size * share))


def cut_middle(messages: Sequence[Message], budget: int) -> list[Message]:
    """The conversation in about `budget` characters: turns after the first observation are removed.

    If the latest turn alone is still too long, the longest text loses its middle. The system
    message is never shortened.
    """
    cut: list[Any] = [dict(message) for message in messages]
    first = 2 if cut[0]["role"] == "system" else 1
    head, tail, dropped = cut[:first], cut[first:], 0
    size = sum(len(message["content"]) for message in cut)
    while size > budget and len(tail) > 2:
        size -= len(tail[0]["content"]) + len(tail[1]["content"])
        tail, dropped = tail[2:], dropped + 1
    if dropped:
        head[-1]["content"] += f"\n\n[{dropped} turns left out]"
    cut = head + tail
    texts = [message for message in cut if message["role"] != "system"]
    while size > budget and texts:
        longest = max(texts, key=lambda message: len(message["content"]))
        text = longest["content"]
        keep = max(40, len(text) - (size - budget)) // 2
        if len(text) <= 2 * keep + 5:
            break
        longest["content"] = f"{text[:keep]} […] {text[-keep:]}"
        size -= len(text) - len(longest["content"])
    return cut
