"""Sweeps: what they run, that they resume, and what they report."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil
import pytest
import yaml

from stepagent import command_line
from stepagent.agents import nano
from stepagent.training import methods, run
from stepagent.training.config import Config
from stepagent.training.methods import METHODS, VARIANTS
from stepagent.training.runs.options import differing
from stepagent.training.sweep import (
    command,
    execution,
    inheritance,
    job,
    paper,
    planning,
    report,
    statistics,
)
from tests.envs import guess  # noqa: F401  (registers the environment)
from tests.training.toys import CONFIGS, GUESS, SWEEPS


def _sweep(tmp_path, **changes):
    policy = {
        "model": "tiny",
        "max_new_tokens": 4,
        "device": "cpu",
        "tiny": {
            "hidden_size": 32,
            "layers": 1,
            "heads": 2,
            "vocabulary": 300,
            "context": 256,
        },
    }
    settings = {
        "output": str(tmp_path / "sweep"),
        "seeds": [0, 1],
        "threads": 1,
        "common": {
            "prompt": {"instruction": False, "example": False, "thoughts": False},
            "sft": {"learning_rate": 3e-3, "batch_size": 8, "epochs": 1},
            "expert": {"limit": 6},
            "evaluation": {"limit": 2},
            "reflection": {"learning_rate": 1e-3},
        },
        "environments": {"Guess": {"env": GUESS}},
        "models": {"tiny": {"policy": policy}},
        "methods": {"implicit": {"reflection": {"practice": 2}}},
        "experiments": [
            {
                "name": "Table 2",
                "methods": ["sft", "implicit"],
                "environments": ["Guess"],
                "models": ["tiny"],
                "vary": {"reflection.iterations": [1]},
            },
        ],
        **changes,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _read(path) -> planning.Sweep:
    return command_line.parse(planning.Sweep, ["--config", str(path)], prog="test")


def test_a_sweep_runs_resumes_and_reports(tmp_path, capsys):
    path = _sweep(tmp_path, seeds=[0])
    assert command.main(["--config", str(path)]) == 0
    out = tmp_path / "sweep"
    results = json.loads((out / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in results] == [("sft", 0), ("implicit", 0)]
    assert all(0 <= r["final"] <= 100 for r in results)
    assert set(results[1]["scores"]) == {"sft", "iteration-1"}
    text = (out / "report.md").read_text()
    assert "2 of 2 runs are done" in text
    assert "StepAgent-Implicit" in text
    assert list((out / "plots").glob("*.png"))
    runs = sorted((out / "runs").iterdir())
    inherited = next(r for r in runs if "implicit" in r.name)
    stages = {
        json.loads(line)["stage"] for line in (inherited / "metrics.jsonl").read_text().splitlines()
    }
    assert stages == {"iteration-1"}, "SFT is trained once for both"
    before = {p: p.stat().st_mtime_ns for r in runs for p in r.rglob("*.safetensors")}
    (inherited / "summary.json").unlink()  # as if it had been killed at its end
    assert command.main(["--config", str(path)]) == 0
    assert {p for p, t in before.items() if p.stat().st_mtime_ns != t} <= {
        inherited / "final" / "model.safetensors"
    }
    capsys.readouterr()


def test_runs_that_are_only_being_set_up_lend_no_sft(tmp_path):
    sweep = _read(_sweep(tmp_path, seeds=[0]))
    implicit = next(r for r in planning.all_runs(sweep) if r.method == "implicit")
    for name in ("other", "third.partial"):  # no config.yaml yet; copied half
        folder = tmp_path / "sweep/runs" / name
        folder.mkdir(parents=True)
        (folder / "stages.json").write_text('{"done": ["sft"], "figures": {}, "seconds": 0}')
    config = execution.configuration(implicit, tmp_path / "sweep")
    inheritance.inherit_sft(config, tmp_path / "sweep")
    assert not Path(config.output).exists()


def _sft_done(sweep, tmp_path):
    """The configurations of a run that is past its SFT, and of one that has the same."""
    first, second = (
        execution.configuration(r, tmp_path / "sweep") for r in planning.all_runs(sweep)
    )
    source = Path(first.output)
    (source / "policies/sft").mkdir(parents=True)
    (source / "config.yaml").write_text(command_line.dump(first))
    (source / "stages.json").write_text('{"done": ["sft"], "figures": {}, "seconds": 0}')
    return source, second


@pytest.mark.parametrize("digest", ["aaaa", "bbbb"])
def test_an_sft_of_another_nano_is_not_inherited(tmp_path, monkeypatch, digest):
    sweep = _read(_sweep(tmp_path, seeds=[0], models={"tiny": {"policy": {"model": "nano"}}}))
    source, config = _sft_done(sweep, tmp_path)
    monkeypatch.setattr(nano, "digest", lambda: "bbbb")
    origin = json.dumps({"model": "nano", "digest": digest})
    (source / "origin.json").write_text(origin)
    inheritance.inherit_sft(config, tmp_path / "sweep")
    copied = Path(config.output) / "origin.json"
    assert copied.exists() == (digest == "bbbb")
    if copied.exists():
        assert copied.read_text() == origin


def test_what_the_other_run_is_just_writing_is_not_inherited(tmp_path):
    source, config = _sft_done(_read(_sweep(tmp_path, seeds=[0])), tmp_path)
    for name in ("eval/sft/summary.json", "expert-dev/trajectories.jsonl"):
        for suffix in ("", ".partial", ".old"):
            file = source / f"{name}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    inheritance.inherit_sft(config, tmp_path / "sweep")
    copied = {path.name for path in Path(config.output).rglob("*") if path.is_file()}
    assert {"summary.json", "trajectories.jsonl"} <= copied
    assert not [name for name in copied if name.endswith((".partial", ".old"))]


def test_an_inherited_sft_is_what_the_run_itself_would_have_made(tmp_path):
    from safetensors.torch import load_file

    shared = _sweep(tmp_path, seeds=[0])
    (tmp_path / "own").mkdir()
    assert command.main(["--config", str(shared)]) == 0
    alone = _sweep(tmp_path / "own", seeds=[0], share_sft=False)
    sweep = _read(alone)
    implicit = next(r for r in planning.all_runs(sweep) if r.method == "implicit")
    sweep.experiments[0]["methods"] = ["implicit"]
    assert execution.run_all(sweep, report_console()) == []
    name = f"runs/{implicit.name}/final/model.safetensors"
    one, two = load_file(tmp_path / "sweep" / name), load_file(tmp_path / "own" / "sweep" / name)
    assert all((one[k] == two[k]).all() for k in one)


def report_console():
    from rich.console import Console

    return Console(quiet=True)


def test_an_sft_of_before_an_option_existed_is_inherited(tmp_path):
    sweep = _read(_sweep(tmp_path, seeds=[0]))
    first, second = (
        execution.configuration(r, tmp_path / "sweep") for r in planning.all_runs(sweep)
    )
    run.run(first)
    file = Path(first.output) / "config.yaml"
    options = yaml.safe_load(file.read_text())
    del options["sft"]["assistant_only_loss"]
    file.write_text(yaml.safe_dump(options))
    inheritance.inherit_sft(second, tmp_path / "sweep")
    assert (Path(second.output) / "policies/sft").is_dir()


def test_a_stopped_sweep_stops_its_runs_and_resumes_another_time(tmp_path):
    path = _sweep(tmp_path, workers=2)
    arguments = [sys.executable, "-m", "training.sweep", "--config", str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        logs = tmp_path / "sweep" / "logs"
        while len(children := psutil.Process(process.pid).children()) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 130
    assert b"the same command continues" in errors
    assert b"failed" not in out
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
    assert len(list(logs.glob("*.log"))) == 2, "no run is started any more"
    assert command.main(["--config", str(path)]) == 0


def test_an_interrupted_sweep_leaves_a_checkpoint_of_every_run(tmp_path):
    """Ctrl-C in a terminal reaches the runs twice: as such, and as the sweep's SIGTERM."""
    path = _sweep(tmp_path, workers=2)
    settings = yaml.safe_load(path.read_text())
    settings["common"] |= {"checkpoint_seconds": 3600}
    settings["common"]["sft"]["epochs"] = 2000
    path.write_text(yaml.safe_dump(settings))
    arguments = [sys.executable, "-m", "training.sweep", "--config", str(path)]
    runs = tmp_path / "sweep/runs"
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        while len(list(runs.glob("*/metrics.jsonl"))) < 2:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 130
    assert b"write their checkpoints" in out
    assert b"the same command continues" in errors
    assert len(list(runs.glob("*/checkpoints/sft/checkpoint-*/trainer_state.json"))) == 2


def test_configurations_are_read_by_one_thread_alone(tmp_path, monkeypatch):
    """Reading one changes the working directory, which runs inherit."""
    readers = []

    def parse(*args, **kwargs):
        readers.append(threading.current_thread())
        return real(*args, **kwargs)

    def begin(command, **_kwargs):
        folders.append(Path.cwd())
        raise OSError("no process can be sweep")

    real, folders = command_line.parse, []
    monkeypatch.setattr(command_line, "parse", parse)
    monkeypatch.setattr(job.subprocess, "Popen", begin)
    with pytest.raises(OSError, match="no process"):
        execution.run_all(_read(_sweep(tmp_path, workers=4)), report_console())
    assert set(readers) == {threading.main_thread()}
    assert set(folders) == {Path.cwd()}


def test_runs_are_all_combinations_once(tmp_path):
    sweep = _read(_sweep(tmp_path))
    sweep.experiments.append({**sweep.experiments[0], "name": "again"})
    runs = planning.all_runs(sweep)
    assert len(runs) == 4
    assert [(r.options["method"], r.seed) for r in runs] == [
        ("sft", 0),
        ("implicit", 0),
        ("sft", 1),
        ("implicit", 1),
    ]
    assert len({r.name for r in runs}) == 4
    implicit = runs[1].options
    assert implicit["reflection"] == {"learning_rate": 1e-3, "practice": 2, "iterations": 1}
    assert implicit["seed"] == 0


def test_runs_come_by_experiment_and_seed_and_each_behind_what_it_needs(tmp_path):
    sweep = _read(_sweep(tmp_path))
    sweep.experiments[0] |= {"methods": ["implicit", "sft-matched-implicit", "sft"], "vary": {}}
    sweep.experiments.append({**sweep.experiments[0], "name": "more", "methods": ["eto", "sft"]})
    order = [(r.method, r.seed) for r in planning.all_runs(sweep)]
    of_seed = ("sft", "implicit", "sft-matched-implicit")
    assert order == [*((m, s) for s in (0, 1) for m in of_seed), ("eto", 0), ("eto", 1)]


def test_a_variant_is_its_method_with_other_options(tmp_path):
    sweep = _read(_sweep(tmp_path))
    sweep.experiments[0]["methods"] = ["implicit", "anchor-only"]
    sweep.seeds = [0]
    plain, anchor = (run.options for run in planning.all_runs(sweep))
    assert anchor["method"] == "implicit"
    assert anchor["reflection"] == {
        **plain["reflection"],
        "preference_weight": 0.0,
        "sft_weight": 1.0,
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_the_options_of_a_variant_exist(name, tmp_path):
    path = tmp_path / "variant.yaml"
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "run"), **VARIANTS[name]}))
    config = command_line.parse(Config, ["--config", str(path)], prog="test")
    methods.find(config.method).check(config)


def test_a_run_of_two_experiments_is_made_once(tmp_path):
    path = _sweep(tmp_path, seeds=[0], methods={"same": {"method": "inverse"}})
    sweep = _read(path)
    sweep.experiments = [
        {**sweep.experiments[0], "name": "Table 2", "methods": ["inverse"], "vary": {}},
        {
            **sweep.experiments[0],
            "name": "Table 3",
            "kind": "rewards",
            "methods": ["same"],
            "vary": {"inverse.reward": ["step", "final"]},
        },
    ]
    runs = planning.all_runs(sweep)
    assert [r.options.get("inverse") for r in runs] == [None, {"reward": "final"}]
    _pretend(sweep)
    report.write(sweep)
    rows = json.loads((tmp_path / "sweep/results.json").read_text())
    assert [row["run"] for row in rows] == [runs[0].name, runs[0].name, runs[1].name]
    assert all(row["final"] for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environments": {"Other": {}}}, "no 'Guess' under environments: there are Other"),
        ({"experiments": [{"name": "x", "method": []}]}, "methods"),
        ({"experiments": [{"name": "x"}]}, "missing"),
        ({"baseline": "sft-bst"}, "its baseline 'sft-bst' is no row: there are sft, implicit"),
        (
            {"kind": "models", "models": ["tiny"] * 2},
            "models is ['tiny', 'tiny']: one that is there twice",
        ),
        ({"kind": "models"}, "kind 'models' compares models: name two or more"),
        ({"kind": "practice"}, "reported over reflection.practice: name its values under `vary`"),
        (
            {"vary": {"reflection.practice": 3}},
            "vary.reflection.practice is 3, which must be",
        ),
        ({"vary": {"reflection.practice": []}}, "which must be a list of one or more"),
        ({"kind": "rewards"}, "reported over inverse.reward: name its values under `vary`"),
    ],
)
def test_what_is_wrong_is_said_at_once(tmp_path, change, message, capsys):
    if change.keys() & {"baseline", "kind", "vary"}:
        table = {"methods": ["sft", "implicit"], "environments": ["Guess"], "models": ["tiny"]}
        change = {"experiments": [{"name": "x", **table, **change}]}
    assert command.main(["--config", str(_sweep(tmp_path, **change))]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "runs").exists()


def test_a_baseline_is_a_method_or_a_row_with_what_is_varied(tmp_path):
    sweep = _read(_sweep(tmp_path))
    table = {**sweep.experiments[0], "methods": ["implicit", "sft-matched-implicit"]}
    table["vary"] = {"reflection.beta": [0.1, 0.2]}
    for name in ("implicit", "implicit beta=0.2", "sft-matched-implicit beta=0.1"):
        sweep.experiments = [{**table, "baseline": name}]
        [experiment] = planning.experiments(sweep)
        results = [report.read(run_, tmp_path) for run_ in planning.runs(sweep, experiment)]
        [setting] = report.as_data(experiment, results)["settings"]
        assert setting["baseline"] == {"implicit": "implicit beta=0.1"}.get(name, name)


def test_options_of_the_command_line_come_before_those_that_the_directory_holds(
    tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr(execution, "run_all", lambda sweep, console: seen.append(sweep) or [])
    settings = {"hours": 5.0, "workers": 1, "slurm": {"partition": "gpu", "mem_gb": 8}}
    assert command.main(["--config", str(_sweep(tmp_path, **settings))]) == 0
    moved = (tmp_path / "sweep").rename(tmp_path / "moved")
    words = ["--output", str(moved), "--hours", "1", "--workers=8", "--slurm.mem-gb", "64"]
    assert command.main(words) == 0
    first, second = seen
    assert (second.hours, second.workers, second.output) == (1.0, 8, str(moved))
    assert second.slurm == {"partition": "gpu", "mem_gb": 64}
    assert (second.experiments, second.threads) == (first.experiments, first.threads)


def test_a_value_with_a_slash_gives_the_name_of_a_file(tmp_path):
    sweep = _read(_sweep(tmp_path, seeds=[0]))
    sweep.experiments[0] |= {"vary": {"policy.model": ["org/a"]}, "methods": ["implicit"]}
    [run_] = planning.all_runs(sweep)
    assert run_.name == f"Guess-tiny-implicit-model=org-a-seed0-{run_.digest}"
    assert run_.directory(tmp_path) == tmp_path / "runs" / run_.name
    assert run_.row == "implicit model=org/a"


def test_a_configuration_is_written_whole_and_only_where_it_changes(tmp_path, monkeypatch):
    sweep = _read(_sweep(tmp_path, seeds=[0]))
    run_, written = planning.all_runs(sweep)[0], []
    write = execution.write_text
    monkeypatch.setattr(
        execution, "write_text", lambda path, text: written.append(path) or write(path, text)
    )
    first = execution.configuration(run_, tmp_path)
    assert execution.configuration(run_, tmp_path) == first
    assert written == [execution.config_file(run_, tmp_path)]


def test_an_option_that_does_not_exist_is_said_before_the_first_run(tmp_path, capsys):
    path = _sweep(tmp_path, common={"reflektion": {"beta": 0.1}})
    with pytest.raises(SystemExit):
        command.main(["--config", str(path)])
    assert "unknown key 'reflektion.beta'" in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "runs").exists()


def test_intervals():
    # 50, 52, 54: deviation 2, t(2) = 4.303: 4.303 · 2 / √3 = 4.97
    estimate = statistics.estimate([50.0, 52.0, 54.0])
    assert estimate is not None
    assert (estimate.mean, estimate.values) == (52.0, (50.0, 52.0, 54.0))
    assert estimate.half_width == pytest.approx(4.969, abs=1e-3)
    one = statistics.estimate([50.0])
    assert one is not None
    assert math.isnan(one.half_width)
    assert str(one) == "50.0 (n=1)"
    assert statistics.estimate([]) is None


def test_the_papers_figures_are_marked_as_its_own(tmp_path):
    env = "stepagent/ScienceWorld-v0"
    assert paper.table2("inverse", env) == {"Mistral-7B": 59.7, "Llama-3-8B": 64.1}
    assert paper.table3("both", env) == 64.8
    assert paper.table2("inverse", "tests/Guess-v0") == {}
    sweep = _read(_sweep(tmp_path, environments={"Guess": {"env": env}}))
    sweep.experiments += [
        {**sweep.experiments[0], "name": n, "kind": k, "methods": ["inverse"], "vary": v}
        for n, k, v in (
            ("Table 3", "rewards", {"inverse.reward": ["step", "final"]}),
            ("Figure 4a", "iterations", {"reflection.iterations": [3]}),
            ("Figure 4b", "practice", {"reflection.practice": [1, 2]}),
        )
    ]
    _pretend(sweep)
    text = report.write(sweep).read_text()
    assert "**Paper:** Mistral-7B" in text
    assert "59.6" in text, "the paper's implicit on ScienceWorld"
    assert "| step | 41.0 (n=2: 40.0, 42.0) | 5.5 (n=2: 5.0, 6.0) | 64.1 |" in text
    assert "| 0 | 1 | 2 | **Paper:** best iteration" in text
    assert "| StepAgent-Inverse, gain |  | 4.5 (n=2: 4.0, 5.0) | 5.5 (n=2: 5.0, 6.0) |  |" in text
    assert "best iteration (WebShop) |" in text
    links = re.findall(r"!\[.*\]\((\S+)\)", text)
    assert len(links) == len(set(links)) == 4
    assert all((tmp_path / "sweep" / link).is_file() for link in links)


def test_gains_count_from_the_sft_that_a_run_began_with(tmp_path):
    sweep = _read(_sweep(tmp_path, methods={"sft-longer": {"method": "sft", "sft": {"epochs": 2}}}))
    sweep.experiments[0] |= {"methods": ["sft", "sft-longer", "implicit"], "vary": {}}
    _pretend(sweep, {"sft-longer": 0.6})
    lines = report.write(sweep).read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    shown = {row[1]: row[2:4] for row in cells}
    assert shown["SFT"] == ["35.5 (n=2: 35.0, 36.0)", ""]
    assert shown["SFT, longer"] == ["60.0 (n=2: 60.0, 60.0)", "24.5 (n=2: 25.0, 24.0)"]
    assert shown["StepAgent-Implicit"] == ["41.0 (n=2: 40.0, 42.0)", "5.5 (n=2: 5.0, 6.0)"]


def _pretend(sweep: planning.Sweep, sft_scores: Mapping[str, float] = MappingProxyType({})) -> None:
    """Summaries of all runs, as training.run writes them."""
    for run_ in planning.all_runs(sweep):
        path = Path(sweep.output) / "runs" / run_.name / "summary.json"
        path.parent.mkdir(parents=True)
        score = 0.4 + 0.02 * run_.seed
        stages = {"sft": sft_scores.get(run_.method, 0.35 + 0.01 * run_.seed)}
        if run_.options["method"] != "sft":
            stages |= {"iteration-1": score - 0.01, "iteration-2": score}
        path.write_text(
            json.dumps(
                {
                    "scores": {k: {"reward_mean": v} for k, v in stages.items()},
                    "figures": {k: {} for k in stages},
                    "seconds": 60,
                }
            )
        )


def test_the_reproduction_is_a_sweep_of_all_nine_methods():
    sweep = command_line.parse(
        planning.Sweep, ["--config", str(CONFIGS / "reproduction.yaml")], prog="python -m test"
    )
    runs = planning.all_runs(sweep)
    assert {r.options["method"] for r in runs} == set(METHODS)
    assert {r.seed for r in runs} == {0, 1, 2}
    assert {e.kind for e in planning.experiments(sweep)} == {*planning.KINDS} - {"models"}


def options_of(sweep, row, tmp_path):
    """The options of a row's first run in a sweep."""
    planned = command_line.parse(planning.Sweep, ["--config", str(CONFIGS / sweep)], prog="test")
    measured = next(r for r in planning.all_runs(planned) if r.method == row)
    return command_line.dump(execution.configuration(measured, tmp_path))


def changes_of(name, sweep, row, tmp_path):
    """Options of a run's configuration that are not those of a row of a sweep."""
    alone = command_line.parse(Config, ["--config", str(CONFIGS / f"{name}.yaml")], prog="test")
    return differing(options_of(sweep, row, tmp_path), command_line.dump(alone))


@pytest.mark.parametrize("method", METHODS)
def test_laptop_configurations_have_the_settings_that_methods_check_found(method, tmp_path):
    row = method if method in ("implicit", "inverse") else "sft"
    changes = changes_of(f"{method}-laptop", "methods-check.yaml", row, tmp_path)
    sections = ("sft.",) if row == "sft" else ("sft.", "reflection.", "ppo.", "inverse.")
    changed = {name for name in changes if name.startswith(sections)}
    assert changed <= {"reflection.iterations"}  # two, where methods-check has one


def test_implicit_successes_is_the_run_that_was_measured(tmp_path):
    measured = "implicit-successes-25"
    assert not changes_of("implicit-successes", "own-successes.yaml", measured, tmp_path)
    changed = changes_of("demo", "own-successes.yaml", measured, tmp_path)
    assert changed.keys() == {"reflection.iterations"}  # two, where the sweep has three


@pytest.mark.parametrize(
    "row", ["sft-25", "rft-sound", "implicit-successes-25", "anchor-successes-25"]
)
def test_other_labels_has_the_settings_of_own_successes(row, tmp_path):
    first, second = (
        options_of(f"{sweep}.yaml", row, tmp_path) for sweep in ("own-successes", "other-labels")
    )
    changed = differing(first, second).keys() - {"output", "seed"}
    plan = {"sft.epochs"} if row == "rft-sound" else set()  # it goes by tokens
    assert changed == {"expert.draw", *plan}


@pytest.mark.parametrize("row", ["implicit-successes", "anchor-successes"])
def test_the_second_set_of_tasks_has_the_settings_of_the_first(row, tmp_path):
    first, second = (
        options_of(sweep, name, tmp_path)
        for sweep, name in (("own-successes.yaml", f"{row}-25"), ("thermometer.yaml", row))
    )
    changed = differing(first, second)
    assert changed.keys() == {"env_args.tasks", "rollouts.unlabelled"}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"implicit", "inverse"}))
def test_the_other_laptop_configurations_are_those_of_the_reproduction(method, tmp_path):
    changes = changes_of(f"{method}-laptop", "reproduction.yaml", method, tmp_path)
    unused = {"preference.iterations", "preference.later_learning_rate"} if method == "dpo" else ()
    assert set(changes) <= {"sft.learning_rate", *unused}


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_of_a_sweep_can_work(name, tmp_path, monkeypatch):
    monkeypatch.setattr(nano, "origin", lambda model: {})  # with or without it
    sweep = command_line.parse(
        planning.Sweep, ["--config", str(CONFIGS / f"{name}.yaml")], prog="test"
    )
    sweep.seeds = sweep.seeds[:1]  # the others differ in nothing else
    sweep.experiments = [{**row, "seeds": []} for row in sweep.experiments]
    for run_ in planning.all_runs(sweep):
        execution.checked(run_, tmp_path)
