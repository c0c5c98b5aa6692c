"""A counter whose actions plant faults: it tells how often it was really stepped."""

import threading
import time
from pathlib import Path

from stepagent import register
from stepagent.envs.core import Outcome, TextEnv

ID = "tests.envs.serve.faulty:tests/Faulty-v0"
release = threading.Event()
"""Set: whoever hangs goes on."""


class FaultyEnv(TextEnv):
    """`sleep 0.2`, `raise`, `hang`; anything else only counts."""

    prompt_file = Path(__file__).with_name("faulty.md")
    open_now: set[int] = set()
    stepped = 0

    def __init__(self, *, broken=False, slow=0.0, **kwargs):
        super().__init__(**kwargs)
        if broken:
            raise OSError("planted: no data here")
        time.sleep(slow)
        self.open_now.add(id(self))

    def list_tasks(self):
        return [f"{self.split}/{i}" for i in range(3)]

    def step_limit(self, task_id):
        return 50

    def begin(self, task_id):
        self.count = 0
        self.instruction = "Count."
        return f"{task_id} begins with {self.rng.integers(1000)}"

    def act(self, action):
        self.count += 1
        type(self).stepped += 1
        word, _, number = action.partition(" ")
        if word == "raise":
            raise ZeroDivisionError("planted in the environment")
        if word == "sleep":
            time.sleep(float(number))
        if word == "hang":
            release.wait(60)
        return Outcome(f"step {self.count}", min(1.0, self.count / 10), done=word == "end")

    def expert_plan(self):
        return [("I count.", "one")]

    def close(self):
        self.open_now.discard(id(self))


register("tests/Faulty-v0", FaultyEnv)
