"""The command of the benchmarks, and that every one it names is there."""

import json
from importlib import import_module

import pytest

from stepagent import bench
from stepagent.eval.benches import Options, Row


def measure_nothing(options: Options) -> list[Row]:
    return [Row.more_is_better("thing", float(options.repeats), 3.5, "x/s")]


def test_command_writes_rows_and_names_what_exists(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.BENCHMARKS, "mine", f"{__name__}:measure_nothing")
    out = tmp_path / "a" / "rows.json"
    assert bench.main(["mine", "--out", str(out), "--repeats", "7"]) == 0
    row = {"name": "thing", "ours": 7.0, "baseline": 3.5, "ratio": 2.0, "unit": "x/s"}
    assert json.loads(out.read_text()) == [row]
    assert "2.00" in capsys.readouterr().out
    assert bench.main(["yours"]) == 2
    assert "choose envs, expert" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_can_be_imported(name):
    module, function = bench.BENCHMARKS[name].split(":")
    assert callable(getattr(import_module(module), function))
