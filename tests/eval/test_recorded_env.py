"""A foreign results file runs no code, and sends nothing."""

import json
from dataclasses import replace

import pytest

from stepagent.envs import trajectory as files
from stepagent.eval import replay, view
from tests.eval.example_results import episode

MODULE = """
from pathlib import Path
import stepagent
from stepagent.envs.mind2web.rank import Ranker
Path({path!r}).touch()
class Hostile(Ranker):
    pass
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Writes a results file; returns its path and whether the planted module was imported."""
    imported = tmp_path / "imported"
    for name in ("planted.py", "planted-too.py"):
        (tmp_path / name).write_text(MODULE.format(path=str(imported)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STEPAGENT_TOKEN", "secret")

    def write(env, **arguments):
        recorded = episode("bridge/01699", 1.0)
        fingerprint = {**recorded.fingerprint, "arguments": json.dumps(arguments)}
        path = tmp_path / "results.jsonl"
        files.write(path, [replace(recorded, env=env, split="test", fingerprint=fingerprint)])
        return path, imported

    return write


COMMANDS = [
    lambda path: replay.main([str(path)]),
    lambda path: view.main([str(path), "--expert", "play", "--out", f"{path}.html"]),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("env", "arguments", "says"),
    [
        ("planted:nowhere/Planted-v0", {}, "add --modules planted"),
        ("nowhere/Planted-v0", {}, "no environment 'nowhere/Planted-v0' is registered"),
        ("stepagent/Mind2Web-v0", {"ranker": "planted:Hostile"}, "names code"),
        ("stepagent/Mind2Web-v0", {"ranker_args": {"x": ["planted:Hostile"]}}, "names code"),
        ("stepagent/Mind2Web-v0", {"ranker": "planted:"}, "names code"),
        ("stepagent/Mind2Web-v0", {"ranker": "planted:Hostile\n"}, "names code"),
        ("stepagent/Mind2Web-v0", {"ranker": "planted-too:Hostile"}, "names code"),
        ("stepagent/Mind2Web-v0", {"data": "//192.0.2.1/share"}, "names an address"),
        ("stepagent/Mind2Web-v0", {"data": r"\\192.0.2.1\share"}, "names an address"),
        ("stepagent/HotpotQA-v0", {"corpus": "live:http://192.0.2.1/api.php"}, "names an address"),
    ],
)
def test_a_results_file_imports_no_module(hostile, capsys, command, env, arguments, says):
    path, imported = hostile(env, **arguments)
    assert command(path) == 2
    assert says in capsys.readouterr().err
    assert not imported.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recorded_server_is_sent_nothing(hostile, command, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    path, _ = hostile("stepagent/HotpotQA-v0", url="http://192.0.2.1:1", token="t")
    assert command(path) in (0, 1), "the environment here is made instead"


def test_a_module_that_the_user_names_is_imported(hostile, capsys):
    path, imported = hostile("planted:nowhere/Planted-v0")
    assert replay.main([str(path), "--modules", '["planted"]']) == 2
    assert imported.exists()
    assert "no environment 'nowhere/Planted-v0' is registered" in capsys.readouterr().err
