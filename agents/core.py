"""What acts: the one interface of all agents.

An agent takes a batch of turns (each an episode that waits for a reply) and returns a batch of
replies. One that is `streaming` can also be handed turns while it still answers others, and gives
each reply back as soon as it is there. Prompts come from the environment; an agent adds nothing of
its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from stepagent.envs.core import TextEnv
from stepagent.envs.react import Message, PromptStyle


@dataclass(frozen=True)
class Turn:
    """An episode that waits for a reply."""

    key: Hashable
    """Names the episode; the same from its first turn to its last."""
    messages: Sequence[Message]
    """The conversation so far; the last message is the observation to answer."""
    env: TextEnv
    """The episode's environment, for agents that may look behind the text (expert, random)."""
    seed: int = 0
    """The episode's seed. Randomness of an agent depends on (seed, turn) alone."""


class Agent(ABC):
    """Base of all agents."""

    name: str
    style: PromptStyle = PromptStyle()
    """How the conversations that this agent is handed are to be written."""
    batch_size: int = 1
    """How many turns it likes to answer at once; also how many episodes a run keeps open."""

    @abstractmethod
    def act(self, turns: Sequence[Turn]) -> list[str]:
        """One reply a turn, in order. The raw text of the agent: `react.cut` is the caller's."""

    streaming: bool = False
    """Whether `submit` and `poll` are there."""

    def submit(self, turns: Sequence[Turn]) -> None:
        """Takes turns to be answered in the course of the next `poll`s.

        Raises ValueError for a turn that cannot be answered at all (too long, say).
        """
        raise NotImplementedError(f"the agent {self.name!r} answers whole batches only")

    def poll(self) -> list[tuple[Hashable, str | Exception]]:
        """Works on for a moment (a pass of a model, a glance at a server).

        Returns (key of the turn, its reply or why there is none) of those answered since the last
        call, in any order; often of none.
        """
        raise NotImplementedError(f"the agent {self.name!r} answers whole batches only")

    def forget(self, key: Hashable) -> None:
        """The episode has ended: what is kept for it (a cache), or still being answered, may go.

        Unknown keys are fine.
        """

    def fingerprint(self) -> dict[str, str]:
        """What its replies depend on: model, versions, decoding settings."""
        return {}

    def statistics(self) -> dict[str, float]:
        """Running counts worth reporting (tokens, cut prompts, retries, …)."""
        return {}

    def close(self) -> None:
        """Frees what is held. Safe to call twice."""
