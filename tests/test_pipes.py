"""A pipe in place of a file is an error that names it: nothing waits for a writer."""

from __future__ import annotations

import ast
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from stepagent.agents.models import load_model, load_tokenizer
from stepagent.envs.trajectory import read
from stepagent.eval import compare, regret, replay, view
from stepagent.eval import run as evaluation
from stepagent.eval.agreement import command as agreement
from stepagent.files import NotAFile, check_files, is_file, open_file, read_bytes, read_text
from stepagent.training import collect, merge
from stepagent.training.convert import command as convert
from stepagent.training.policy import Policy
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.sweep import command as sweep
from tests import toy_env
from tests.eval.example_results import write_run

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")


@pytest.fixture(autouse=True)
def no_waiting():
    """A test that waits for a pipe fails within a minute."""

    def stop(*_):
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("use", [open_file, read_text, read_bytes, is_file, check_files, read])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_named(tmp_path, use, kind):
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as listening:
        if kind == "socket":
            listening.bind(str(path))
        path = pipe(path) if kind == "pipe" else Path("/dev/zero") if kind == "device" else path
        with pytest.raises(NotAFile, match=str(path)):
            use(path)


@pytest.mark.parametrize("mode", ["r", "rb", "a", "ab", "r+b", "w"])
def test_no_mode_waits(tmp_path, mode):
    with pytest.raises(NotAFile):
        open_file(pipe(tmp_path / "x"), mode)


def test_a_device_may_be_written_to():
    with open_file("/dev/null", "a") as file:
        file.write("x")
    with pytest.raises(NotAFile):
        open_file("/dev/null")


def test_files_and_folders_are_opened_as_by_open(tmp_path):
    path = tmp_path / "x"
    with open_file(path, "a") as file:
        file.write("é")
    assert path.read_bytes() == "é".encode()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "y")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


COMMANDS = {
    "view": lambda folder: view.main([folder, "--out", f"{folder}.html"]),
    "compare": lambda folder: compare.main([folder]),
    "replay": lambda folder: replay.main([folder]),
    "regret": lambda folder: regret.main([folder]),
    "convert": lambda folder: convert.main([f"{folder}/results.jsonl", "--out", f"{folder}.jsonl"]),
    "eval": lambda folder: evaluation.main(
        ["--env", toy_env.ID, "--agent", "expert", "--out", folder]
    ),
    "agreement": lambda folder: agreement.main(
        [folder, "--trajectories", f"{folder}/results.jsonl"]
    ),
}
READ = [
    *((name, "results.jsonl") for name in COMMANDS),
    *((name, "summary.json") for name in ("view", "compare", "replay", "eval")),
    *((name, "regret.jsonl") for name in ("view", "compare", "regret")),
    *((name, "agreement.jsonl") for name in ("compare",)),
    ("view", "metrics.jsonl"),
]


@pytest.mark.parametrize(("command", "name"), READ)
def test_a_command_names_the_pipe(tmp_path, capsys, command, name):
    folder = tmp_path / "run"
    if command != "eval":
        write_run(folder, {"test/0": 1.0}, env=toy_env.ID)
    path = pipe(folder / name)
    assert COMMANDS[command](str(folder)) == 2
    output = "".join(capsys.readouterr().err.split())
    assert str(path) in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "stages.json", "metrics.jsonl", ".lock", "eval/sft/results.jsonl",
     "expert/trajectories.jsonl", "policies/sft/config.json", "checkpoints/sft/random.safetensors"],
)  # fmt: skip
def test_training_resumes_from_no_pipe(tmp_path, name):
    with pytest.raises(NotAFile, match=name):
        RunDirectory(pipe(tmp_path / name).parents[len(Path(name).parts) - 1], "a: 1\n")


def test_expert_episodes_and_adapters(tmp_path, capsys):
    pipe(tmp_path / "trajectories.jsonl")
    assert collect.main(["--env", toy_env.ID, "--out", str(tmp_path)]) == 2
    assert str(tmp_path) in "".join(capsys.readouterr().err.split())
    pipe(tmp_path / "adapter_config.json")
    assert merge.main([str(tmp_path), "--out", str(tmp_path / "merged")]) == 2
    assert "adapter_config.json" in "".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_files_of_a_policy(tmp_path, policy, name):
    policy.save(tmp_path)
    pipe(tmp_path / name)
    for load in (load_model, load_tokenizer, policy.load_weights):
        with pytest.raises(NotAFile, match=name):
            load(tmp_path)


@pytest.fixture
def policy():
    from stepagent.training.config import PolicyConfig, TinyConfig

    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu", dtype="float32")
    config.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=64)
    return Policy.tiny(config, ["a b c"], seed=0)


@pytest.mark.parametrize("name", ["sweep.yaml", "runs/a/summary.json"])
def test_a_sweep_names_the_pipe(tmp_path, capsys, name):
    settings = {
        "output": str(tmp_path), "seeds": [0], "methods": {"sft": {}},
        "environments": {"Toy": {"env": toy_env.ID}}, "models": {"tiny": {}},
        "experiments": [
            {"name": "T", "methods": ["sft"], "environments": ["Toy"], "models": ["tiny"]}
        ],
    }  # fmt: skip
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(settings))
    if "summary" in name:
        runs = [run.name for run in _runs(file)]
        name = f"runs/{runs[0]}/summary.json"
    pipe(tmp_path / name)
    assert sweep.main(["--output", str(tmp_path), "--report_only", "true"]) == 2
    assert str(tmp_path / name) in "".join(capsys.readouterr().err.split())


def _runs(file):
    from stepagent import command_line
    from stepagent.training.sweep import planning

    return planning.all_runs(command_line.parse(planning.Sweep, ["--config", str(file)], prog="x"))


def test_nothing_else_opens_files():
    """Reading and appending go through `stepagent.files`, wherever a file may come from."""
    others = []
    for folder in ("stepagent", "agents", "envs", "eval", "training"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == ROOT / "stepagent" / "files.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _opens(node):
                    others.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not others, "\n".join(others)


def _opens(call: ast.Call) -> bool:
    """Whether a call opens a path to read it or to append to it."""
    match call.func:
        case ast.Attribute(attr="read_text" | "read_bytes"):
            return True
        case ast.Name(id="open"):
            return True
        case ast.Attribute(attr="open"):
            modes = [a.value for a in call.args[:1] if isinstance(a, ast.Constant)]
            only_text = not call.args and [k.arg for k in call.keywords] == ["encoding"]
            return only_text or any(mode in ("r", "rb", "a", "ab", "r+b") for mode in modes)
    return False
