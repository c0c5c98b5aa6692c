"""Results made up for tests: trajectories, and files of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import Step, Trajectory, write

FINGERPRINT = {"data": "d1", "prompt": "p1", "arguments": "{}", "stepagent": "0.1", "agent.x": "1"}


def episode(task: str, reward: float, agent: str = "one", **changes: Any) -> Trajectory:
    """An episode of three steps, the last of which earns the reward and is not valid."""
    steps = (
        Step("You stand in a hall.", "Look about.", "look"),
        Step("A door.", "It may open.", f"open door {agent}", 0.0),
        Step("It is open.", "", "go", reward, False),
    )
    values: dict[str, Any] = {
        "env": "stepagent/WebShop-v0",
        "split": "test",
        "seed": 0,
        "steps": steps,
        "final_observation": "The end.",
        "success": reward == 1,
        "fingerprint": FINGERPRINT,
        "metrics": {"em": reward},
    }
    return Trajectory(**{**values, "task_id": task, "agent": agent, "reward": reward, **changes})


def run(folder: Path, rewards: dict[str, float], agent: str = "one", **changes: Any) -> str:
    """A folder as `eval.run` leaves it; returns its path."""
    write(folder / "results.jsonl", [episode(t, r, agent, **changes) for t, r in rewards.items()])
    return str(folder)
