"""An evaluation that processes share is the one that a single process plays."""

from __future__ import annotations

import pytest
from rich.console import Console

from stepagent import agents
from stepagent.envs.trajectory import read
from stepagent.training.runs import processes
from stepagent.training.runs.scores import Scores
from tests import toy_env


def _play(scores, name, monkeypatch, rank, count):
    monkeypatch.setattr(processes, "rank", lambda: rank)
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(processes, "wait", lambda: None)
    scores.play(name, agents.make_agent("random"))


@pytest.mark.parametrize("limit", [5, 1], ids=["each a part", "one without a task"])
def test_processes_share_the_tasks(config, tmp_path, monkeypatch, limit):
    config.env, config.env_args = toy_env.ID, {"size": 6}
    config.evaluation.limit = limit
    scores = Scores(tmp_path / "eval", config, Console(quiet=True))
    _play(scores, "alone", monkeypatch, 0, 1)
    _play(scores, "shared", monkeypatch, 1, 2)
    assert not scores.read("shared"), "the other process writes no summary"
    part = scores.read("shared/parts/1-of-2")
    assert part.get("episodes", 0) == limit // 2
    _play(scores, "shared", monkeypatch, 0, 2)
    alone, shared = scores.read("alone"), scores.read("shared")
    assert shared["complete"]
    for name in ("episodes", "reward_mean", "reward_ci95", "valid_rate", "steps_mean"):
        assert shared[name] == alone[name]
    assert shared["seconds"] >= part.get("seconds", 0)
    assert not (tmp_path / "eval/shared/parts").exists()
    one, two = (
        {t.task_id: [s.action for s in t.steps] for t in read(tmp_path / f"eval/{n}/results.jsonl")}
        for n in ("alone", "shared")
    )
    assert one == two
    _play(scores, "shared", monkeypatch, 0, 2)  # again: nothing is played twice
    assert scores.read("shared")["episodes"] == limit
