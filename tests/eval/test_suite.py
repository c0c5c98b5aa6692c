"""Suites: several environments and agents in one table, from data that is there or bundled."""

import json

import pytest

from stepagent import envs
from stepagent.envs import trajectory as files
from stepagent.eval import compare, paper, replay, suite
from stepagent.eval.run import main
from stepagent.eval.suite import Entry, load, with_data
from tests.envs.wikipedia.records import hotpot, write_array
from tests.toy_env import ID

TOYS = f"""
limit: 5
environments:
  Small: {{env: "{ID}", measure: mean reward, env_args: {{size: 9}}}}
  Large: {{env: "{ID}", measure: success rate, figure: success, limit: 7}}
"""


@pytest.fixture
def toys(tmp_path):
    path = tmp_path / "toys.yaml"
    path.write_text(TOYS)
    return path


def run(toys, out, *more, agent="expert,random"):
    return main(["--suite", str(toys), "--agent", agent, "--out", str(out), *more])


def test_the_papers_suite_is_its_table():
    entries = load("paper").entries
    assert tuple(entry.env for entry in entries) == paper.COLUMNS
    assert {entry.split for entry in entries} == {"test"}
    assert [e.name for e in entries if e.figure == "success"] == ["ALFWorld"]
    assert {e.name for e in entries if e.data} == {e.name for e in entries} - {"ScienceWorld"}
    assert tuple(entry.env for entry in load("quick").entries) == paper.COLUMNS
    for entry in (*entries, *load("quick").entries):
        env = envs.make(entry.env, split=entry.split, **entry.env_args)
        assert len(env.tasks) >= (entry.limit or 4)
        env.close()


def test_one_table_and_a_results_file_for_each(toys, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(toys, out) == 0
    shown = capsys.readouterr().out
    for agent in ("expert", "random"):
        assert len(files.read(out / agent / "Small" / "results.jsonl")) == 5
        assert len(files.read(out / agent / "Large" / "results.jsonl")) == 7
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["suite"] == "toys"
    assert summary["agents"]["expert"]["Large"]["figure"] == 1.0
    own = json.loads((out / "random" / "Small" / "summary.json").read_text())
    assert summary["agents"]["random"]["Small"]["figure"] == own["reward_mean"]
    table = (out / "table.md").read_text()
    for text in (shown, table):
        assert "100.0" in text
        assert f"{100 * own['reward_mean']:.1f}" in text
        assert "data: bundled" in text
        assert "Large: success rate, split test" in text
    assert replay.main([str(out)]) == 0
    assert "24 episodes replayed, 0 differ" in capsys.readouterr().out
    assert compare.main([str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"Small: {ID}" in shown
    assert f"Large: {ID}" in shown


def test_without_agent_and_out_expert_and_random_play(toys, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--suite", str(toys), "--limit", "1"]) == 0
    summary = json.loads((tmp_path / "runs" / "toys" / "summary.json").read_text())
    assert list(summary["agents"]) == ["expert", "random"]
    assert "runs/toys" in capsys.readouterr().err


def test_again_plays_nothing_and_another_agent_adds_a_row(toys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run(toys, out, agent="expert") == 0
    before = (out / "expert" / "Large" / "results.jsonl").read_bytes()
    assert run(toys, out, "--limit", "3", agent="expert") == 0
    assert run(toys, out, agent="expert,random") == 0
    assert (out / "expert" / "Large" / "results.jsonl").read_bytes() == before
    assert set(json.loads((out / "summary.json").read_text())["agents"]) == {"expert", "random"}


def test_an_environment_that_cannot_be_made_costs_its_own_figure(toys, tmp_path, capsys):
    toys.write_text(TOYS + "  Gone: {env: stepagent/Gone-v0, measure: x}\n")
    out = tmp_path / "out"
    assert run(toys, out, agent="expert") == 1
    shown = capsys.readouterr()
    assert "expert on Gone: no figure, ValueError: no environment 'stepagent/Gone-v0'" in shown.out
    assert "100.0" in shown.out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] is False
    assert "error" in summary["agents"]["expert"]["Gone"]


def test_failed_episodes_are_reported(toys, tmp_path, capsys):
    toys.write_text(
        f'environments: {{Toy: {{env: "{ID}", measure: x, env_args: {{broken: odd/7}}}}}}'
    )
    out = tmp_path / "out"
    assert run(toys, out, agent="expert") == 1
    assert "expert on Toy: 1 episodes failed (count as 0)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nope", "--agent", "expert"], "no suite 'nope': choose one of paper, quick"),
        (["--suite", "quick", "--agent", "expert,nobody"], "unknown agent 'nobody'"),
        (["--suite", "quick", "--agent", ","], "names no agent"),
        (["--suite", "quick", "--agent", "expert", "--data", "x"], "plays bundled data only"),
        (
            ["--suite", "paper", "--agent", "expert", "--data", "x"],
            "--data is x, which is no folder",
        ),
        (["--suite", "quick", "--agent", "expert", "--split", "dev"], "decides what it plays"),
        (["--suite", "quick", "--env", ID, "--agent", "expert"], "either --env or --suite"),
        (["--agent", "expert"], "either --env or --suite"),
        (["--env", ID, "--agent", "expert", "--data", "x"], "--data goes with --suite"),
        (
            ["--suite", "quick", "--agent", "expert,random", "--max-new-tokens", "8"],
            "has an option max_new_tokens",
        ),
    ],
)
def test_wrong_options_are_named(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_options_go_to_the_agents_that_take_them():
    options = {"expert": {"batch_size": 3}, "openai:m": {"batch_size": 3, "temperature": 0.5}}
    with pytest.raises(ValueError, match="has an option colour"):
        suite.accepted_options({"expert": {"colour": 1}})
    assert suite.accepted_options(options) == {
        "expert": {"batch_size": 3},
        "openai:m": {"temperature": 0.5},
    }
    with pytest.raises(ValueError, match="share a folder"):
        suite.Board(load("quick"), ["hf:a/b", "hf:a-b"], None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environments: {}", "names no environment"),
        ("[1, 2]", "cannot be read"),
        ("environments: {A: {env: x}}", "cannot be read"),
        ("environments: {A: {env: x, measure: y, figure: z}}", "unknown figure 'z'"),
        ("environments: {A: {env: x, measure: y, split: z}}", "unknown split 'z'"),
        ("environments: {A: {env: x, measure: y, colour: z}}", "colour"),
        ("{", "cannot be read"),
    ],
)
def test_broken_suites_are_named(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(str(path))


def test_available_data_is_played_and_missing_data_reported(tmp_path):
    entry = Entry("HotpotQA", "stepagent/HotpotQA-v0", "exact match", data="hotpotqa")
    assert with_data(entry, None, {}) == ({}, "bundled (no --data, no STEPAGENT_DATA)")
    folder = tmp_path / "hotpotqa"
    assert with_data(entry, tmp_path, {}) == ({}, f"bundled (no {folder})")
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"\0\0")
    arguments, data = with_data(entry, tmp_path, {"max_steps": 3})
    assert arguments == {"max_steps": 3}
    assert data.startswith(f"bundled ({folder} cannot be used: ")
    (folder / "questions.json").write_text("[]")
    with pytest.raises(ValueError, match=r"hotpotqa cannot be used: .*take it away"):
        with_data(entry, tmp_path, {})
    write_array(folder / "questions.json", [hotpot(i) for i in range(10)])
    arguments, data = with_data(entry, tmp_path, {})
    assert arguments == {"data": str(folder)}
    assert data == f"files in {folder} (2 test tasks)"
    own = with_data(entry, tmp_path, {"data": "elsewhere"})
    assert own == ({"data": "elsewhere"}, "files in elsewhere")


def test_a_full_disk_is_reported_and_the_results_stay(toys, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(suite, "save", full)
    assert run(toys, out, agent="expert") == 1
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())
    assert len(files.read(out / "expert" / "Small" / "results.jsonl")) == 5
    monkeypatch.undo()
    assert run(toys, out, agent="expert") == 0


def test_the_quick_suite_with_the_expert(tmp_path, capsys):
    """Every environment's expert solves its quick tasks, and the entire run replays."""
    out = tmp_path / "out"
    assert main(["--suite", "quick", "--agent", "expert", "--limit", "2", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    figures = {name: cell["figure"] for name, cell in summary["agents"]["expert"].items()}
    assert figures == dict.fromkeys(summary["environments"], 1.0)
    assert replay.main([str(out)]) == 0
    assert "14 episodes replayed, 0 differ" in capsys.readouterr().out
