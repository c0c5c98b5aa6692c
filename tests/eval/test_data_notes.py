"""What data lack is in every summary, table and comparison, wherever the environment runs."""

import json

import gymnasium as gym
import pytest

from stepagent.agents import make_agent
from stepagent.envs import trajectory as files
from stepagent.eval import report
from stepagent.eval.comparison import compare
from stepagent.eval.evaluate import CUT_PROMPTS, EvaluationOptions, evaluate
from stepagent.eval.load_runs import load_runs
from tests.envs.mind2web.records import make_step_record
from tests.envs.serve.servers import Running
from tests.toy_env import ID as TOY
from tests.toy_env import ScriptedAgent

ID = "stepagent/Mind2Web-v0"
LEFT_OUT = {"left out: line that is not JSON": 1}
LACKING = "steps: no positive candidate"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Six tasks of two steps, one of which has no right answer; and a line that is no JSON."""
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    steps = [make_step_record(pos=["1"]), make_step_record(op="TYPE", neg=["1"])]
    tasks = [
        {
            "annotation_id": f"t{i}",
            "website": f"w{i}",
            "confirmed_task": "Go",
            "actions": steps,
        }
        for i in range(6)
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join([*map(json.dumps, tasks), "no json"]))
    return path


def played(env):
    """The notes of an episode, after each of its steps."""
    env.reset(seed=0)
    notes = []
    for _, action in env.unwrapped.expert_plan():
        *_, info = env.step(action)
        notes.append(info["data_notes"])
    return notes


def test_they_are_the_same_on_a_server(data):
    here = gym.make(ID, data=str(data))
    with Running(ID) as server:
        there = gym.make(ID, data=str(data), url=server.url)
        for env in (here, there):
            assert env.unwrapped.data_notes() == LEFT_OUT
            assert played(env) == [{}, {LACKING: 1}]
        there.close()


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_they_are_the_same_in_vector_environments(data, mode):
    vector = gym.make_vec(ID, num_envs=2, vectorization_mode=mode, data=str(data))
    assert vector.call("data_notes") == (LEFT_OUT, LEFT_OUT)
    vector.reset(seed=0)
    vector.step(["CLICK [0]"] * 2)
    *_, infos = vector.step(["CLICK [0]"] * 2)
    assert list(infos["data_notes"][LACKING]) == [1, 1]
    vector.close()


def test_the_summary_and_its_table_have_them(data, tmp_path):
    agent = make_agent("expert")
    options = EvaluationOptions(split="train", env_args={"data": str(data)})
    out = tmp_path / "out"
    summary = evaluate(ID, agent, out, options)
    expected = {**LEFT_OUT, LACKING: summary["episodes"]}
    assert summary["data_notes"] == expected
    assert json.loads((out / "summary.json").read_text())["data_notes"] == expected
    shown = report.summary_table(summary).caption
    assert f"{LACKING}: {summary['episodes']}" in shown
    assert "left out: line that is not JSON: 1" in shown
    # A run that was killed before its summary counts the same when it goes on.
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:2]))
    (out / "summary.json").unlink()
    assert evaluate(ID, agent, out, options)["data_notes"] == expected


def test_a_comparison_shows_what_differs(data, tmp_path):
    agent = make_agent("expert")
    whole = EvaluationOptions(split="train", env_args={"data": str(data)})
    evaluate(ID, agent, tmp_path / "a", whole)
    data.write_text("\n".join([*data.read_text().splitlines(), "no json", "neither"]))
    evaluate(ID, agent, tmp_path / "b", whole)
    runs = load_runs([tmp_path / "a", tmp_path / "b"], [])
    notes = compare(runs, force=True).notes
    (note,) = [note for note in notes if "in their data" in note]
    assert note.endswith("left out: line that is not JSON: 1 (expert (a)) | 3 (expert (b)).")
    assert not any(LACKING in note for note in notes)
    assert not any("their data" in note for note in compare(runs[:1]).notes)


def test_trajectories_without_notes_are_written_as_before(data, tmp_path):
    agent = make_agent("expert")
    evaluate(ID, agent, tmp_path / "a", EvaluationOptions("train", env_args={"data": str(data)}))
    evaluate(TOY, ScriptedAgent(), tmp_path / "b", EvaluationOptions(limit=2))
    for folder, there in (("a", True), ("b", False)):
        path = tmp_path / folder / "results.jsonl"
        assert ('"data_notes":' in path.read_text()) == there
        assert [t.data_notes for t in files.read(path)] == (
            [{LACKING: 1}] * 4 if there else [{}] * 2
        )


def test_prompts_that_an_agent_cut_are_among_them(tmp_path):
    class Cutting(ScriptedAgent):
        def statistics(self):
            return {"prompts_cut": 3.0 * self.turns}

        turns = 0

        def act(self, turns):
            self.turns = 1
            return super().act(turns)

    summary = evaluate(TOY, Cutting(), tmp_path, EvaluationOptions(limit=2))
    assert summary["data_notes"] == {CUT_PROMPTS: 3}
