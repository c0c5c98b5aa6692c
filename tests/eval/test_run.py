"""Evaluations: results, resume, refusals, and being stopped in every way a process can be."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from stepagent import envs
from stepagent.envs import trajectory as files
from stepagent.envs.react import PromptStyle
from stepagent.eval import report
from stepagent.eval.results import ResultsError
from stepagent.eval.run import Config, choose, evaluate, folder, main
from tests.eval.toy_world import ID, Scripted, ToyEnv
from tests.servers import Scripted as Server
from tests.servers import running

TASKS = envs.make(ID, split="test").tasks


def results(out: Path):
    return {t.task_id: replace(t, seconds=0.0) for t in files.read(out / "results.jsonl")}


def scores(out: Path):
    summary = json.loads((out / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k != "seconds"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(ID, Scripted(), out)


class Never(Scripted):
    def act(self, turns):
        raise AssertionError("nothing was left to play")


def test_results_and_summary_are_written(whole):
    out, summary = whole
    assert set(results(out)) == set(TASKS)
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["episodes"] == 20
    assert summary["complete"] is True
    mean = sum(t.reward for t in results(out).values()) / 20
    assert summary["reward_mean"] == pytest.approx(mean)


def test_running_again_plays_nothing(whole):
    out, summary = whole
    again = evaluate(ID, Never(), out)
    assert again["reward_mean"] == summary["reward_mean"]
    assert again["seconds"] >= summary["seconds"]


def test_resume_from_a_cut_line_gives_the_same_results(whole, tmp_path):
    lines = (whole[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:50])
    evaluate(ID, Scripted(), tmp_path)
    assert results(tmp_path) == results(whole[0])
    assert scores(tmp_path) == scores(whole[0])


def test_unreadable_lines_are_kept_aside_and_named(whole, tmp_path):
    lines = (whole[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    old = lines[1].replace(b'"version":1', b'"version":0')
    (tmp_path / "results.jsonl").write_bytes(lines[0] + b"{broken\n" + old + b"".join(lines[2:]))
    console = Console(record=True, width=500, quiet=False, file=open("/dev/null", "w"))
    evaluate(ID, Scripted(), tmp_path, console=console)
    assert results(tmp_path) == results(whole[0])
    shown = console.export_text()
    assert "results.jsonl:2: not JSON" in shown
    assert "results.jsonl:3: schema version 0" in shown
    assert (tmp_path / "results.bad.jsonl").read_bytes() == b"{broken\n" + old


def test_a_future_version_is_kept_aside_too(whole, tmp_path):
    lines = (whole[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    future = lines[2].replace(b'"version":1', b'"version":9,"colour":"blue"')
    (tmp_path / "results.jsonl").write_bytes(b"".join([*lines[:2], future, *lines[3:]]))
    evaluate(ID, Scripted(), tmp_path)
    assert results(tmp_path) == results(whole[0])
    assert (tmp_path / "results.bad.jsonl").read_bytes() == future


def test_of_results_that_are_there_twice_the_last_good_one_counts(whole, tmp_path):
    found = files.read(whole[0] / "results.jsonl")
    other = replace(found[0], seconds=99.0)
    failed = replace(found[1], error="agent: x")
    files.write(tmp_path / "results.jsonl", [*found, other, failed])
    console = Console(record=True, width=500, quiet=False, file=open("/dev/null", "w"))
    summary = evaluate(ID, Never(), tmp_path, console=console)
    assert summary["complete"] is True
    assert "2 results are of tasks that the file holds already" in console.export_text()
    kept = files.read(tmp_path / "results.jsonl")
    assert len(kept) == len(TASKS)
    assert other in kept
    assert results(tmp_path) == results(whole[0])


def test_results_of_several_runs_in_one_file_are_refused(whole, tmp_path):
    found = files.read(whole[0] / "results.jsonl")
    mixed = [*found[:3], *(replace(t, agent="another") for t in found[3:])]
    files.write(tmp_path / "results.jsonl", mixed)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ResultsError, match="agent: another → scripted"):
        evaluate(ID, Never(), tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("which", ["append", "rewrite", "aside", "summary"])
def test_no_room_is_told_whatever_could_not_be_written(whole, tmp_path, monkeypatch, which):
    def full(*arguments, **kwargs):
        raise OSError(28, "No space left on device")

    good = files.read(whole[0] / "results.jsonl")
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
        evaluate(ID, Scripted(), tmp_path)
    assert "kept" in str(error.value) or "as it was" in str(error.value)
    monkeypatch.undo()
    if which == "aside":
        (tmp_path / "results.bad.jsonl").unlink()
    evaluate(ID, Scripted(), tmp_path)
    assert results(tmp_path) == results(whole[0])


def test_what_the_agent_counts_is_the_directorys_own_total(tmp_path):
    class Counting(Scripted):
        told = 0

        def act(self, turns):
            type(self).told += len(turns)
            return super().act(turns)

        def statistics(self):
            return {"turns": float(self.told)}

    def turns(out):
        return sum(len(t.steps) for t in files.read(out / "results.jsonl"))

    agent = Counting()
    evaluate(ID, agent, tmp_path / "a", limit=4)  # the same agent goes on to other directories
    summary = evaluate(ID, agent, tmp_path / "b", limit=4)
    assert summary["agent_statistics"]["turns"] == turns(tmp_path / "b")
    summary = evaluate(ID, agent, tmp_path / "a", limit=9)
    assert summary["agent_statistics"]["turns"] == turns(tmp_path / "a")


def test_failed_episodes_are_played_again(whole, tmp_path):
    summary = evaluate(ID, Scripted(fail="12"), tmp_path)
    assert summary["failed"] == 1
    assert summary["complete"] is False
    assert results(tmp_path)["even/12"].error
    summary = evaluate(ID, Scripted(), tmp_path)
    assert summary["failed"] == 0
    assert results(tmp_path) == results(whole[0])


def test_other_runs_are_refused_by_what_differs(whole, tmp_path):
    out, _ = whole
    other = Scripted()
    other.name = "another"
    refused = [
        ({"agent": other}, r"agent: scripted → another"),
        ({"seed": 3}, r"seed: 0 → 3"),
        ({"split": "dev"}, r"split: test → dev"),
        ({"agent": Scripted(style=PromptStyle(example=False))}, r"fingerprint prompt: \w+ → \w+"),
        ({"env_args": {"size": 9}}, r'fingerprint arguments: \{\} → \{"size": 9\}'),
    ]
    for changes, message in refused:
        arguments = {"agent": Scripted(), **changes}
        with pytest.raises(ResultsError, match=message) as error:
            evaluate(ID, arguments.pop("agent"), out, **arguments)
        assert "--overwrite" in str(error.value)
        assert str(error.value).count("→") == 2, "only what differs is named"
    assert len(results(out)) == 20


def test_overwrite_starts_afresh(whole, tmp_path):
    evaluate(ID, Scripted(), tmp_path, limit=5)
    summary = evaluate(ID, Scripted(), tmp_path, limit=3, seed=1, overwrite=True)
    assert summary["episodes"] == len(results(tmp_path)) == 3
    assert summary["seeds"] == [1]


def test_a_larger_limit_adds_to_a_smaller_one(tmp_path):
    env = envs.make(ID, split="test")
    few, more = choose(env, 4, None), choose(env, 9, None)
    assert more[:4] == few
    assert sorted(choose(env, 100, None)) == sorted(TASKS)
    assert choose(env, None, None) == list(TASKS)
    assert few != list(TASKS[:4]), "a sample of the split, not its first type"
    assert evaluate(ID, Scripted(), tmp_path, limit=4)["episodes"] == 4
    assert evaluate(ID, Scripted(), tmp_path, limit=9)["episodes"] == 9
    assert evaluate(ID, Never(), tmp_path, limit=4)["episodes"] == 4
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
        evaluate(ID, Scripted(), tmp_path / "out", limit=limit, task_ids=ids)
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
    summary = evaluate("Test/Repeating-v0", Scripted(), tmp_path, limit=limit, console=console)
    assert summary["episodes"] == len(files.read(tmp_path / "results.jsonl")) == 2
    assert summary["complete"] is True
    assert "repeats 1 of its task ids" in console.export_text()
    del envs.registration.gym.registry["Test/Repeating-v0"]


def test_no_more_environments_are_open_than_workers(tmp_path):
    """A server may have places for these only."""
    before, most = ToyEnv.made - ToyEnv.closed, []

    class Watching(Scripted):
        def act(self, turns):
            most.append(ToyEnv.made - ToyEnv.closed - before)
            return super().act(turns)

    evaluate(ID, Watching(), tmp_path, limit=8, workers=2)
    assert max(most) == 2
    assert ToyEnv.made - ToyEnv.closed == before


def test_too_many_failures_in_a_row_end_the_run(tmp_path):
    class Away(Scripted):
        def act(self, turns):
            raise ConnectionError("the server is away")

    with pytest.raises(ResultsError, match=r"3 failed episodes in a row.*server is away"):
        evaluate(ID, Away(), tmp_path, max_failures=3)
    assert len(results(tmp_path)) == 3
    assert scores(tmp_path)["complete"] is False
    assert evaluate(ID, Scripted(), tmp_path)["complete"] is True


def test_interrupt_leaves_a_partial_summary(tmp_path):
    class Interrupted(Scripted):
        def act(self, turns):
            if len(self.batches) == 30:
                raise KeyboardInterrupt
            return super().act(turns)

    with pytest.raises(KeyboardInterrupt):
        evaluate(ID, Interrupted(), tmp_path)
    assert scores(tmp_path)["complete"] is False
    assert scores(tmp_path)["episodes"] == len(results(tmp_path)) > 0


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "_PLAIN_EVERY", 0.0)
    path = tmp_path / "log"
    with path.open("w") as file:
        evaluate(ID, Scripted(), tmp_path / "out", limit=3, console=Console(file=file, width=120))
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith(f"scripted on {ID}: 3/3 episodes, score 0.")


def test_table_shows_every_type_and_the_interval(whole):
    console = Console(record=True, width=80, file=open("/dev/null", "w"))
    console.print(report.table(whole[1]))
    shown = console.export_text()
    low, high = whole[1]["reward_ci95"]
    for text in ("even", "odd", "all", "valid", f"[{low:.3f}, {high:.3f}]", "distance"):
        assert text in shown
    assert "…" not in shown


# A server ------------------------------------------------------------------------------------


def test_a_repeated_run_with_a_server_asks_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    server = Counter()
    with running(server, monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        options = ["--env", ID, "--agent", "openai:gpt-4-0125-preview", "--limit", "4"]
        assert main([*options, "--out", str(tmp_path / "one")]) == 0
        asked = len(server.seen)
        assert asked == sum(len(t.steps) for t in files.read(tmp_path / "one" / "results.jsonl"))
        assert main([*options, "--out", str(tmp_path / "two")]) == 0
        assert len(server.seen) == asked
        assert main([*options, "--no-cache", "--out", str(tmp_path / "three")]) == 0
        assert len(server.seen) == 2 * asked
        assert main([*options, "--shots", "3", "--out", str(tmp_path / "four")]) == 0
    assert server.seen[-1]["messages"][0]["content"].count("from beginning to end") == 3
    assert results(tmp_path / "one") == results(tmp_path / "two") == results(tmp_path / "three")
    told = {name: scores(tmp_path / name)["agent_statistics"] for name in ("one", "two", "three")}
    assert told["one"]["cost"] == pytest.approx(asked * (40 * 10 + 6 * 30) / 1e6)
    assert told["two"]["cost"] == 0
    assert told["two"]["replies_cached"] == asked
    assert told["three"]["cost"] == told["one"]["cost"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-hidden" not in path.read_bytes()


class Counter(Server):
    """Always adds one."""

    def read(self, path, body):
        return json.loads(body)

    def answer(self, asked):
        usage = {"prompt_tokens": 40, "completion_tokens": 6}
        text = "Thought: One more.\nAction: add 1"
        return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()


# The process ----------------------------------------------------------------------------------


def start(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.eval.toy_run", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def stopped(out, how):
    """A slow run that gets the signal after a few episodes; its exit code and standard error."""
    process = start("--env", ID, "--agent", "x", "--out", str(out), "--env-args.delay", "0.1")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "results.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            process.send_signal(how)
            break
        time.sleep(0.01)
    return process.wait(60), process.stderr.read()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_runs_continue_to_the_same_results(how, tmp_path):
    arguments = {"env_args": {"delay": 0.1}}
    code, said = stopped(tmp_path, how)
    kept = results(tmp_path) if how != signal.SIGKILL else None
    if kept is not None:
        assert code == 130
        assert "the same command continues" in " ".join(said.split())
        assert "Traceback" not in said
        assert scores(tmp_path)["episodes"] == len(kept)
        assert scores(tmp_path)["complete"] is False
        assert 3 <= len(kept) < 20
    else:
        assert code == -signal.SIGKILL
    evaluate(ID, Scripted(), tmp_path, **arguments)
    evaluate(ID, Scripted(), tmp_path / "whole", **arguments)
    assert results(tmp_path) == results(tmp_path / "whole")
    assert scores(tmp_path) == scores(tmp_path / "whole")


def test_two_processes_on_one_directory(tmp_path):
    slow = ["--env", ID, "--agent", "x", "--out", str(tmp_path), "--env-args.delay", "0.2"]
    first = start(*slow)
    try:
        while not (tmp_path / "results.jsonl").exists():
            time.sleep(0.02)
            assert first.poll() is None
        second = start(*slow)
        assert second.wait(60) == 1
        said = " ".join(second.stderr.read().split())
        assert f"in use by another process (id {first.pid})" in said
    finally:
        first.kill()
        first.wait()


def test_full_disk_loses_nothing(whole, tmp_path):
    out = str(tmp_path / "out")
    process = start("--full-disk", "--env", ID, "--agent", "x", "--out", out)
    assert process.wait(60) == 1
    said = " ".join(process.stderr.read().split())
    assert "make room and run again" in said
    assert "Traceback" not in said
    bad: list = []
    assert len(files.read(tmp_path / "out" / "results.jsonl", bad)) >= 2
    evaluate(ID, Scripted(), tmp_path / "out")
    assert results(tmp_path / "out") == results(whole[0])


def test_a_whole_run_from_the_command_line(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "c.yaml").write_text(f"env: {ID}\nagent: x\nlimit: 9\nenv_args: {{size: 12}}\n")
    process = start("--config", str(tmp_path / "c.yaml"), "--out", str(out), "--limit", "4")
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "scripted on tests.eval.toy_world:Test/Toy-v0" in shown
    assert scores(out)["episodes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "a", "--agent", "b", "--outt", "c"], "Did you mean out?"),
        (["--env", "a", "--agent", "b", "--out", "c", "--split", "x"], "train or dev or test"),
        (["--env", "a", "--agent", "b", "--out", "c", "--limit", "many"], "it takes int or null"),
    ],
)
def test_wrong_options_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_without_out_the_results_are_named_after_what_is_played(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--env", ID, "--agent", "expert", "--split", "dev", "--limit", "2"]) == 0
    out = Path("runs", "expert", "Toy-dev")
    assert len(results(out)) == 2
    assert str(out) in capsys.readouterr().err
    assert folder(Config(env="stepagent/ScienceWorld-v0", agent="openai:m")) == Path(
        "runs", "openai-m", "ScienceWorld-test"
    )
    assert folder(Config(suite="quick")) == Path("runs", "quick")
    assert folder(Config(suite="my/own.yaml")) == Path("runs", "own")
    assert folder(Config(env=ID, agent="expert", out=tmp_path)) == tmp_path


def test_without_an_agent_it_says_which_there_are(tmp_path, capsys):
    assert main(["--env", ID, "--out", str(tmp_path / "out")]) == 2
    assert "--env needs --agent: expert, random" in " ".join(capsys.readouterr().err.split())


def test_an_environment_that_breaks_as_a_whole_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("the simulator [did] not start")

    monkeypatch.setattr(ToyEnv, "list_tasks", broken)
    assert main(["--env", ID, "--agent", "expert", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown == "stepagent eval: error: the simulator [did] not start\n"


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--max-new-tokens" in shown
    assert "in tokens (models only)" in shown
    assert "fixed shuffle" in shown
