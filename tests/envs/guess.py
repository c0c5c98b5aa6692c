"""A guessing game in a few dozen lines: the environment that the tests of the contract use.

The player has to name a number from 1 to 8; "higher" and "lower" are the answers.
"""

from pathlib import Path

from stepagent import register
from stepagent.envs.core import SPLITS, Outcome, TextEnv


class GuessEnv(TextEnv):
    """Tasks are named `range/n`; the hidden number comes from the episode's seed."""

    prompt_file = Path(__file__).with_name("guess.md")

    def list_tasks(self):
        first = 100 * SPLITS.index(self.split)
        return [f"{kind}/{first + i}" for i in range(10) for kind in ("small", "large")]

    def step_limit(self, task_id):
        return 8

    def begin(self, task_id):
        self.top = 4 if task_id.startswith("small") else 8
        self.secret = int(self.rng.integers(1, self.top + 1))
        self.instruction = f"Guess the number between 1 and {self.top}."
        return self.instruction

    def act(self, action):
        if not (action.isascii() and action.isdigit()):
            return Outcome("Say a number.", 0.0, valid=False)
        guess = int(action[:4])
        if guess == self.secret:
            return Outcome("Right.", 1.0, done=True, success=True, metrics={"found": 1.0})
        return Outcome("Higher." if guess < self.secret else "Lower.", 0.0, metrics={"found": 0.0})

    def expert_plan(self):
        return [(f"It is {self.secret}.", str(self.secret))]

    def admissible_actions(self):
        return [str(n) for n in range(1, self.top + 1)]


register("tests/Guess-v0", GuessEnv)
