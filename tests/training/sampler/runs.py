"""What two runs are compared by."""

from __future__ import annotations

import json
from pathlib import Path

from stepagent.training.config import Config


def losses(config: Config) -> list[float]:
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def practised(config: Config) -> list[str]:
    files = sorted((Path(config.output) / "practice").glob("*.jsonl"))
    return [file.read_text() for file in files]


def scores(config: Config) -> dict[str, tuple[float, float]]:
    """Score and steps of each stage."""
    summary = json.loads((Path(config.output) / "summary.json").read_text())
    return {name: (s["reward_mean"], s["steps_mean"]) for name, s in summary["scores"].items()}
