"""An environment of four words, for tests of agents that use more than the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepagent.envs.core import Outcome, TextEnv

PROMPT = """# Instruction
Say the numbers from one upwards.

# Example
Observation: Begin.
Thought: The first number is one.
Action: one
"""
NUMBERS = ("one", "two", "three", "four")


class CountEnv(TextEnv):
    """Say one, two, three, four: each right number earns a quarter."""

    def __init__(self, prompt_file: Path, **options: Any):
        self.prompt_file = prompt_file  # type: ignore[misc]
        super().__init__(**options)

    def list_tasks(self) -> list[str]:
        return [f"count/{i}" for i in range(5)]

    def begin(self, task_id: str) -> str:
        self.count, self.plans = 0, getattr(self, "plans", 0)
        self.instruction = f"Count, please ({task_id})."
        return self.instruction

    def act(self, action: str) -> Outcome:
        right = self.count < len(NUMBERS) and action == NUMBERS[self.count]
        self.count += right
        return Outcome(
            "Right." if right else "Wrong.",
            self.count / 4,
            done=self.count == 4,
            valid=action in NUMBERS,
        )

    def expert_plan(self) -> list[tuple[str, str]]:
        self.plans += 1
        return [(f"Now comes {number}.", number) for number in NUMBERS]

    def admissible_actions(self) -> list[str]:
        return list(NUMBERS)

    def step_limit(self, task_id: str) -> int:
        return 10
