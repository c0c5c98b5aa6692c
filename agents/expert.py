"""The agent that replays the environment's own expert plan."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from stepagent.agents.core import Agent, Turn
from stepagent.envs.react import PromptStyle, render


class ExpertAgent(Agent):
    """Replies with the n-th pair of `env.expert_plan()` in the n-th turn of an episode.

    The plan is made once per episode. If it is exhausted before the episode ends, the reply holds
    no action: nothing happens in the environment, the step counts as invalid, and
    `statistics()["plans_used_up"]` counts the episode, so that a failing plan is visible.

    Parameters: batch_size, the episodes kept open at once; instruction, example, thoughts, format,
    the style of conversations (without thoughts a reply is the bare action).
    """

    name = "expert"

    def __init__(
        self,
        *,
        batch_size: int = 8,
        instruction: bool = True,
        example: bool = True,
        thoughts: bool = True,
        format: Literal["react", "tools"] = "react",
    ):
        self.batch_size = batch_size
        self.style = PromptStyle(instruction, example, thoughts, format=format)
        self._plans: dict[Hashable, list[tuple[str, str]]] = {}
        self._exhausted: set[Hashable] = set()
        self._exhausted_episodes = 0

    def act(self, turns: Sequence[Turn]) -> list[str]:
        return [self._reply(turn) for turn in turns]

    def _reply(self, turn: Turn) -> str:
        if turn.key not in self._plans:
            self._plans[turn.key] = turn.env.expert_plan()
        plan = self._plans[turn.key]
        number = sum(message["role"] == "assistant" for message in turn.messages)
        if number < len(plan):
            return render(*plan[number], self.style, turn.tools(self.style))
        self._exhausted.add(turn.key)
        return "Thought: My plan ends here." if self.style.thoughts else ""

    def forget(self, key: Hashable) -> None:
        self._plans.pop(key, None)
        self._exhausted_episodes += key in self._exhausted
        self._exhausted.discard(key)

    def fingerprint(self) -> dict[str, str]:
        return {"style": str(self.style)}

    def statistics(self) -> dict[str, float]:
        return {"plans_used_up": self._exhausted_episodes + len(self._exhausted)}
