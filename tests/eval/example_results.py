"""Invented results for tests, files of them, and what a run wrote, in a form that compares."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepagent.envs.trajectory import Step, Trajectory, read, write

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


def write_run(folder: Path, rewards: dict[str, float], agent: str = "one", **changes: Any) -> str:
    """A folder as `eval.run` leaves it; returns its path."""
    write(folder / "results.jsonl", [episode(t, r, agent, **changes) for t, r in rewards.items()])
    return str(folder)


def read_results(out: Path) -> dict[str, Trajectory]:
    """Task id → result, without the time that it took."""
    return {t.task_id: replace(t, seconds=0.0) for t in read(out / "results.jsonl")}


def read_summary(out: Path) -> dict[str, Any]:
    """The summary, without the time that it took."""
    summary = json.loads((out / "summary.json").read_text())
    return {name: value for name, value in summary.items() if name != "seconds"}
