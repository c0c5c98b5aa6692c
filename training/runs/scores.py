"""Scores of a run's policies, and of the agents beside them, on the evaluation's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stepagent.eval.paper import LABELS
from stepagent.eval.run import evaluate
from stepagent.training.config import Config


class Scores:
    """The evaluations of a run, each in a folder of `path`; the main process plays them."""

    def __init__(self, path: Path, config: Config, console: Console):
        self.path, self.config, self.console = path, config, console

    def read(self, name: str) -> dict[str, Any]:
        """The summary of an evaluation; {} where there is none."""
        path = self.path / name / "summary.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def play(self, name: str, player: Any) -> None:
        """Plays what is missing of an evaluation, with an agent that is closed afterwards."""
        evaluation = self.config.evaluation
        try:
            evaluate(
                evaluation.env or self.config.env,
                player,
                self.path / name,
                split=evaluation.split,
                limit=evaluation.limit or None,
                seed=self.config.seed,
                workers=evaluation.workers,
                env_args=evaluation.env_args if evaluation.env else self.config.env_args,
                console=self.console,
            )
        finally:
            player.close()

    def of_run(self, stages: list[str]) -> dict[str, dict[str, Any]]:
        """Name → summary: of other agents, of the stages in order, and of the expert at the end."""
        others = [agent for agent in self.config.evaluation.agents if agent != "expert"]
        expert = [agent for agent in self.config.evaluation.agents if agent == "expert"]
        names = [*others, *stages, *expert]
        return {name: summary for name in names if (summary := self.read(name))}

    def table(self, summaries: dict[str, dict[str, Any]]) -> Table:
        evaluation = self.config.evaluation
        episodes = next((summary["episodes"] for summary in summaries.values()), 0)
        table = Table(
            title=f"{evaluation.env or self.config.env}, split {evaluation.split}, "
            f"{episodes} unseen tasks"
        )
        for name in ("agent", "score", "95 % interval", "success", "valid actions", "steps"):
            table.add_column(name, justify="left" if name == "agent" else "right")
        title = LABELS.get(self.config.method, self.config.method)
        for name, summary in summaries.items():
            low, high = summary["reward_ci95"]
            table.add_row(
                LABELS.get(name, name).replace("iteration-", f"{title}, iteration "),
                f"{summary['reward_mean']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{summary['success_rate']:.0%}",
                f"{summary['valid_rate']:.0%}",
                f"{summary['steps_mean']:.1f}",
            )
        return table
