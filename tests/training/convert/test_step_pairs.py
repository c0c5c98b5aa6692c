"""Step pairs out of what a training run practised."""

import json
from pathlib import Path

import pytest

from stepagent.envs.layouts import layout_of
from stepagent.envs.records import read_records
from stepagent.envs.trajectory import read
from stepagent.training import run
from stepagent.training.convert.command import main


def _rows(out: Path) -> list[dict]:
    return [record.value for record in read_records(out)]


@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_pairs_are_the_practice_in_text(config, tmp_path, method):
    config.method, config.expert.limit, config.reflection.practice = method, 6, 3
    run.run(config)
    folder = Path(config.output)
    rows = {}
    for suffix in (".jsonl", ".parquet"):
        out = tmp_path / f"pairs{suffix}"
        assert main([str(folder), "--to", "step-pairs", "--out", str(out)]) == 0
        rows[suffix] = _rows(out)
    assert rows[".jsonl"] == rows[".parquet"]
    drawn = 0
    for file in sorted((folder / "practice").glob("iteration-?.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            drawn += sum(len(replies) for replies in line["replies"])
    pairs = sum(row["weight"] for row in rows[".jsonl"])
    assert 0 < pairs <= drawn
    figures = json.loads((folder / "summary.json").read_text())["figures"]
    if method == "implicit":
        counted = [figures[f"iteration-{i}"]["pairs"] for i in (1, 2)]
        assert pairs == sum(counted)
    experts = {t.task_id: t for t in read(folder / "expert" / "trajectories.jsonl")}
    for row in rows[".jsonl"]:
        assert layout_of(row) == "preference"
        steps = experts[row["task_id"]].steps
        assert row["chosen"] == [{"role": "assistant", "content": steps[row["step"]].action}]
        assert row["prompt"][-1]["content"] == steps[row["step"]].observation
        assert len(row["prompt"]) == 2 * row["step"] + 1
        assert row["rejected"][0]["content"] != steps[row["step"]].action
        for name in ("chosen_reward", "rejected_reward"):
            assert (row[name] is not None) == (method == "inverse")
    assert {row["stage"] for row in rows[".jsonl"]} == {"iteration-1", "iteration-2"}
    if method == "inverse":
        for i in (1, 2):
            own = [row for row in rows[".jsonl"] if row["stage"] == f"iteration-{i}"]
            mean = sum(row["rejected_reward"] * row["weight"] for row in own)
            mean /= sum(row["weight"] for row in own)
            assert mean > 0
            assert len({row["rejected_reward"] for row in own}) > 1


def test_other_folders_are_named(config, tmp_path, capsys):
    out = str(tmp_path / "pairs.jsonl")
    assert main([str(tmp_path), "--to", "step-pairs", "--out", out]) == 2
    assert "is no run of implicit or inverse" in capsys.readouterr().err
