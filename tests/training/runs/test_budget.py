"""What runs have used, against counts made another way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from stepagent.training import run
from stepagent.training.methods.practice import practise
from stepagent.training.runs import budget
from stepagent.training.runs.budget import Budget, count_tokens
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun


def _opened(config) -> TrainingRun:
    return TrainingRun(config, Console(quiet=True))


def test_a_run_says_what_each_stage_has_used(config):
    config.sft.epochs, config.reflection.epochs, config.reflection.iterations = 2, 3, 1
    summary = run.run(config)
    opened = _opened(config)
    samples = opened.samples
    state = json.loads((Path(config.output) / "stages.json").read_text())["budget"]
    stages = {name: Budget(**used) for name, used in state.items()}
    assert stages["sft"].tokens == 2 * sum(len(s.encoded.ids) for s in samples)
    assert stages["sft"].updates == 2 * -(-len(samples) // config.sft.batch_size)
    stage = Stage("iteration-1", opened.directory, seed=1000)
    trees = [p.tree.trimmed() for row in practise(stage, opened.policy, samples, config.reflection)
             for p in row if p.tree.branches]  # fmt: skip
    assert stages["iteration-1"].tokens == 3 * sum(tree.length for tree in trees)
    labels = sum(len(s.encoded.replies) for s in samples)
    assert stages["iteration-1"].draws == config.reflection.practice * labels
    total = Budget(**summary["budget"])
    assert total == stages["sft"] + stages["iteration-1"] + Budget(expert_labels=labels)
    assert 0 < total.seconds <= summary["seconds"] + 0.1
    assert total.episodes == 0


def test_episodes_of_the_agent_are_counted(config):
    config.method, config.rollouts.samples = "rft", 2
    summary = run.run(config)
    assert summary["budget"]["episodes"] == 2 * summary["expert_trajectories"]
    assert summary["budget"]["draws"] == 0


def test_a_stage_made_by_an_older_version_leaves_the_budget_open(config):
    config.method = "sft"
    run.run(config)
    file = Path(config.output) / "stages.json"
    state = json.loads(file.read_text())
    del state["budget"]
    file.write_text(json.dumps(state))
    (Path(config.output) / "summary.json").unlink()
    assert run.run(config)["budget"] is None


def test_only_the_stages_own_complete_lines_count(tmp_path):
    directory = RunDirectory(tmp_path, "{}")
    rows = [("iteration-1", 5), ("iteration-1-discriminator", 7), ("iteration-10", 100), ("sft", 9)]
    lines = [json.dumps({"stage": s, "update": 1, "tokens": n}) + "\n" for s, n in rows]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"stage": "iteration-1", "tok')
    for name, text in (
        ("practice/iteration-1.jsonl", '{"replies": [[[1], [2]], [[3]]]}\n{"repl'),
        ("rollouts/iteration-1-0.jsonl", "{}\n{}\n"),
        ("rollouts/iteration-10-0.jsonl", "{}\n"),
        ("artifacts/iteration-1/values-0.jsonl", "{}\n{}\n{}\n{"),
        ("artifacts/iteration-1/values-1.0.jsonl", "{}\n"),
        ("artifacts/iteration-1/effects.jsonl", "{}\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    used = budget.of_stage(directory, "iteration-1", {"expert_labels": 4.0})
    assert used == Budget(expert_labels=4, episodes=6, draws=3, updates=2, tokens=12)


def test_only_what_is_read_with_gradients_counts():
    model = nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 1))
    with count_tokens(model) as tokens:
        model(torch.zeros(2, 3, dtype=torch.long))
        with torch.no_grad():
            model(torch.zeros(2, 3, dtype=torch.long))
        assert tokens() == 6
    model(torch.zeros(2, 3, dtype=torch.long))
    assert tokens() == 6, "nothing is counted afterwards"


@pytest.mark.parametrize("name", ["updates", "tokens", "seconds"])
def test_budgets_add_up(name):
    assert getattr(Budget(**{name: 2}) + Budget(**{name: 3}, episodes=1), name) == 5
