"""Scores of a run's policies, and of the agents beside them, on the evaluation's tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from stepagent import envs
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Trajectory, read, write
from stepagent.eval import agreement
from stepagent.eval.evaluate import EvaluationOptions, choose, evaluate
from stepagent.eval.load_runs import CONTROL, MATCHED
from stepagent.eval.paper import LABELS
from stepagent.files import is_file, parse_json, read_object, read_text, write_text
from stepagent.training import collect
from stepagent.training.config import Config
from stepagent.training.policy import Policy
from stepagent.training.runs import processes
from stepagent.training.runs.expert import in_words

RESULTS = "results.jsonl"
DEV = 200
"""Dev trajectories that SFT is chosen by, where `evaluation.agreement` says nothing."""


class Scores:
    """The evaluations of a run, each in a folder of `path`. Several processes share the tasks: each
    plays its part in a folder `parts/`, which the main process puts together."""

    def __init__(self, path: Path, config: Config, console: Console):
        self.path, self.config, self.console = path, config, console

    def read(self, name: str) -> dict[str, Any]:
        """The summary of an evaluation; {} where there is none."""
        return read_object(self._folder(name) / "summary.json")

    def _folder(self, name: str) -> Path:
        return self.path.parent / CONTROL if name == MATCHED else self.path / name

    def play(self, name: str, player: Any) -> None:
        """Plays what is missing of an evaluation, with an agent that is closed afterwards; all
        processes take part."""
        evaluation, folder = self.config.evaluation, self.path / name
        env_id = evaluation.env or self.config.env
        options = EvaluationOptions(
            split=evaluation.split,
            limit=evaluation.limit or None,
            seed=self.config.seed,
            workers=evaluation.workers,
            env_args=evaluation.env_args if evaluation.env else self.config.env_args,
        )
        try:
            if processes.count() > 1:
                rank, count = processes.rank(), processes.count()
                played = {t.task_id for t in _episodes([folder / RESULTS])}
                tasks = [t for t in _tasks(env_id, options) if t not in played]
                if mine := tasks[rank::count]:
                    part = replace(options, task_ids=mine, limit=None)
                    where = folder / "parts" / f"{rank}-of-{count}"
                    evaluate(env_id, player, where, part, console=self.console)
                processes.wait()
            if processes.is_main():
                _put_together(folder)
                evaluate(env_id, player, folder, options, console=self.console)
                shutil.rmtree(folder / "parts", ignore_errors=True)
        finally:
            player.close()

    def measure_agreement(
        self, name: str, policy: Policy, prompt: Prompt, style: PromptStyle
    ) -> None:
        """Measures the policy's agreement with the expert on dev trajectories."""
        agreement.save(self.path / name, *self.read_dev(policy, prompt, style))

    def has_agreement(self, name: str) -> bool:
        return is_file(self.path / name / agreement.SUMMARY)

    def read_dev(
        self, policy: Policy, prompt: Prompt, style: PromptStyle
    ) -> tuple[list[agreement.TrajectoryAgreement], int]:
        """The policy's agreement with each of the expert's dev trajectories, and how many were left
        out."""
        return agreement.measure(
            policy.model,
            policy.codec,
            self.dev_expert(),
            prompt,
            style,
            policy.context,
        )

    def dev_expert(self) -> list[Trajectory]:
        """The expert's trajectories of the dev split, played once."""
        options = collect.Config(
            env=self.config.env,
            out=self.path.parent / "expert-dev",
            split="dev",
            limit=self.config.evaluation.agreement or DEV,
            env_args=self.config.env_args,
            seed=self.config.seed,
            workers=self.config.expert.workers,
        )
        return in_words(self.config, read(collect.collect(options, self.console)))

    def agreements(self, stages: list[str]) -> dict[str, dict[str, Any]]:
        """Stage (or the control) → agreement with the expert, for those where it was measured."""
        paths = {stage: self._folder(stage) / agreement.SUMMARY for stage in stages}
        return {stage: parse_json(read_text(p)) for stage, p in paths.items() if is_file(p)}

    def of_run(self, stages: list[str]) -> dict[str, dict[str, Any]]:
        """Name → summary: of other agents, the stages in order, the control, and the expert."""
        others = [agent for agent in self.config.evaluation.agents if agent != "expert"]
        expert = [agent for agent in self.config.evaluation.agents if agent == "expert"]
        control = [MATCHED] if self.config.evaluation.matched_sft else []
        names = [*others, *stages, *control, *expert]
        return {name: summary for name in names if (summary := self.read(name))}

    def table(self, summaries: dict[str, dict[str, Any]]) -> Table:
        evaluation = self.config.evaluation
        episodes = next((summary["episodes"] for summary in summaries.values()), 0)
        table = Table(
            title=f"{evaluation.env or self.config.env}, split {evaluation.split}, "
            f"{episodes} unseen tasks",
            box=box.SIMPLE,
            pad_edge=False,
        )
        measured = self.agreements(list(summaries))
        table.add_column("agent", overflow="fold", min_width=10)
        figures = ["score", "95 %\ninterval", "success", "valid\nactions", "steps"]
        for name in figures + ["step\nmatch"] * bool(measured):
            table.add_column(name, justify="right", overflow="fold")
        title = LABELS.get(self.config.method, self.config.method)
        for name, summary in summaries.items():
            low, high = summary["reward_ci95"]
            match = f"{measured[name]['step_match']:.3f}" if name in measured else ""
            table.add_row(
                {**LABELS, MATCHED: "SFT, as many tokens"}.get(name, name).replace(
                    "iteration-", f"{title}, iteration "
                ),
                f"{summary['reward_mean']:.3f}",
                f"{low:.3f}–{high:.3f}",
                f"{summary['success_rate']:.0%}",
                f"{summary['valid_rate']:.0%}",
                f"{summary['steps_mean']:.1f}",
                *[match] * bool(measured),
            )
        return table


def _episodes(files: Sequence[Path]) -> list[Trajectory]:
    """The episodes of these files, as far as they exist, that did not fail."""
    return [t for path in files if is_file(path) for t in read(path, bad=[]) if not t.error]


def _tasks(env_id: str, options: EvaluationOptions) -> list[str]:
    env = envs.make(env_id, **{**options.env_args, "split": options.split})
    try:
        return choose(env, options.limit, options.task_ids)
    finally:
        env.close()


def _put_together(folder: Path) -> None:
    """Makes the episodes of all parts the results of the evaluation, with the time and the counts
    of tokens that they took; its own `evaluate` then has no more than the summary to do."""
    parts = sorted(folder.glob("parts/*/summary.json"))
    if not parts:
        return
    files = [folder / RESULTS, *(path.with_name(RESULTS) for path in parts)]
    write(folder / RESULTS, {t.task_id: t for t in _episodes(files)}.values())
    summaries = [parse_json(read_text(path)) for path in parts]
    counts: dict[str, float] = {}
    for summary in summaries:
        for name, value in summary["agent_statistics"].items():
            counts[name] = counts.get(name, 0.0) + value
    seconds = max(summary["seconds"] for summary in summaries)
    earlier = {"seconds": seconds, "agent_statistics": counts, "complete": False}
    write_text(folder / "summary.json", json.dumps(earlier))
