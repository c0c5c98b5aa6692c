"""Recorded actions played again; every kind of change in a record is found and shown."""

import json
from dataclasses import replace

import pytest

from stepagent import envs
from stepagent.envs import trajectory as files
from stepagent.eval import replay
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.replay import main
from tests.toy_env import ID, ScriptedAgent

TASKS = envs.make(ID, split="test").tasks


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded")
    evaluate(ID, ScriptedAgent(fail="12"), out, EvaluationOptions(env_args={"size": 9}, seed=3))
    return out


def changed_run(recorded_run, tmp_path, change):
    """The run with one trajectory of it changed."""
    trajectories = files.read(recorded_run / "results.jsonl")
    place = next(i for i, t in enumerate(trajectories) if len(t.steps) > 3 and not t.error)
    trajectories[place] = change(trajectories[place])
    files.write(tmp_path / "results.jsonl", trajectories)
    return tmp_path


def change_step(number, **changes):
    def change(trajectory):
        steps = list(trajectory.steps)
        steps[number] = replace(steps[number], **changes)
        return replace(trajectory, steps=tuple(steps))

    return change


def test_a_run_is_as_recorded_failed_episodes_and_all(recorded_run, capsys):
    assert any(t.error for t in files.read(recorded_run / "results.jsonl"))
    assert main([str(recorded_run)]) == 0
    shown = capsys.readouterr()
    assert "9 episodes replayed, 0 differ" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            change_step(1, observation="The number is 99."),
            "after 1 steps: observation differs at letter",
        ),
        (change_step(0, observation="Reach"), "after 0 steps: observation differs"),
        (change_step(1, reward=0.875), "after 2 steps: reward differs"),
        (change_step(2, valid=None), "after 3 steps: validity differs"),
        (lambda t: replace(t, final_observation="x"), "last observation differs"),
        (lambda t: replace(t, reward=0.123), "score differs"),
        (lambda t: replace(t, success=not t.success), "success differs"),
        (lambda t: replace(t, truncated=not t.truncated), "truncation differs"),
        (lambda t: replace(t, metrics={"distance": 77.0}), "metrics differs"),
        (lambda t: replace(t, steps=t.steps[:-1]), "differs"),
        (lambda t: replace(t, steps=t.steps * 3), "differs"),
    ],
)
def test_any_change_is_found(recorded_run, tmp_path, capsys, change, what):
    if what.startswith("after 3"):
        trajectories = files.read(recorded_run / "results.jsonl")
        first = next(t for t in trajectories if len(t.steps) > 3 and not t.error)
        change = change_step(2, valid=not first.steps[2].valid)
    assert main([str(changed_run(recorded_run, tmp_path, change))]) == 1
    shown = capsys.readouterr()
    assert what in shown.err
    assert "recorded: " in shown.err
    assert "replayed: " in shown.err
    assert "1 of 9 episodes differ" in shown.err


def test_the_letters_that_differ_are_marked(recorded_run, tmp_path, capsys):
    run = changed_run(recorded_run, tmp_path, change_step(0, observation="x"))
    trajectories = files.read(run / "results.jsonl")
    place = next(i for i, t in enumerate(trajectories) if t.steps and t.steps[0].observation == "x")
    right = files.read(recorded_run / "results.jsonl")[place].steps[0].observation
    wrong = right[:12] + "?" + right[13:]
    trajectories[place] = change_step(0, observation=wrong)(trajectories[place])
    files.write(run / "results.jsonl", trajectories)
    assert main([str(run)]) == 1
    lines = capsys.readouterr().err.splitlines()
    at = next(i for i, line in enumerate(lines) if "recorded: " in line)
    assert lines[at - 1].endswith("observation differs at letter 13")
    assert lines[at + 2] == " " * (12 + 12) + "^"
    assert lines[at][24] == "?"
    assert lines[at + 1][24] == right[12]


def test_marks_of_long_texts_and_of_line_breaks():
    one, two = "a" * 200 + "\nb" + "c" * 200, "a" * 200 + "\nX" + "c" * 200
    marked = replay._side_by_side(one, two).splitlines()
    assert marked[0] == " at letter 202"
    assert all(len(line) < 90 for line in marked)
    place = marked[3].index("^")
    assert (marked[1][place], marked[2][place]) == ("b", "X")
    assert "⏎" in marked[1]


def test_a_folder_of_runs_a_file_and_wrong_paths(recorded_run, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / "suite" / name).mkdir(parents=True)
        (tmp_path / "suite" / name / "results.jsonl").write_bytes(
            (recorded_run / "results.jsonl").read_bytes()
        )
    assert main([str(tmp_path / "suite"), "--limit", "2"]) == 0
    assert "4 episodes replayed" in capsys.readouterr().out
    assert main([str(recorded_run / "results.jsonl")]) == 0
    for wrong in ([str(tmp_path / "nowhere")], [], [str(recorded_run), "--limit", "0"]):
        assert main(wrong) == 2
        assert "error:" in capsys.readouterr().err


def test_cut_and_future_lines_are_reported_and_the_rest_replayed(recorded_run, tmp_path, capsys):
    lines = (recorded_run / "results.jsonl").read_bytes().splitlines(keepends=True)
    future = lines[1].replace(b'"version":1', b'"version":7')
    text = lines[0] + future + b"".join(lines[2:8]) + lines[8][:40]
    (tmp_path / "results.jsonl").write_bytes(text)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "schema version 7" in shown.err
    assert "not JSON" in shown.err
    assert "7 episodes replayed" in shown.out


def test_other_arguments_and_missing_environments(recorded_run, tmp_path, capsys):
    assert main([str(recorded_run), "--env-args.size", "2"]) == 2  # most of its tasks are not there
    assert "no task" in capsys.readouterr().err
    lost = [replace(t, env="stepagent/Gone-v0") for t in files.read(recorded_run / "results.jsonl")]
    files.write(tmp_path / "results.jsonl", lost)
    assert main([str(tmp_path)]) == 2
    assert "no environment 'stepagent/Gone-v0'" in capsys.readouterr().err


def test_a_summary_that_disagrees_with_the_results(recorded_run, tmp_path, capsys):
    for name in ("results.jsonl", "summary.json"):
        (tmp_path / name).write_bytes((recorded_run / name).read_bytes())
    assert main([str(tmp_path)]) == 0
    summary = json.loads((recorded_run / "summary.json").read_text())
    better = {**summary, "reward_mean": summary["reward_mean"] + 0.01}
    (tmp_path / "summary.json").write_text(json.dumps(better))
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert f"reward_mean {better['reward_mean']}, where the results give" in shown.err
    assert "0 differ, and 1 summaries do not agree with their results" in shown.out
    (tmp_path / "summary.json").write_text("{cut")
    assert main([str(tmp_path)]) == 1


def test_changed_versions_are_reported(recorded_run, tmp_path, capsys):
    old = [
        replace(t, fingerprint={**t.fingerprint, "gymnasium": "0.1"})
        for t in files.read(recorded_run / "results.jsonl")
    ]
    files.write(tmp_path / "results.jsonl", old)
    assert main([str(tmp_path)]) == 0
    assert "other versions or data: gymnasium: 0.1 → " in capsys.readouterr().err


# All environments -----------------------------------------------------------------------------


SMALL = {
    "stepagent/ScienceWorld-v0": {"tasks": "find-plant,find-animal", "max_steps": 8},
    "stepagent/ALFWorld-v0": {"expert": "planner", "max_steps": 8},
    "stepagent/WebShop-v0": {"max_steps": 6},
}


@pytest.mark.parametrize("agent", ["expert", "random"])
@pytest.mark.parametrize("env", sorted(envs.ENTRY_POINTS))
def test_one_and_eight_workers_give_the_same_and_both_replay(env, agent, tmp_path):
    from stepagent.agents import make_agent

    episodes, summaries = {}, {}
    for workers in (1, 8):
        out = tmp_path / str(workers)
        options = EvaluationOptions(workers=workers, limit=3, env_args=SMALL.get(env, {}))
        summary = evaluate(env, make_agent(agent, batch_size=workers), out, options)
        assert not summary["failed"]
        summaries[workers] = {k: v for k, v in summary.items() if k != "seconds"}
        results = files.read(out / "results.jsonl")
        episodes[workers] = {
            t.task_id: json.loads(replace(t, seconds=0.0).to_json()) for t in results
        }
    assert episodes[1] == episodes[8]
    assert summaries[1] == summaries[8]
    assert main([str(tmp_path)]) == 0


def test_a_run_with_tool_calls_replays_and_compares_with_one_of_react(tmp_path, capsys):
    from stepagent.agents import make_agent
    from stepagent.eval import compare

    for style in ("react", "tools"):
        agent = make_agent("expert", format=style)
        evaluate("stepagent/HotpotQA-v0", agent, tmp_path / style, EvaluationOptions(limit=3))
    assert main([str(tmp_path / "tools")]) == 0
    assert "recorded with other versions" not in capsys.readouterr().err
    assert compare.main([str(tmp_path / "react"), str(tmp_path / "tools")]) == 0
