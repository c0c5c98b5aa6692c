"""The command `eval.run`: options, its process being stopped, and a server that answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepagent.envs import trajectory as files
from stepagent.envs.alfworld.data import TYPES
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.eval.run import Config, folder, main
from tests.eval.example_results import read_results, read_summary
from tests.servers import Scripted as Server
from tests.servers import running
from tests.toy_env import ID, ScriptedAgent, ToyEnv

# A server ------------------------------------------------------------------------------------


def test_a_repeated_run_with_a_server_asks_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
    server = Counter()
    with running(server, monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        prices = tmp_path / "prices.yaml"
        prices.write_text("gpt-4-0125-preview: {input: 10.0, output: 30.0}\n")
        options = ["--env", ID, "--agent", "openai:gpt-4-0125-preview", "--limit", "4"]
        options += ["--agent-args.prices", str(prices)]
        assert main([*options, "--out", str(tmp_path / "one")]) == 0
        requests = len(server.seen)
        assert requests == sum(len(t.steps) for t in files.read(tmp_path / "one" / "results.jsonl"))
        assert main([*options, "--out", str(tmp_path / "two")]) == 0
        assert len(server.seen) == requests
        assert main([*options, "--no-cache", "--out", str(tmp_path / "three")]) == 0
        assert len(server.seen) == 2 * requests
        assert main([*options, "--shots", "3", "--out", str(tmp_path / "four")]) == 0
    assert server.seen[-1]["messages"][0]["content"].count("from beginning to end") == 3
    assert (
        read_results(tmp_path / "one")
        == read_results(tmp_path / "two")
        == read_results(tmp_path / "three")
    )
    statistics = {
        name: read_summary(tmp_path / name)["agent_statistics"] for name in ("one", "two", "three")
    }
    assert statistics["one"]["cost"] == pytest.approx(requests * (40 * 10 + 6 * 30) / 1e6)
    assert statistics["two"]["cost"] == 0
    assert statistics["two"]["replies_cached"] == requests
    assert statistics["three"]["cost"] == statistics["one"]["cost"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-hidden" not in path.read_bytes()


def test_replies_cut_at_their_limit_are_counted_and_explained(monkeypatch, tmp_path, capsys):
    server = Counter()
    server.finish = "length"
    with running(server, monkeypatch):
        options = ["--env", ID, "--agent", "openai:m", "--limit", "2", "--max-new-tokens", "20"]
        url = f"--agent-args.base-url={server.address}"
        assert main([*options, url, "--no-cache", "--out", str(tmp_path)]) == 0
    steps = [s for t in files.read(tmp_path / "results.jsonl") for s in t.steps]
    assert {step.ending for step in steps} == {"length"}
    cut = f"{len(steps)} of {len(steps)} replies were cut at 20 tokens: raise --max-new-tokens"
    assert read_summary(tmp_path)["notes"] == [cut]
    shown = " ".join(capsys.readouterr().err.split())
    assert cut in shown


class Counter(Server):
    """Always adds one."""

    finish = "stop"

    def read(self, path, body):
        return json.loads(body)

    def answer(self, request):
        usage = {"prompt_tokens": 40, "completion_tokens": 6}
        text = "Thought: One more.\nAction: add 1"
        choice = {"message": {"content": text}, "finish_reason": self.finish}
        return json.dumps({"choices": [choice], "usage": usage}).encode()


# The process ----------------------------------------------------------------------------------


def start(*arguments, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.eval.run_toy_agent", *arguments],
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
    code, errors = stopped(tmp_path, how)
    if how != signal.SIGKILL:
        episodes = len(read_results(tmp_path))
        assert code == 130
        assert "the same command continues" in " ".join(errors.split())
        assert "Traceback" not in errors
        assert read_summary(tmp_path)["episodes"] == episodes
        assert read_summary(tmp_path)["complete"] is False
        assert 3 <= episodes < 20
    else:
        assert code == -signal.SIGKILL
    evaluate(ID, ScriptedAgent(), tmp_path, EvaluationOptions(**arguments))
    evaluate(ID, ScriptedAgent(), tmp_path / "uninterrupted", EvaluationOptions(**arguments))
    assert read_results(tmp_path) == read_results(tmp_path / "uninterrupted")
    assert read_summary(tmp_path) == read_summary(tmp_path / "uninterrupted")


def test_two_processes_on_one_directory(tmp_path):
    slow = ["--env", ID, "--agent", "x", "--out", str(tmp_path), "--env-args.delay", "0.2"]
    first = start(*slow)
    try:
        while not (tmp_path / "results.jsonl").exists():
            time.sleep(0.02)
            assert first.poll() is None
        second = start(*slow)
        assert second.wait(60) == 1
        errors = " ".join(second.stderr.read().split())
        assert f"in use by another process (id {first.pid})" in errors
    finally:
        first.kill()
        first.wait()


def test_full_disk_loses_nothing(complete_run, tmp_path):
    out = str(tmp_path / "out")
    process = start("--full-disk", "--env", ID, "--agent", "x", "--out", out)
    assert process.wait(60) == 1
    errors = " ".join(process.stderr.read().split())
    assert "make room and run again" in errors
    assert "Traceback" not in errors
    bad: list = []
    assert len(files.read(tmp_path / "out" / "results.jsonl", bad)) >= 2
    evaluate(ID, ScriptedAgent(), tmp_path / "out")
    assert read_results(tmp_path / "out") == read_results(complete_run[0])


def test_a_run_from_the_command_line(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "c.yaml").write_text(f"env: {ID}\nagent: x\nlimit: 9\nenv_args: {{size: 12}}\n")
    process = start("--config", str(tmp_path / "c.yaml"), "--out", str(out), "--limit", "4")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "scripted on tests.toy_env:Test/Toy-v0" in output
    assert read_summary(out)["episodes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "a", "--agent", "b", "--outt", "c"], "Did you mean --out?"),
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
    assert len(read_results(out)) == 2
    assert str(out) in capsys.readouterr().err
    assert folder(Config(env="stepagent/ScienceWorld-v0", agent="openai:m")) == Path(
        "runs", "openai-m", "ScienceWorld-test"
    )
    assert folder(Config(suite="quick")) == Path("runs", "quick")
    assert folder(Config(suite="my/own.yaml")) == Path("runs", "own")
    assert folder(Config(env=ID, agent="expert", out=tmp_path)) == tmp_path


def test_without_an_agent_it_lists_them(tmp_path, capsys):
    assert main(["--env", ID, "--out", str(tmp_path / "out")]) == 2
    assert "--env needs --agent: expert, random" in " ".join(capsys.readouterr().err.split())


def test_an_environment_that_cannot_start_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
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


@pytest.mark.real_data
def test_real_games_of_alfworld_are_summarised_by_their_six_types(tmp_path):
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no real ALFWorld games to play")
    arguments = {"data": f"{folder}/alfworld", "max_steps": 1}
    options = ["--agent", "random", "--limit", "24", "--out", str(tmp_path)]
    assert (
        main(["--env", "stepagent/ALFWorld-v0", "--env-args", json.dumps(arguments), *options]) == 0
    )
    by_type = read_summary(tmp_path)["by_type"]
    assert set(by_type) == set(TYPES)
    assert all(group["episodes"] == 4 for group in by_type.values())
