"""The agent that draws each action at random from the admissible ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepagent.agents.core import Agent, Turn
from stepagent.envs.react import PromptStyle, render


class RandomAgent(Agent):
    """Uniform over the distinct `env.admissible_actions()`; depends on (episode seed, turn) alone.

    Raises ValueError for an environment that does not list its actions. If the list is empty, so is
    the reply. Parameters as for `ExpertAgent`.
    """

    name = "random"

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

    def act(self, turns: Sequence[Turn]) -> list[str]:
        return [self._reply(turn) for turn in turns]

    def _reply(self, turn: Turn) -> str:
        try:
            actions = sorted(set(turn.env.admissible_actions()))
        except NotImplementedError as error:
            raise ValueError(f"the agent 'random' needs admissible actions: {error}") from None
        if not actions:
            return ""
        number = sum(message["role"] == "assistant" for message in turn.messages)
        rng = np.random.default_rng([turn.seed % 2**63, number])
        action = actions[int(rng.integers(len(actions)))]
        return render("", action, self.style, turn.tools(self.style))

    def fingerprint(self) -> dict[str, str]:
        return {"style": str(self.style)}
