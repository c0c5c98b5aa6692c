"""Finished runs that go from one sweep's directory to another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stepagent.training.runs.budget import Budget
from stepagent.training.sweep import command, planning, records, report
from stepagent.training.sweep.planning import Sweep, SweepError
from tests.training.sweep.test_report import _by_method, _finish
from tests.training.sweep.test_sweep import _read, _sweep


def _copy(sweep: Sweep, output: Path) -> Sweep:
    return Sweep(**{**vars(sweep), "output": str(output)})


@pytest.fixture
def done(tmp_path) -> Sweep:
    """Both seeds of sft, and seed 0 of implicit, are done."""
    sweep = _read(_sweep(tmp_path))
    for (method, seed), run in _by_method(sweep).items():
        if (method, seed) != ("implicit", 1):
            gain = 0.25 * (method == "implicit")
            scores = {"a": 0.5 + gain, "b": 1 / 3}
            _finish(sweep, run, scores, {"x": "yn", "y": "ynn"}, Budget(tokens=7, updates=2))
    report.write(sweep)
    return sweep


def _finished(sweep: Sweep) -> Path:
    return Path(sweep.output) / records.FINISHED


def test_a_sweep_elsewhere_reports_what_it_knows_as_its_own(done, tmp_path):
    other = _copy(done, tmp_path / "other")
    taken = records.adopt(planning.all_runs(other), [str(_finished(done))], Path(other.output))
    assert len(taken) == 3
    assert records.adopt(planning.all_runs(other), [str(_finished(done))], Path(other.output)) == []
    report.write(other)
    for name in ("report.json", records.FINISHED):
        first, second = (Path(s.output, name).read_text() for s in (done, other))
        assert first == second.replace(str(tmp_path / "other"), done.output)
    gains = json.loads(Path(other.output, "report.json").read_text())["experiments"][0]
    (implicit,) = [r for r in gains["settings"][0]["rows"] if r["method"] == "implicit"]
    assert implicit["gain"]["by_seed"] == [pytest.approx(12.5)]
    assert implicit["missing_seeds"] == [1]


def test_only_what_is_not_known_is_done(done, tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text((tmp_path / "sweep.yaml").read_text().replace(done.output, str(tmp_path / "o")))
    assert command.main(["--config", str(path), "--known", str(_finished(done))]) == 0
    printed = capsys.readouterr().out
    assert "3 runs are known" in printed
    assert printed.count(" …") == 1  # one was started
    (started,) = [p.parent for p in (tmp_path / "o/runs").glob("*/config.yaml")]
    assert "implicit" in started.name
    assert "seed1" in started.name


def test_a_run_that_is_there_is_left_alone(done, tmp_path):
    other = _copy(done, tmp_path / "other")
    run = planning.all_runs(other)[0]
    folder = run.directory(Path(other.output))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("its own")
    taken = records.adopt([run], [str(_finished(done))], Path(other.output))
    assert taken == []
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]


def test_a_run_of_other_options_is_not_known(done, tmp_path):
    other = _copy(done, tmp_path / "other")
    other.common = planning.merged(other.common, {"sft": {"epochs": 2}})
    assert records.adopt(planning.all_runs(other), [str(_finished(done))], tmp_path / "other") == []


def test_an_unpacking_that_was_killed_is_done_again(done, tmp_path):
    output = tmp_path / "other"
    run = planning.all_runs(done)[0]
    (output / "runs" / f"{run.name}.partial").mkdir(parents=True)
    assert records.adopt([run], [str(_finished(done))], output) == [run.name]
    assert [p.name for p in (output / "runs").iterdir()] == [run.name]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda line: "{", "line 2"),
        (lambda line: "[]", "line 2"),
        (lambda line: json.dumps({**line, "format": 2}), "format 2 is not 1"),
        (lambda line: json.dumps({**line, "tasks": {"../../up": {}}}), "'../../up' is no stage"),
        (lambda line: json.dumps({**line, "summary": {}}), "KeyError"),
        (
            lambda line: json.dumps(
                {**line, "agreement": {"sft": [{"task_id": "x", "losses": [], "matches": []}]}}
            ),
            "0 losses",
        ),
    ],
)
def test_a_damaged_file_is_named_and_nothing_taken(done, tmp_path, change, why):
    first, second, *_ = _finished(done).read_text().splitlines()
    (tmp_path / "bad").write_text(f"{first}\n{change(json.loads(second))}\n")
    with pytest.raises(SweepError, match=r"known: .*bad, line 2") as raised:
        records.adopt(planning.all_runs(done), [str(tmp_path / "bad")], tmp_path / "other")
    assert why in str(raised.value)
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_missing_is_an_error(done, tmp_path):
    shutil.rmtree(Path(done.output) / "runs")
    with pytest.raises(SweepError, match="does not exist"):
        records.adopt(planning.all_runs(done), [str(tmp_path / "none")], Path(done.output))
