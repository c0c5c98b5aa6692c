"""The interface that all agents share.

An agent takes a batch of turns (each an episode that waits for a reply) and returns a batch of
replies. One that is `streaming` also accepts turns while it still answers others, and returns each
reply as soon as it is ready. Prompts come from the environment; an agent adds nothing to them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from stepagent.envs.core import TextEnv
from stepagent.envs.react import Message, PromptStyle
from stepagent.envs.tools import Tool


class ModelReply(str):
    """A reply's text, the ids of the tokens that the model produced for it and of the prompt that
    it was shown, where they are known, and how it ended. Agents without them return a plain `str`.

    `ending` is "" where the model ended the reply itself, or one of "length" (cut at the limit of
    tokens), "refusal" (the model declined, in words of its own), "filter" (a content filter stopped
    prompt or reply) and "empty" (the reply ended before its first word).
    """

    tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    ending: str

    def __new__(
        cls,
        text: str,
        tokens: Iterable[int] = (),
        *,
        prompt_tokens: Iterable[int] = (),
        ending: str = "",
    ) -> ModelReply:
        reply = super().__new__(cls, text)
        reply.tokens, reply.prompt_tokens = tuple(tokens), tuple(prompt_tokens)
        reply.ending = ending
        return reply


REPLY_TOKENS, THINKING_TOKENS = 256, 4096
"""Default limits of a reply, in tokens, without thinking and with."""


def reply_limit(tokens: int | None, thinks: bool) -> int:
    """The limit of a reply in tokens; None: the default."""
    return tokens if tokens is not None else THINKING_TOKENS if thinks else REPLY_TOKENS


@dataclass(frozen=True)
class Turn:
    """An episode that waits for a reply."""

    key: Hashable
    """Identifies the episode; the same from its first turn to its last."""
    messages: Sequence[Message]
    """The conversation so far; the last message is the observation to answer."""
    env: TextEnv
    """The episode's environment, for agents that use more than the text (expert, random)."""
    seed: int = 0
    """Made of the episode's seed, task and salt. Randomness of an agent depends on (seed, turn)
    alone."""

    def tools(self, style: PromptStyle) -> tuple[Tool, ...]:
        """The functions that the environment offers to agents of a style; () for ReAct."""
        return self.env.tools if style.format == "tools" else ()


class Agent(ABC):
    """Base of all agents."""

    name: str
    style: PromptStyle = PromptStyle()
    """How the conversations for this agent are written."""
    batch_size: int = 1
    """How many turns it prefers to answer at once; also how many episodes a run keeps open."""

    @abstractmethod
    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply per turn, in order: the agent's raw text (or a `ModelReply`), to which the
        caller applies `react.cut`."""

    streaming: bool = False
    """Whether it implements `submit` and `poll`."""

    def submit(self, turns: Sequence[Turn]) -> None:
        """Takes turns to be answered during the next `poll`s.

        Raises ValueError for a turn that cannot be answered at all (because it is too long, say).
        """
        raise NotImplementedError(f"the agent {self.name!r} answers whole batches only")

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        """Works for a moment (one pass of a model, a short wait for a server).

        Returns (key of the turn, its reply or why there is none) for the turns answered since the
        last call, in any order; often none.
        """
        raise NotImplementedError(f"the agent {self.name!r} answers whole batches only")

    def forget(self, key: Hashable) -> None:
        """The episode has ended: what is stored for it (a cache) or still being answered can be
        dropped. Unknown keys are ignored.
        """

    def fingerprint(self) -> dict[str, str]:
        """What the replies depend on: model, versions, decoding settings."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Running counts worth reporting (tokens, cut prompts, retries, …)."""
        return {}

    def close(self) -> None:
        """Frees all resources. Safe to call twice."""
