"""An environment of one number: `add 1` … `add 3` until it is exactly the goal. And agents for it.

Faults can be planted: a task that breaks its environment, an agent that fails on one task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np

from stepagent import register
from stepagent.agents.core import Agent, Turn
from stepagent.envs.core import Outcome, TextEnv
from stepagent.envs.react import PromptStyle

ID = "tests.toy_env:Test/Toy-v0"


class ToyEnv(TextEnv):
    """Task `odd/7`: reach 7 from a start drawn by the seed; overshooting ends it with nothing.

    `broken` names a task that fails at its reset or, with a `!` behind it, at its first step.
    """

    prompt_file = Path(__file__).with_name("toy_prompt.md")
    opened = 0
    closed = 0

    def __init__(self, *, size: int = 20, delay: float = 0.0, broken: str = "", **kwargs):
        super().__init__(**kwargs)
        self.size, self.delay, self.broken = size, delay, broken
        type(self).opened += 1

    def list_tasks(self) -> Sequence[str]:
        return [f"{'even' if goal % 2 == 0 else 'odd'}/{goal}" for goal in range(7, 7 + self.size)]

    def step_limit(self, task_id: str) -> int:
        return 12

    def begin(self, task_id: str) -> str:
        if task_id == self.broken:
            raise RuntimeError("planted at reset")
        self.goal = int(task_id.split("/")[1])
        self.start = self.number = int(self.rng.integers(0, 5))
        self.instruction = f"Reach {self.goal}."
        return f"{self.instruction} The number is {self.number}."

    def act(self, action: str) -> Outcome:
        time.sleep(self.delay * (1 + self.goal % 3))
        if self.broken == f"{self.task_id}!":
            raise RuntimeError("planted at step")
        words = action.split()
        if len(words) != 2 or words[0] != "add" or words[1] not in ("1", "2", "3"):
            return Outcome(f"What is {action!r}?", self._score(), valid=False)
        self.number += int(words[1])
        done = self.number >= self.goal
        return Outcome(
            f"The number is {self.number}.",
            self._score(),
            done=done,
            success=self.number == self.goal,
            metrics={"distance": float(abs(self.goal - self.number))},
        )

    def _score(self) -> float:
        reached = (self.number - self.start) / (self.goal - self.start)
        return max(0.0, min(reached, 1.0)) if self.number <= self.goal else 0.0

    def expert_plan(self, *, from_here: bool = False) -> list[tuple[str, str]]:
        if from_here:
            return self.plan_onwards(lambda: self._plan_from(self.number))
        return self._plan_from(self.start)

    def _plan_from(self, number: int) -> list[tuple[str, str]]:
        steps = []
        while number < self.goal:
            add = min(3, self.goal - number)
            steps.append((f"{self.goal - number} are left.", f"add {add}"))
            number += add
        return steps if len(steps) <= self.steps_left else []

    def admissible_actions(self) -> list[str]:
        return ["add 1", "add 2", "add 3"]

    def close(self) -> None:
        type(self).closed += 1


if "Test/Toy-v0" not in gym.registry:
    register("Test/Toy-v0", "tests.toy_env:ToyEnv")


class ScriptedAgent(Agent):
    """Draws its action from (seed, turn): the same episode in any batch."""

    name = "scripted"
    batch_size = 4

    def __init__(self, fail: str = "", delay: float = 0.0, style: PromptStyle | None = None):
        self.fail, self.delay = fail, delay
        self.style = style or PromptStyle()
        self.batches: list[int] = []
        self.forgotten: list = []

    def act(self, turns: Sequence[Turn]) -> list[str]:
        self.batches.append(len(turns))
        time.sleep(self.delay)
        return [self._reply(turn) for turn in turns]

    def _reply(self, turn: Turn) -> str:
        if self.fail and f"Reach {self.fail}." in str(turn.messages[-1 - 2 * self._n(turn)]):
            raise ValueError("planted in the agent")
        rng = np.random.default_rng([turn.seed, self._n(turn)])
        return str(
            rng.choice(
                [
                    "Thought: up.\nAction: add 1",
                    "Thought: up.\nAction: add 2\nObservation: The number is 99.",
                    "**Action:** add 3",
                    "I do not know",
                    "",
                ]
            )
        )

    @staticmethod
    def _n(turn: Turn) -> int:
        return sum(m["role"] == "assistant" for m in turn.messages)

    def forget(self, key) -> None:
        self.forgotten.append(key)

    def fingerprint(self) -> dict[str, str]:
        return {"script": "1"}
