import json
import pickle

import numpy as np
import pytest

from stepagent.envs.mind2web import convert


def test_ranks_become_lists(tmp_path, capsys):
    scores = {"a_b": {"1": np.float32(0.5), "2": 0.7}}
    ranks = {"a_b": {"1": 1, "2": 0, "3": 2}, "c_d": {"7": np.int64(0)}}
    source, out = tmp_path / "scores.pkl", tmp_path / "out" / "ranks.json"
    for protocol in (2, 4, 5):
        source.write_bytes(pickle.dumps({"scores": scores, "ranks": ranks}, protocol))
        assert convert.main([str(source), str(out), "--top-k", "2"]) == 0
        assert json.loads(out.read_text()) == {"a_b": ["2", "1"], "c_d": ["7"]}
    assert "2 steps" in capsys.readouterr().out
    assert [path.name for path in out.parent.iterdir()] == ["ranks.json"]


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["eval", "open", "getattr", "exec", "__import__"])
def test_every_global_is_refused(tmp_path, capsys, name, protocol):
    touched = tmp_path / "touched"
    hostile = Hostile(__builtins__[name], f"open({str(touched)!r}, 'w')")
    source, out = tmp_path / "scores.pkl", tmp_path / "ranks.json"
    source.write_bytes(pickle.dumps({"scores": hostile, "ranks": {}}, protocol))
    assert convert.main([str(source), str(out)]) == 2
    assert f".{name}" in capsys.readouterr().err
    assert not touched.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps([1]),
        pickle.dumps({"scores": {}}),
        pickle.dumps({"ranks": {"a": 3}}),
        pickle.dumps({"ranks": {"a": {"1": "first"}}}),
        pickle.dumps({"ranks": {"a": {"1": np.array([1])}}}),
        pickle.dumps({"ranks": {"a": {"1": np.datetime64("2020-01-01")}}}),
        pickle.dumps({"ranks": Hostile(np.load, "x")}),
    ],
)
def test_other_files_are_clear_errors(tmp_path, capsys, data):
    source = tmp_path / "scores.pkl"
    source.write_bytes(data)
    assert convert.main([str(source), str(tmp_path / "out.json")]) == 2
    assert "scores.pkl" in capsys.readouterr().err
    assert convert.main([str(tmp_path / "absent.pkl"), "x.json"]) == 2
    assert "does not exist" in capsys.readouterr().err
