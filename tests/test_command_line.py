"""Command lines from dataclasses: where values come from, and what is said about wrong ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from stepagent import cli, command_line


@dataclass
class Inner:
    """Inner options."""

    rank: int = 16
    """Rank of the adapters."""
    on: bool = True
    """Whether there are any."""


@dataclass
class Options:
    """A command for tests."""

    name: str
    """What it is called."""
    out_file: Path | None = None
    """Where to."""
    rate: float = 1e-5
    """Learning rate."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""
    quick: bool = False
    """Hurry."""
    maybe: bool | None = None
    """Yes, no or as it was."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments."""
    names: list[str] | None = None
    """Some names."""
    inner: Inner = field(default_factory=Inner)
    """Inner options."""


def parse(*argv: str) -> Options:
    return command_line.parse(Options, argv, prog="test", positional="name")


def test_defaults_types_and_spellings():
    assert parse("x") == parse("--name", "x") == Options("x")
    options = parse("x", "--out-file", "a/b", "--rate=3e-4", "--kind", "b", "--names", "[p/1, q/2]")
    assert options == Options("x", Path("a/b"), 3e-4, "b", names=["p/1", "q/2"])
    assert parse("x", "--out_file", "a/b").out_file == Path("a/b")
    assert parse("--name", "12").name == "12"


def test_a_list_item_by_item_or_as_a_whole():
    for argv in (["--names", "p/1", "--rate=1", "--names=q/2"], ["--names", "[p/1, 'q/2']"]):
        assert parse("x", *argv).names == ["p/1", "q/2"]
    assert parse("x", "--names", "p/1").names == ["p/1"]
    assert parse("x", "--names", "null").names is None


def test_several_positional_arguments():
    def two(*argv: str) -> Options:
        return command_line.parse(Options, argv, prog="test", positional=("name", "out_file"))

    assert two("x", "y", "--quick") == Options("x", Path("y"), quick=True)
    assert two("--rate", "3", "x", "--quick", "y") == Options("x", Path("y"), 3.0, quick=True)
    assert two("x", "--out-file", "y") == two("--name", "x", "--out-file=y")


def test_switches():
    options = parse("x", "--quick", "--no-maybe", "--inner.on", "false")
    assert (options.quick, options.maybe, options.inner.on) == (True, False, False)
    assert parse("x", "--quick=false", "--maybe=null").maybe is None
    assert parse("--quick", "--name", "x").quick is True


def test_dicts_and_nested_dataclasses():
    options = parse("x", "--args.max-steps", "3", "--args.tasks", "paper", "--inner.rank", "4")
    assert options.args == {"max_steps": 3, "tasks": "paper"}
    assert options.inner == Inner(4)


def test_the_command_line_goes_over_the_file_and_dump_reads_back(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: x\nrate: 2e-6\ninner: {rank: 2}\nargs: {a: 1}\n")
    options = parse("--config", str(file), "--inner.on=false", "--args.b", "2")
    assert options == Options("x", rate=2e-6, inner=Inner(2, False), args={"a": 1, "b": 2})
    file.write_text(command_line.dump(options))
    assert parse("--config", str(file)) == options


def test_keys_within_keys_add_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "options.yaml"
    file.write_text("name: x\nargs: {request: {top_k: 5}, other: 1}\n")
    deep = (
        "--args.request.min-p",
        "0.1",
        "--args.request.stop=[a, b]",
        "--args.request.rate",
        "1e-4",
    )
    nested = ("--args.template.thinking", "false", "--args.template.tools.one", "null")
    expected = {
        "request": {"top_k": 5, "min_p": 0.1, "stop": ["a", "b"], "rate": 1e-4},
        "template": {"thinking": False, "tools": {"one": None}},
        "other": 1,
    }
    assert parse("--config", str(file), *deep, *nested).args == expected
    twice = parse("x", "--args.a", "{b: 1, c: 2}", "--args.a.b", "3", "--args.a.d.e", "4")
    assert twice.args == {"a": {"b": 3, "c": 2, "d": {"e": 4}}}
    assert parse("x", "--args.a", "1", "--args.a.b", "2").args == {"a": {"b": 2}}
    with pytest.raises(SystemExit) as stopped:
        parse("x", *nested, "--print-config")
    assert stopped.value.code == 0
    assert "thinking: false" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse("x", "--args.a.b", "{unclosed")
    assert "--args.a.b cannot be '{unclosed'" in capsys.readouterr().err


def test_a_near_name_among_very_many_comes_alone():
    many = [f"option-{number}" for number in range(60)]
    assert command_line.suggestion("option-7x", many).startswith(" Did you mean option-7")
    assert "There are" not in command_line.suggestion("option-7x", many)
    assert "option-59" in command_line.suggestion("z", many)


def test_a_config_is_data_and_calls_nothing(tmp_path):
    called = tmp_path / "called"
    touch = {"class_path": "os.mkdir", "init_args": {"path": str(called)}}
    file = tmp_path / "c.yaml"
    file.write_text(command_line.dump(Options("x", args={"a": touch})))
    argument = parse("--config", str(file)).args["a"]
    assert argument["class_path"] == "os.mkdir"  # text, as it came
    assert not called.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x", "--rat", "3"], "unknown option --rat. Did you mean --rate?"),
        (["x", "--inner.rang", "3"], "Did you mean --inner.rank"),
        (["x", "--out_fil", "3"], "unknown option --out-fil. Did you mean --out-file?"),
        (["x", "--ratee=3"], "There are: --name, --out-file, --rate, --kind, --quick"),
        (["x", "--rate", "fast"], "rate cannot be 'fast': it takes float"),
        (["x", "--kind", "c"], "kind cannot be 'c': it takes a or b"),
        (["x", "--inner.rank", "x"], "inner.rank cannot be 'x': it takes int"),
        ([], "required: NAME"),
        (["x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["x", "y"], "unrecognized arguments: y"),
    ],
)
def test_errors_say_what_exists(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*argv)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") <= 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nrat: 3\n", "Did you mean rate"),
        ("name: x\ninner: {rang: 3}\n", "unknown key 'inner.rang'. Did you mean inner.rank"),
        ("name: x\nrate: fast\n", "rate cannot be 'fast'"),
        ("name: [x\n", ""),
    ],
)
def test_wrong_files(text, message, tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as exit:
        parse("--config", str(file))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_every_field(capsys):
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--out-file", "Where to.", "--inner.rank", "Rank of the adapters.", "--no-x"):
        assert text in shown


def test_help_shows_what_goes_without_an_option_name(capsys):
    def shown(kind, positional):
        with pytest.raises(SystemExit):
            command_line.parse(kind, ["--help"], prog="test", positional=positional)
        text = " ".join(capsys.readouterr().out.split())
        return text[: text.index("options:")], text

    usage, text = shown(Options, "name")
    assert " NAME " in usage
    assert "NAME What it is called." in text
    assert "--name NAME" not in text
    usage, text = shown(Several, "things")
    assert "THING [THING ...]" in usage
    assert "--things" not in text
    usage, _ = shown(Options, ("name", "out_file"))
    assert "NAME [OUT_FILE]" in usage


@dataclass
class Several:
    """Takes a list of things."""

    things: list[str]
    """Which."""
    force: bool = False
    """Whether."""
    out: str = ""
    """Where to."""


@pytest.mark.parametrize(
    "argv",
    [
        ["a b", "[c", "--out", "x", "--force"],
        ["--force", "a b", "[c", "--out=x"],
        ["--out", "x", "a b", "--force", "[c"],
        ["--things", '["a b", "[c"]', "--force", "true", "--out", "x"],
    ],
)
def test_a_positional_list_takes_what_stands_alone(argv):
    options = command_line.parse(Several, argv, prog="p", positional="things")
    assert options == Several(["a b", "[c"], True, "x")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("serve --env {env} --port 65536", "port is 65536: it must be from 0 to 65535"),
        ("webshop-site --port 70000", "port is 70000"),
        ("eval --env {env} --agent random --out {out} --workers 0", "workers is 0"),
        ("eval --env {env} --agent random --out {out} --seed -1", "seed is -1"),
        ("eval --env {env} --agent random --out {out} --max-failures 0", "max_failures is 0"),
        ("eval --env {env} --agent random --out {out} --shots -1", "shots is -1"),
        ("collect --env {env} --out {out} --workers 0", "workers is 0"),
        ("replay --limit 0 {out}", "limit is 0"),
        ("alfworld-export --out {out} --limit 0", "limit is 0"),
        ("wikipedia-corpus {out} --out {out} --limit 0", "limit is 0"),
        ("mind2web-ranks {out} --out {out} --top-k 0", "top_k is 0"),
        ("bench envs --repeats 0", "repeats is 0"),
        ("train --config demo --output {out} --seed -1", "seed is -1"),
        ("train --config demo --output {out} --checkpoint-seconds -1", "checkpoint_seconds is -1"),
        ("train --config demo --output {out} --policy.tiny.heads 0", "policy.tiny.heads is 0"),
        ("train --config demo --output {out} --policy.device cudaa", "the device 'cudaa' cannot"),
        ("train --config demo --output {out} --policy.device cuda:99", "CUDA_VISIBLE_DEVICES=99"),
        ("sweep --config reproduction --output {out} --workers 0", "workers is 0"),
        ("pretrain --config nano --output {out} --threads -1", "threads is -1"),
        ("pretrain --config nano --output {out} --shape.layers 0", "layers is 0"),
        ("pretrain --config nano --output {out} --optimiser.batch-size 0", "batch_size is 0"),
    ],
)
def test_numbers_and_devices_out_of_range(command, message, tmp_path, capsys):
    out = tmp_path / "out"
    line = command.format(env="stepagent/HotpotQA-v0", out=out)
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists(), "nothing is written"
