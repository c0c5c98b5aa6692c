"""Finished runs that go from one sweep's directory to another's."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from stepagent.training.runs.budget import Budget
from stepagent.training.sweep import command, execution, planning, records, report
from stepagent.training.sweep.planning import Sweep, SweepError
from stepagent.training.sweep.results import FAILED, read
from tests.training.sweep.test_report import _by_method, _finish
from tests.training.sweep.test_sweep import _read, _sweep


@pytest.fixture
def done(tmp_path) -> Sweep:
    """Both seeds of sft, and seed 0 of implicit, are done."""
    sweep = _read(_sweep(tmp_path))
    for (method, seed), run in _by_method(sweep).items():
        if (method, seed) != ("implicit", 1):
            gain = 0.25 * (method == "implicit")
            scores = {"a": 0.5 + gain, "b": 1 / 3}
            _finish(sweep, run, scores, {"x": "yn", "y": "ynn"}, Budget(tokens=7, updates=2))
    records.write(sweep)
    return sweep


def _elsewhere(sweep: Sweep, tmp_path: Path, **changes) -> Sweep:
    known = [str(_finished(sweep))]
    return replace(sweep, **{"output": str(tmp_path / "other"), "known": known, **changes})


def _finished(sweep: Sweep) -> Path:
    return Path(sweep.output) / records.FINISHED


def test_a_sweep_elsewhere_reports_what_it_knows_as_its_own(done, tmp_path):
    other = _elsewhere(done, tmp_path)
    assert len(records.adopt(other)) == 3
    assert records.adopt(other) == []
    records.write(other)
    assert _finished(other).read_text() == _finished(done).read_text()
    figures = []
    for sweep in (done, other):
        report.write(sweep)
        figures.append(Path(sweep.output, "report.json").read_text())
    assert figures[0] == figures[1]
    rows = json.loads(figures[1])["experiments"][0]["settings"][0]["rows"]
    (implicit,) = [row for row in rows if row["method"] == "implicit"]
    assert implicit["gain"]["by_seed"] == [pytest.approx(12.5)]
    assert implicit["missing_seeds"] == [1]


def test_what_was_measured_on_dev_goes_along(done, tmp_path):
    run = planning.all_runs(done)[0]
    path = run.directory(Path(done.output)) / "summary.json"
    summary = json.loads(path.read_text())
    dev = {"dev_step_match": 0.75, "dev_loss": 1.5, "dev_draw": 1.0}
    summary["figures"]["sft"] = {**dev, "passes": 3.0}
    path.write_text(json.dumps(summary))
    records.write(done)
    other = _elsewhere(done, tmp_path)
    records.adopt(other)
    assert read(run, Path(other.output)).dev == dev


def test_only_what_is_not_known_is_done_and_the_file_is_not_needed_again(done, tmp_path, capsys):
    path, known = tmp_path / "other.yaml", tmp_path / "known.jsonl"
    path.write_text((tmp_path / "sweep.yaml").read_text().replace(done.output, str(tmp_path / "o")))
    shutil.copy(_finished(done), known)
    assert command.main(["--config", str(path), "--known", str(known)]) == 0
    printed = capsys.readouterr().out
    assert "3 runs are known" in printed
    assert printed.count(" …") == 1  # one was started
    (started,) = [p.parent for p in (tmp_path / "o/runs").glob("*/config.yaml")]
    assert "implicit" in started.name
    assert "seed1" in started.name
    known.unlink()
    assert command.main(["--output", str(tmp_path / "o")]) == 0
    assert len((tmp_path / "o" / records.FINISHED).read_text().splitlines()) == 4


def test_lines_stay_when_folders_go(done):
    before = _finished(done).read_text()
    shutil.rmtree(Path(done.output) / "runs")
    with _finished(done).open("a") as file:
        file.write("half a li")
    records.write(done)
    assert _finished(done).read_text() == before


def test_a_stopped_sweep_has_its_lines(done, monkeypatch):
    _finished(done).unlink()
    monkeypatch.setattr(
        execution, "run_all", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        command.run(done)
    assert len(_finished(done).read_text().splitlines()) == 3


def test_a_matched_run_that_is_known_does_not_wait_for_its_partner(done, tmp_path, monkeypatch):
    """The partner is no row itself; its line is there, too, but lost on the way."""
    table = {**done.experiments[0], "methods": ["sft", "sft-matched-implicit"], "vary": {}}
    sweep = replace(done, experiments=[table], seeds=[0], output=str(tmp_path / "matched"))
    runs = {run.method: run for run in planning.all_runs(sweep)}
    for run in runs.values():
        _finish(sweep, run, {"a": 0.5})
    records.write(sweep)
    lines = _finished(sweep).read_text().splitlines()
    assert {json.loads(line)["digest"] for line in lines} == {run.digest for run in runs.values()}
    kept = [line for line in lines if json.loads(line)["digest"] != runs["implicit"].digest]
    _finished(sweep).write_text("\n".join(kept))
    other = _elsewhere(sweep, tmp_path)
    assert len(records.adopt(other)) == 2
    started = []
    monkeypatch.setattr(
        execution.Queue,
        "run",
        lambda self, entries: (
            started.extend(entries) or {e.job.name: e.job.is_done for e in entries}
        ),
    )
    assert execution.run_all(other, Console(quiet=True)) == [runs["implicit"].name]
    assert runs["sft-matched-implicit"].name in [entry.job.name for entry in started]


@pytest.mark.parametrize("begun", ["config.yaml", "stages.json", ""])
def test_a_run_that_has_begun_here_goes_on_here(done, tmp_path, begun):
    other = _elsewhere(done, tmp_path)
    run = planning.all_runs(other)[0]
    folder = run.directory(Path(other.output))
    folder.mkdir(parents=True)
    if begun:
        (folder / begun).write_text("{}")
        failed = Path(other.output) / "logs" / f"{run.name}{FAILED}"
        failed.parent.mkdir()
        failed.write_text("out of memory")
    assert run.name not in records.adopt(other)
    assert [p.name for p in folder.iterdir()] == [begun] * bool(begun)
    assert read(run, Path(other.output)).final is None


def test_a_run_of_other_options_is_not_known(done, tmp_path):
    common = planning.merged(done.common, {"sft": {"epochs": 2}})
    assert records.adopt(_elsewhere(done, tmp_path, common=common)) == []


def test_several_sweeps_may_take_them_at_once(done, tmp_path):
    other = _elsewhere(done, tmp_path)
    with ThreadPoolExecutor(4) as threads:
        taken = [name for names in threads.map(records.adopt, [other] * 8) for name in names]
    assert sorted(taken) == sorted(set(taken))
    assert len(taken) == 3
    left = {p.name for p in Path(other.output, "runs").iterdir()}
    assert left == set(taken), "nothing half done is left"


DAMAGED = [
    ("format", 2, "format 2 is not 1"),
    ("tasks", {"../../up": {}}, "with the stages"),
    ("tasks", {"sft": {"a": None}}, "not a number"),
    ("agreement", {"sft": [{"task_id": "x", "losses": [], "matches": []}]}, "not one loss"),
    (
        "agreement",
        {"sft": [{"task_id": "x", "losses": [1e999], "matches": [True]}]},
        "not a number",
    ),
    ("summary", {}, "KeyError"),
    ("summary.scores", {}, "with the stages"),
    ("summary.scores", {"sft": {"reward_mean": "0.5"}}, "not a number"),
    ("summary.scores", {"sft": {"reward_mean": float("nan")}}, "not a number"),
    ("summary.scores", {"other": {"reward_mean": 0.5}}, "with the stages"),
    ("summary.seconds", "60", "not a number"),
    ("summary.seconds", 10**400, "OverflowError"),
    ("summary.figures", {"sft": 3}, "AttributeError"),
    ("summary.figures", {"sft": {"dev_loss": None}}, "TypeError"),
    ("summary.figures", {"sft": {"dev_loss": float("nan")}}, "dev_loss is not finite"),
    ("summary.figures", {"s" * 300: {}}, "is not a stage"),
    ("summary.budget", "x", "AttributeError"),
    ("summary.budget", {"cakes": 3}, "TypeError"),
    ("summary.origin", [1], "AttributeError"),
    ("summary.agreement", [1], "AttributeError"),
]


@pytest.mark.parametrize(("key", "value", "why"), DAMAGED, ids=str)
def test_a_damaged_line_is_named_and_nothing_taken(done, tmp_path, key, value, why):
    lines = map(json.loads, _finished(done).read_text().splitlines())
    digest = _by_method(done)["sft", 1].digest
    line = next(line for line in lines if line["digest"] == digest)
    *sections, name = key.split(".")
    section = line
    for part in sections:
        section = section[part]
    section[name] = value
    _refused(done, tmp_path, json.dumps(line).encode(), why)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff"])
def test_a_line_that_is_none_is_named_and_nothing_taken(done, tmp_path, text):
    _refused(done, tmp_path, text, "is not a run")


def _refused(done, tmp_path, second: bytes, why: str) -> None:
    first = _finished(done).read_text().splitlines()[0].encode()
    bad = tmp_path / "bad"
    bad.write_bytes(first + b"\n" + second + b"\n")
    other = _elsewhere(done, tmp_path, known=[str(_finished(done)), str(bad)])
    with pytest.raises(SweepError, match=r"known: .*bad, line 2, is not a run") as raised:
        records.adopt(other)
    assert why in str(raised.value)
    assert not Path(other.output).exists()


def test_a_file_that_is_missing_is_an_error(done, tmp_path):
    with pytest.raises(SweepError, match="does not exist"):
        records.adopt(_elsewhere(done, tmp_path, known=[str(tmp_path / "none")]))


def test_known_files_may_be_named_in_the_configuration(done, tmp_path):
    settings = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    settings |= {"output": str(tmp_path / "other"), "known": [str(_finished(done))]}
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(settings))
    command.main(["--config", str(tmp_path / "again.yaml"), "--report-only"])
    assert len(list((tmp_path / "other/runs").iterdir())) == 3
