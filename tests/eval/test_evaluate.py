"""Evaluations in a directory: results, resuming, what is refused, and what is left on failure."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from stepagent import envs
from stepagent.envs import trajectory as files
from stepagent.envs.react import PromptStyle
from stepagent.eval import report
from stepagent.eval.evaluate import EvaluationOptions, choose, evaluate
from stepagent.eval.results import ResultsError
from tests.eval.example_results import read_results, read_summary
from tests.toy_env import ID, ScriptedAgent, ToyEnv

TASKS = envs.make(ID, split="test").tasks


class Never(ScriptedAgent):
    def act(self, turns):
        raise AssertionError("nothing was left to play")


def test_results_and_summary_are_written(complete_run):
    out, summary = complete_run
    assert set(read_results(out)) == set(TASKS)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["episodes"] == 20
    assert summary["complete"] is True
    mean = sum(t.reward for t in read_results(out).values()) / 20
    assert summary["reward_mean"] == pytest.approx(mean)


def test_running_again_plays_nothing(complete_run):
    out, summary = complete_run
    again = evaluate(ID, Never(), out)
    assert again["reward_mean"] == summary["reward_mean"]
    assert again["seconds"] >= summary["seconds"]


def test_resume_from_a_cut_line_gives_the_same_results(complete_run, tmp_path):
    lines = (complete_run[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:50])
    evaluate(ID, ScriptedAgent(), tmp_path)
    assert read_results(tmp_path) == read_results(complete_run[0])
    assert read_summary(tmp_path) == read_summary(complete_run[0])


def test_unreadable_lines_are_set_aside_and_reported(complete_run, tmp_path):
    lines = (complete_run[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    old = lines[1].replace(b'"version":1', b'"version":0')
    (tmp_path / "results.jsonl").write_bytes(lines[0] + b"{broken\n" + old + b"".join(lines[2:]))
    console = Console(record=True, width=500, quiet=False, file=open("/dev/null", "w"))
    evaluate(ID, ScriptedAgent(), tmp_path, console=console)
    assert read_results(tmp_path) == read_results(complete_run[0])
    shown = console.export_text()
    assert "results.jsonl:2: not JSON" in shown
    assert "results.jsonl:3: schema version 0" in shown
    assert (tmp_path / "results.bad.jsonl").read_bytes() == b"{broken\n" + old


def test_a_future_version_is_set_aside_too(complete_run, tmp_path):
    lines = (complete_run[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    future = lines[2].replace(b'"version":1', b'"version":9,"colour":"blue"')
    (tmp_path / "results.jsonl").write_bytes(b"".join([*lines[:2], future, *lines[3:]]))
    evaluate(ID, ScriptedAgent(), tmp_path)
    assert read_results(tmp_path) == read_results(complete_run[0])
    assert (tmp_path / "results.bad.jsonl").read_bytes() == future


def test_of_repeated_results_the_last_good_one_counts(complete_run, tmp_path):
    trajectories = files.read(complete_run[0] / "results.jsonl")
    other = replace(trajectories[0], seconds=99.0)
    failed = replace(trajectories[1], error="agent: x")
    files.write(tmp_path / "results.jsonl", [*trajectories, other, failed])
    console = Console(record=True, width=500, quiet=False, file=open("/dev/null", "w"))
    summary = evaluate(ID, Never(), tmp_path, console=console)
    assert summary["complete"] is True
    assert "2 results are of tasks that the file holds already" in console.export_text()
    rewritten = files.read(tmp_path / "results.jsonl")
    assert len(rewritten) == len(TASKS)
    assert other in rewritten
    assert read_results(tmp_path) == read_results(complete_run[0])


def test_results_of_several_runs_in_one_file_are_refused(complete_run, tmp_path):
    trajectories = files.read(complete_run[0] / "results.jsonl")
    mixed = [*trajectories[:3], *(replace(t, agent="another") for t in trajectories[3:])]
    files.write(tmp_path / "results.jsonl", mixed)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ResultsError, match="agent: another → scripted"):
        evaluate(ID, Never(), tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("which", ["append", "rewrite", "aside", "summary"])
def test_a_full_disk_is_reported_for_every_file(complete_run, tmp_path, monkeypatch, which):
    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    good = files.read(complete_run[0] / "results.jsonl")
    if which == "rewrite":
        files.write(tmp_path / "results.jsonl", [*good, good[0]])
        monkeypatch.setattr(files, "write", full)
    elif which == "aside":
        (tmp_path / "results.jsonl").write_bytes(b"{broken\n")
        (tmp_path / "results.bad.jsonl").symlink_to("/dev/full")
    elif which == "append":
        files.write(tmp_path / "results.jsonl", good[:3])
        monkeypatch.setattr(files.Writer, "write", full)
    else:
        monkeypatch.setattr("stepagent.eval.results.save", full)
    with pytest.raises(ResultsError, match=r"No space left on device.*[Mm]ake room") as error:
        evaluate(ID, ScriptedAgent(), tmp_path)
    assert "kept" in str(error.value) or "as it was" in str(error.value)
    monkeypatch.undo()
    if which == "aside":
        (tmp_path / "results.bad.jsonl").unlink()
    evaluate(ID, ScriptedAgent(), tmp_path)
    assert read_results(tmp_path) == read_results(complete_run[0])


def test_agent_statistics_are_totals_of_the_directory(tmp_path):
    class Counting(ScriptedAgent):
        answered = 0

        def act(self, turns):
            type(self).answered += len(turns)
            return super().act(turns)

        def statistics(self):
            return {"turns": float(self.answered)}

    def turns(out):
        return sum(len(t.steps) for t in files.read(out / "results.jsonl"))

    agent = Counting()
    # The same agent goes on to another directory, and back.
    evaluate(ID, agent, tmp_path / "a", EvaluationOptions(limit=4))
    summary = evaluate(ID, agent, tmp_path / "b", EvaluationOptions(limit=4))
    assert summary["agent_statistics"]["turns"] == turns(tmp_path / "b")
    summary = evaluate(ID, agent, tmp_path / "a", EvaluationOptions(limit=9))
    assert summary["agent_statistics"]["turns"] == turns(tmp_path / "a")


def test_failed_episodes_are_played_again(complete_run, tmp_path):
    summary = evaluate(ID, ScriptedAgent(fail="12"), tmp_path)
    assert summary["failed"] == 1
    assert summary["complete"] is False
    assert read_results(tmp_path)["even/12"].error
    summary = evaluate(ID, ScriptedAgent(), tmp_path)
    assert summary["failed"] == 0
    assert read_results(tmp_path) == read_results(complete_run[0])


def test_other_runs_are_refused_by_what_differs(complete_run, tmp_path):
    out, _ = complete_run
    other = ScriptedAgent()
    other.name = "another"
    refused = [
        ({"agent": other}, r"agent: scripted → another"),
        ({"seed": 3}, r"seed: 0 → 3"),
        ({"split": "dev"}, r"split: test → dev"),
        (
            {"agent": ScriptedAgent(style=PromptStyle(example=False))},
            r"fingerprint prompt: \w+ → \w+",
        ),
        ({"env_args": {"size": 9}}, r'fingerprint arguments: \{\} → \{"size": 9\}'),
    ]
    for changes, message in refused:
        arguments = {"agent": ScriptedAgent(), **changes}
        with pytest.raises(ResultsError, match=message) as error:
            evaluate(ID, arguments.pop("agent"), out, EvaluationOptions(**arguments))
        assert "--overwrite" in str(error.value)
        assert str(error.value).count("→") == 2, "only what differs is named"
    assert len(read_results(out)) == 20


def test_overwrite_starts_over(complete_run, tmp_path):
    evaluate(ID, ScriptedAgent(), tmp_path, EvaluationOptions(limit=5))
    summary = evaluate(
        ID, ScriptedAgent(), tmp_path, EvaluationOptions(limit=3, seed=1, overwrite=True)
    )
    assert summary["episodes"] == len(read_results(tmp_path)) == 3
    assert summary["seeds"] == [1]


def test_a_larger_limit_extends_a_smaller_one(tmp_path):
    env = envs.make(ID, split="test")
    few, more = choose(env, 4, None), choose(env, 9, None)
    assert more[:4] == few
    assert sorted(choose(env, 100, None)) == sorted(TASKS)
    assert choose(env, None, None) == list(TASKS)
    assert few != list(TASKS[:4]), "a sample of the split, not its first type"
    assert evaluate(ID, ScriptedAgent(), tmp_path, EvaluationOptions(limit=4))["episodes"] == 4
    assert evaluate(ID, ScriptedAgent(), tmp_path, EvaluationOptions(limit=9))["episodes"] == 9
    assert evaluate(ID, Never(), tmp_path, EvaluationOptions(limit=4))["episodes"] == 4
    assert choose(env, 1, ["odd/9", "odd/7"]) == ["odd/9"]


@pytest.mark.parametrize(
    ("limit", "ids", "message"),
    [
        (0, None, "at least 1"),
        (0, ["odd/7"], "at least 1"),
        (-1, ["odd/7", "odd/9"], "at least 1"),
        (None, ["odd/8"], "unknown task id 'odd/8'"),
        (None, [], "names no task"),
    ],
)
def test_a_choice_of_no_task_is_refused(limit, ids, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluate(
            ID, ScriptedAgent(), tmp_path / "out", EvaluationOptions(limit=limit, task_ids=ids)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [None, 5])
def test_tasks_that_are_listed_twice_are_played_once(limit, tmp_path):
    class Repeating(ToyEnv):
        def list_tasks(self):
            return ["odd/7", "even/8", "odd/7"]

    envs.registration.gym.register(
        "Test/Repeating-v0", entry_point=Repeating, disable_env_checker=True
    )
    console = Console(record=True, width=500, file=open("/dev/null", "w"))
    summary = evaluate(
        "Test/Repeating-v0",
        ScriptedAgent(),
        tmp_path,
        EvaluationOptions(limit=limit),
        console=console,
    )
    assert summary["episodes"] == len(files.read(tmp_path / "results.jsonl")) == 2
    assert summary["complete"] is True
    assert "repeats 1 of its task ids" in console.export_text()
    del envs.registration.gym.registry["Test/Repeating-v0"]


def test_no_more_environments_are_open_than_workers(tmp_path):
    """A server may have room for no more."""
    before, most = ToyEnv.opened - ToyEnv.closed, []

    class Watching(ScriptedAgent):
        def act(self, turns):
            most.append(ToyEnv.opened - ToyEnv.closed - before)
            return super().act(turns)

    evaluate(ID, Watching(), tmp_path, EvaluationOptions(limit=8, workers=2))
    assert max(most) == 2
    assert ToyEnv.opened - ToyEnv.closed == before


def test_too_many_failures_in_a_row_end_the_run(tmp_path):
    class Away(ScriptedAgent):
        def act(self, turns):
            raise ConnectionError("the server is away")

    with pytest.raises(ResultsError, match=r"3 failed episodes in a row.*server is away"):
        evaluate(ID, Away(), tmp_path, EvaluationOptions(max_failures=3))
    assert len(read_results(tmp_path)) == 3
    assert read_summary(tmp_path)["complete"] is False
    assert evaluate(ID, ScriptedAgent(), tmp_path)["complete"] is True


def test_interrupt_leaves_a_partial_summary(tmp_path):
    class Interrupted(ScriptedAgent):
        def act(self, turns):
            if len(self.batches) == 30:
                raise KeyboardInterrupt
            return super().act(turns)

    with pytest.raises(KeyboardInterrupt):
        evaluate(ID, Interrupted(), tmp_path)
    assert read_summary(tmp_path)["complete"] is False
    assert read_summary(tmp_path)["episodes"] == len(read_results(tmp_path)) > 0


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "_PLAIN_EVERY", 0.0)
    path = tmp_path / "log"
    with path.open("w") as file:
        evaluate(
            ID,
            ScriptedAgent(),
            tmp_path / "out",
            EvaluationOptions(limit=3),
            console=Console(file=file, width=120),
        )
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith(f"scripted on {ID}: 3/3 episodes, score 0.")


def test_table_shows_every_type_and_the_interval(complete_run):
    console = Console(record=True, width=80, file=open("/dev/null", "w"))
    console.print(report.summary_table(complete_run[1]))
    shown = console.export_text()
    low, high = complete_run[1]["reward_ci95"]
    for text in ("even", "odd", "all", "valid", f"[{low:.3f}, {high:.3f}]", "distance"):
        assert text in shown
    assert "…" not in shown
