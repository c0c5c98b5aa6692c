"""The report's statistics, from runs invented with few enough numbers to check them by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from stepagent import command_line
from stepagent.agents import nano
from stepagent.envs.trajectory import Trajectory, write
from stepagent.eval import agreement
from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.eval.paired import holm
from stepagent.training.runs.budget import Budget
from stepagent.training.sweep import command, execution, job, launchers, planning, report, tables
from stepagent.training.sweep.planning import Sweep, SweepError, SweepRun
from tests.training.sweep.test_sweep import _read, _sweep, report_console


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Seeds 0 and 1 of sft and implicit."""
    result = _read(_sweep(tmp_path))
    result.experiments[0]["vary"] = {}
    return result


def _rows(tasks: dict[str, str]) -> list[TrajectoryAgreement]:
    """Task → a letter per step, `y` where it matches; a loss of 1 where it does not."""
    return [
        TrajectoryAgreement(
            task, tuple(float(m == "n") for m in steps), tuple(m == "y" for m in steps)
        )
        for task, steps in tasks.items()
    ]


def _finish(
    sweep: Sweep,
    run: SweepRun,
    scores: dict[str, float],
    matches: dict[str, str] | None = None,
    budget: Budget | None = None,
) -> None:
    """A run as `training.run` leaves it: task → score, task → matches of the expert's steps."""
    folder = Path(sweep.output) / "runs" / run.name
    stage = "sft" if run.options["method"] == "sft" else "iteration-1"
    episodes = [Trajectory("e", t, "test", "a", 0, (), reward=s) for t, s in scores.items()]
    write(folder / "eval" / stage / "results.jsonl", episodes)
    summary = {
        "scores": {stage: {"reward_mean": sum(scores.values()) / len(scores)}},
        "figures": {stage: {}},
        "seconds": 60,
        "budget": budget and vars(budget),
    }
    if matches:
        agreement.save(folder / "eval" / stage, _rows(matches))
        measured = json.loads((folder / "eval" / stage / agreement.SUMMARY).read_text())
        summary["agreement"] = {stage: measured}
    (folder / "summary.json").write_text(json.dumps(summary))


def _report(sweep: Sweep) -> tuple[dict, str]:
    text = report.write(sweep).read_text()
    data = json.loads((Path(sweep.output) / "report.json").read_text())
    return data["experiments"][0], text


def _by_method(sweep: Sweep) -> dict[tuple[str, int], SweepRun]:
    return {(run.method, run.seed): run for run in planning.all_runs(sweep)}


def test_gains_are_paired_over_seeds_and_tasks(sweep):
    for (method, _), run in _by_method(sweep).items():
        _finish(sweep, run, {"a": float(method == "implicit"), "b": 0.0, "c": 0.5, "d": 0.5})
    experiment, text = _report(sweep)
    sft, implicit = experiment["settings"][0]["rows"]
    assert sft["gain"] is None, "the baseline has none over itself"
    gain = implicit["gain"]
    assert (gain["mean"], gain["by_seed"], gain["tasks"]) == (25.0, [25.0, 25.0], 4)
    # One of four tasks gains 100 points: sqrt(3/16 / 4) = 0.2165 of 100; z 2.80.
    assert gain["error"] == pytest.approx(21.65, abs=0.6)
    assert gain["detectable_holm"] == pytest.approx(2.8016 * gain["error"], abs=1e-3)
    assert "| StepAgent-Implicit | +25.0 [+0.0, +75.0] |" in text
    assert "with 2 seeds, 4 tasks" in text
    assert "-gains.png)" in text
    assert all((Path(sweep.output) / "plots").glob("*gains.png"))


def test_p_values_are_corrected_over_the_rows(sweep):
    sweep.methods |= {"implicit-b": {"method": "implicit", "reflection": {"beta": 0.2}}}
    sweep.experiments[0]["methods"] = ["sft", "implicit", "implicit-b"]
    scores = {"sft": "0000", "implicit": "1110", "implicit-b": "1000"}
    for (method, _), run in _by_method(sweep).items():
        _finish(sweep, run, {str(i): float(s) for i, s in enumerate(scores[method])})
    rows = _report(sweep)[0]["settings"][0]["rows"][1:]
    ps = [row["gain"]["p"] for row in rows]
    assert ps[0] < ps[1]
    assert [row["gain"]["p_holm"] for row in rows] == holm(ps)


def test_gains_are_compared_between_models(sweep):
    small = next(iter(sweep.models))
    sweep.models["large"] = {**sweep.models[small], "prompt": {"suffix": "Think."}}
    sweep.experiments[0] |= {"kind": "models", "models": [small, "large"], "baseline": "sft"}
    for run in planning.all_runs(sweep):
        gained = {("implicit", small): 0.1, ("implicit", "large"): 0.3 + 0.2 * run.seed}
        start = 0.4 if run.model == "large" else 0.2
        score = start + gained.get((run.method, run.model), 0.0)
        _finish(sweep, run, {"a": score, "b": score, "c": 0.5})
    experiment, text = _report(sweep)
    (row,) = experiment["between"]
    assert (row["label"], row["model"], row["than"]) == ("StepAgent-Implicit", "large", small)
    # two of three tasks: (30 − 10) and (50 − 10) points more
    assert row["gain"]["by_seed"] == pytest.approx([20 * 2 / 3, 40 * 2 / 3])
    assert row["gain"]["mean"] == pytest.approx(20.0)
    assert (row["gain"]["seeds"], row["gain"]["tasks"]) == ([0, 1], 3)
    assert f"| StepAgent-Implicit, Guess | large minus {small} | +20.0 [" in text
    links = re.findall(r"!\[.*\]\((\S+)\)", text)
    assert len(links) == len(set(links)) == 5
    assert "With so few seeds they are too narrow" in text
    assert all((Path(sweep.output) / link).is_file() for link in links)


def test_models_are_compared_over_the_seeds_that_both_have(sweep):
    small = next(iter(sweep.models))
    sweep.models["large"] = {**sweep.models[small], "prompt": {"suffix": "Think."}}
    sweep.experiments[0] |= {"kind": "models", "models": [small, "large"]}
    assert _report(sweep)[0]["between"] == [], "nothing is done"
    for run in planning.all_runs(sweep):
        if (run.method, run.model, run.seed) != ("sft", "large", 0):
            _finish(sweep, run, {"a": float(run.method == "implicit")})
    (row,) = _report(sweep)[0]["between"]
    assert (row["gain"]["seeds"], row["gain"]["mean"]) == ([1], 0.0)


def test_missing_and_failed_runs_are_named_and_gains_take_common_seeds(sweep):
    runs = _by_method(sweep)
    _finish(sweep, runs["sft", 0], {"a": 0.0})
    _finish(sweep, runs["implicit", 0], {"a": 1.0})
    _finish(sweep, runs["implicit", 1], {"a": 0.0})
    log = Path(sweep.output) / "logs" / f"{runs['sft', 1].name}.failed"
    log.parent.mkdir()
    log.write_text("RuntimeError: disk | full\n")
    experiment, text = _report(sweep)
    assert (experiment["runs"], experiment["done"]) == (4, 3)
    assert experiment["missing"] == [
        {"run": runs["sft", 1].name, "why": "failed: RuntimeError: disk | full"}
    ]
    assert "**Missing**, failed: RuntimeError: disk \\| full: `Guess-tiny-sft` (seed 1)" in text
    sft, implicit = experiment["settings"][0]["rows"]
    assert (sft["seeds"], sft["missing_seeds"]) == ([0], [1])
    assert tables.name(sft) == "SFT (seed 0 only)"
    assert (implicit["gain"]["mean"], implicit["gain"]["seeds"]) == (100.0, [0])


def test_a_failure_logged_under_another_tables_name_is_reported(sweep):
    """Its directory has that name, too."""
    run, output = planning.all_runs(sweep)[0], Path(sweep.output)
    other = replace(run, model="other")
    other.directory(output).mkdir(parents=True)
    log = output / "logs" / f"{other.name}.failed"
    log.parent.mkdir()
    log.write_text("RuntimeError: disk full\n")
    assert report.read(run, output).missing == "failed: RuntimeError: disk full"


def test_a_run_that_fails_leaves_its_last_line_and_none_when_it_succeeds(sweep, monkeypatch):
    run = planning.all_runs(sweep)[0]
    monkeypatch.setattr(job.sys, "executable", "/bin/false")
    assert run.name in execution.run_all(sweep, report_console())
    assert report.read(run, Path(sweep.output)).missing == "failed: no output"
    monkeypatch.setattr(job.sys, "executable", "/bin/true")
    assert execution.run_all(sweep, report_console()) == []
    assert report.read(run, Path(sweep.output)).missing == "not started"


def test_gains_are_counted_from_the_row_that_is_named(sweep):
    sweep.experiments[0]["baseline"] = "implicit"
    for (method, _), run in _by_method(sweep).items():
        _finish(sweep, run, {"a": 0.25 if method == "sft" else 1.0})
    experiment, _ = _report(sweep)
    sft, implicit = experiment["settings"][0]["rows"]
    assert sft["gain"]["mean"] == -75
    assert implicit["gain"] is None
    sweep.experiments[0]["baseline"] = "nobody"
    with pytest.raises(
        ValueError, match="its baseline 'nobody' is no row: there are sft, implicit"
    ):
        report.write(sweep)


def test_agreement_is_paired_over_steps_and_correlated_with_the_score(sweep):
    matches = {"sft": {"a": "nn", "b": "y", "c": "n"}, "implicit": {"a": "yn", "b": "n", "c": "y"}}
    for (method, seed), run in _by_method(sweep).items():
        score = 0.2 * (method == "implicit") + 0.1 * seed
        _finish(sweep, run, {"t": score}, matches[method])
    experiment, text = _report(sweep)
    setting = experiment["settings"][0]
    row = setting["rows"][1]["agreement"]
    assert row["step_match"]["score"]["mean"] == pytest.approx(50)
    assert row["step_match"]["gain"]["mean"] == pytest.approx(25), "1 - 1 + 1 of four steps"
    assert row["loss"]["gain"]["mean"] == pytest.approx(-0.25)
    assert row["trajectory_match"]["gain"]["mean"] == pytest.approx(0), "b lost, c won"
    # Step match 25, 25, 50, 50 against 0, 10, 20, 30: 20 / sqrt(5) / 10 = 0.894; within seeds 1.
    figures = setting["correlations"]["step_match"]
    assert figures["all"]["pearson"] == pytest.approx(2 / 5**0.5)
    assert figures["within_seeds"]["pearson"] == pytest.approx(1)
    assert figures["all"]["policies"] == 4
    assert "trajectory_match" not in setting["correlations"], "the same for all"
    assert "| step match | within seeds | 1.00 [1.00, 1.00] |" in text


def test_rows_say_what_they_have_used(sweep):
    runs = _by_method(sweep)
    for (method, seed), run in runs.items():
        used = Budget(expert_labels=10, tokens=1000 + 500 * seed, seconds=90)
        _finish(sweep, run, {"a": 1.0}, budget=used if (method, seed) != ("sft", 1) else None)
    experiment, text = _report(sweep)
    sft, implicit = experiment["settings"][0]["rows"]
    assert sft["budget"] is None, "one of its runs did not record it"
    assert implicit["budget"]["tokens"] == 1250
    assert "| StepAgent-Implicit | 10 | 0 | 0 | 1,250 | 1.5 | 0 |" in text
    overview = tables.overview(experiment["settings"][0])
    assert "| method | score | gain over SFT [95 %] | p (Holm) | expert labels |" in overview


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2], ["SFT", "StepAgent-Implicit"]),
        (
            [1, 2],
            [
                "SFT iterations=1",
                "SFT iterations=2",
                "StepAgent-Implicit iterations=1",
                "StepAgent-Implicit iterations=2",
            ],
        ),
    ],
)
def test_rows_are_called_by_the_options_in_which_they_differ(sweep, values, expected):
    sweep.experiments[0]["vary"] = {"reflection.iterations": values}
    for run in planning.all_runs(sweep):
        _finish(sweep, run, {"a": 1.0})
    experiment, _ = _report(sweep)
    assert sorted(row["label"] for row in experiment["settings"][0]["rows"]) == expected


# A row with the budget of another -----------------------------------------------------------------


def test_a_table_says_which_nano_its_runs_began_from(sweep, monkeypatch):
    runs = planning.all_runs(sweep)

    def begin(*digests):
        for run, digest in zip(runs, digests, strict=True):
            _finish(sweep, run, {"a": 1.0})
            path = Path(sweep.output) / "runs" / run.name / "summary.json"
            origin = {"model": "nano", "digest": digest}
            path.write_text(json.dumps({**json.loads(path.read_text()), "origin": origin}))

    monkeypatch.setattr(nano, "digest", lambda: "aaaa")
    begin(*["aaaa"] * len(runs))
    data, text = _report(sweep)
    assert "All runs began from nano `aaaa`." in text
    assert [(o["digest"], len(o["runs"])) for o in data["origins"]] == [("aaaa", len(runs))]
    begin(*["bbbb"] * len(runs))
    assert "began from nano `bbbb`; **the one installed here is `aaaa`**" in _report(sweep)[1]
    begin("aaaa", *["bbbb"] * (len(runs) - 1))
    text = _report(sweep)[1]
    assert "**These runs began from different models**" in text
    assert f"- nano `aaaa`, runs: 1, such as `{runs[0].name}`" in text


def test_a_table_says_where_dev_was_too_small_to_choose_by(sweep):
    runs = planning.all_runs(sweep)
    for run, draw in zip(runs, [1.0, 0.0, 0.0, None], strict=True):
        _finish(sweep, run, {"a": 1.0})
        path = Path(sweep.output) / "runs" / run.name / "summary.json"
        summary = json.loads(path.read_text())
        figures = {} if draw is None else {"dev_draw": draw}
        summary["figures"] = {**summary["figures"], "sft": figures}
        path.write_text(json.dumps(summary))
    text = _report(sweep)[1]
    assert "**The dev split was too small** to choose SFT's pass by in 1 of 3 runs" in text
    assert f"such as `{runs[0].name}`" in text


def test_a_table_without_nano_does_not_speak_of_it(sweep):
    for run in planning.all_runs(sweep):
        _finish(sweep, run, {"a": 1.0})
    data, text = _report(sweep)
    assert data["origins"] == data["dev_draws"] == []
    assert "nano" not in text


@pytest.fixture
def tuned(sweep) -> Sweep:
    """Two plans of SFT and implicit, and the plan that is best on dev."""
    for name, epochs in (("sft", 2), ("sft-long", 5)):
        sweep.methods[name] = {"method": "sft", "sft": {"select": "dev", "epochs": epochs}}
    sweep.experiments[0] |= {
        "methods": ["sft", "sft-long", "implicit"],
        "best_on_dev": {"sft-tuned": ["sft", "sft-long"]},
        "baseline": "sft-tuned",
    }
    return sweep


DEV = {
    ("sft", 0): (0.25, 0.9, 2.0),  # the higher match, and a higher loss
    ("sft-long", 0): (0.5, 0.8, 1.0),
    ("sft", 1): (0.25, 0.8, 2.0),
    ("sft-long", 1): (0.5, 0.8, 1.0),  # level, with the lower loss
    ("implicit", 0): (1.0, 0.0, 9.0),
    ("implicit", 1): (1.0, 0.0, 9.0),
}
"""Method, seed → score, step match and loss on dev"""


def _finish_on_dev(sweep: Sweep, run: SweepRun, figures: dict[str, float] | None = None) -> None:
    score, match, loss = DEV[run.method, run.seed]
    tokens = 30 if run.method == "sft-long" else 10
    budget = Budget(expert_labels=7, tokens=tokens, updates=1)
    matches = {"a": "y" if run.method == "sft" else "n", "b": "y"}
    _finish(sweep, run, {"a": score, "b": score}, matches, budget)
    path = Path(sweep.output) / "runs" / run.name / "summary.json"
    summary = json.loads(path.read_text())
    own = {"dev_step_match": match, "dev_loss": loss, "dev_draw": 0.0}
    rest = {stage: {} for stage in summary["figures"] if stage != "sft"}
    summary["figures"] = {"sft": own if figures is None else figures, **rest}
    path.write_text(json.dumps(summary))


def _finish_all_on_dev(sweep: Sweep) -> dict[str, dict]:
    for run in planning.all_runs(sweep):
        _finish_on_dev(sweep, run)
    return {row["name"]: row for row in _report(sweep)[0]["settings"][0]["rows"]}


def test_a_row_can_be_the_best_of_others_on_dev(tuned):
    rows = _finish_all_on_dev(tuned)
    data, text = _report(tuned)
    assert rows["sft-tuned"]["score"]["values"] == [25.0, 50.0]
    assert rows["implicit"]["gain"]["by_seed"] == [75.0, 50.0]
    assert rows["implicit"]["gain"]["p_holm"] == rows["implicit"]["gain"]["p"]
    assert rows["sft"]["gain"] is rows["sft-long"]["gain"] is None, "it was chosen among them"
    assert rows["sft-tuned"]["agreement"]["step_match"]["score"]["values"] == [100.0, 50.0]
    used = {"expert_labels": 7, "tokens": 40, "updates": 2}
    assert rows["sft-tuned"]["budget"].items() >= used.items()
    assert (data["runs"], data["done"], data["missing"]) == (6, 6, [])
    (policies,) = {c["policies"] for c in data["settings"][0]["correlations"]["loss"].values()}
    assert policies == 6, "each policy once"
    assert "| SFT, tuned | 37.5" in text
    assert "SFT, tuned, the best on dev: `sft` (seed 0), `sft-long` (seed 1). Budgets are" in text


def test_where_thoughts_have_many_wordings_the_loss_decides(tuned):
    tuned.common["expert"] = {"wording": "varied"}
    assert _finish_all_on_dev(tuned)["sft-tuned"]["score"]["values"] == [50.0, 50.0]


def test_the_start_of_a_method_can_be_chosen_on_dev_and_plans_can_be_varied(tuned):
    tuned.methods["implicit"] = {"sft": {"select": "dev"}}
    tuned.experiments[0] |= {
        "methods": ["implicit"],
        "vary": {"sft.epochs": [2, 5]},
        "best_on_dev": {"implicit-tuned": ["implicit epochs=2", "implicit epochs=5"]},
        "baseline": "",
    }
    for run in planning.all_runs(tuned):
        later = dict(run.varied)["sft.epochs"] == 5
        own = {"dev_step_match": 0.5 + 0.1 * later, "dev_loss": 1.0}
        _finish_on_dev(tuned, run, own)
    rows = _report(tuned)[0]["settings"][0]["rows"]
    assert [row["label"] for row in rows] == [
        "StepAgent-Implicit epochs=2",
        "StepAgent-Implicit epochs=5",
        "StepAgent-Implicit, tuned",
    ]
    assert set(rows[2]["chosen"].values()) == {"implicit epochs=5"}


def test_the_best_on_dev_is_missing_with_any_of_those_tried(tuned):
    *runs, last = planning.all_runs(tuned)
    assert last.method == "implicit"
    for run in runs:
        if (run.method, run.seed) != ("sft-long", 1):
            _finish_on_dev(tuned, run)
    data, _ = _report(tuned)
    (row,) = [r for r in data["settings"][0]["rows"] if r["name"] == "sft-tuned"]
    assert (row["seeds"], row["missing_seeds"]) == ([0], [1])
    whys = [m["why"] for m in data["missing"]]
    assert whys == ["not started", "not started", "one of those to choose among is missing"]
    assert data["done"] == 4


@pytest.mark.parametrize("figures", [{}, {"dev_draw": 0.0}, {"dev_loss": 1.0}], ids=str)
def test_the_best_on_dev_needs_to_know_what_was_measured(tuned, figures):
    for run in planning.all_runs(tuned):
        _finish_on_dev(tuned, run, figures if run.method == "sft-long" else None)
    data, text = _report(tuned)
    assert len(data["missing"]) == 2
    assert "does not say how it agrees on dev: an earlier version made it" in text


@pytest.mark.parametrize("value", [None, "0.5", float("nan")])
def test_a_summary_with_a_damaged_figure_of_dev_is_named(tuned, value):
    run = planning.all_runs(tuned)[0]
    _finish_on_dev(tuned, run, {"dev_step_match": 0.5, "dev_loss": value})
    with pytest.raises(SweepError, match=r"summary.json is damaged"):
        report.write(tuned)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (["sft"], "'sft-tuned' must choose among two or more of sft, sft-long, implicit, not"),
        (["sft", "sft"], "must choose among two or more"),
        (["sft", "sft-lnog"], "must choose among two or more"),
        (["sft", ["sft-long"]], "must choose among two or more"),
        ("sft", "must choose among two or more"),
        (["sft", "implicit"], "'implicit' is not measured on dev"),
    ],
)
def test_the_best_on_dev_is_chosen_among_rows_that_are_measured(tuned, change, problem):
    tuned.experiments[0]["best_on_dev"] = {"sft-tuned": change}
    with pytest.raises(SweepError, match=re.escape(problem)):
        planning.all_runs(tuned)


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"implicit": ["sft", "sft-long"]}, "'implicit' is a row already"),
        ({"sft tuned": ["sft", "sft-long"]}, "'sft tuned' is no name for a row"),
        ({"sft-matched-sft": ["sft", "sft-long"]}, "'sft-matched-sft' is no name for a row"),
        ({3: ["sft", "sft-long"]}, "3 is no name for a row"),
        (["sft", "sft-long"], "which must map a new row to two or more of"),
        (None, "which must map a new row to two or more of"),
    ],
)
def test_the_best_on_dev_has_a_name_of_its_own(tuned, chosen, problem):
    tuned.experiments[0] |= {"best_on_dev": chosen, "baseline": ""}
    with pytest.raises(SweepError, match=re.escape(problem)):
        planning.all_runs(tuned)


def test_the_best_on_dev_is_chosen_among_rows_that_differ_in_sft_alone(tuned):
    tuned.methods["sft-long"]["evaluation"] = {"agreement": 3}
    with pytest.raises(SweepError, match="'sft-long' and 'sft' differ in more than `sft`"):
        planning.all_runs(tuned)
    tuned.methods["sft-long"] = tuned.methods["sft"]
    with pytest.raises(SweepError, match="'sft-long' and 'sft' are the same"):
        planning.all_runs(tuned)


def test_figures_have_no_row_that_is_chosen_on_dev(tuned):
    tuned.experiments[0] |= {"kind": "iterations", "baseline": ""}
    with pytest.raises(SweepError, match="experiments of kind 'iterations' have no such rows"):
        planning.all_runs(tuned)


@pytest.fixture
def matched(sweep) -> Sweep:
    sweep.seeds = [0]
    sweep.experiments[0]["methods"] = ["sft-matched-implicit", "sft"]
    return sweep


def test_a_matched_row_runs_after_the_row_that_it_matches(matched):
    runs = planning.all_runs(matched)
    assert [run.method for run in runs] == ["sft", "implicit", "sft-matched-implicit"]
    last = runs[-1]
    assert (last.options["method"], last.matches) == ("sft", runs[1])
    assert last.options["sft"] == runs[0].options["sft"]
    digest = last.digest
    assert digest != runs[0].digest
    matched.methods["implicit"]["reflection"]["practice"] = 5
    assert planning.all_runs(matched)[-1].digest != digest, "another row, another control"


def test_a_matched_row_trains_on_as_many_tokens(matched, monkeypatch):
    seen = {}

    def perform(todo, track):
        run = next(run for run in planning.all_runs(matched) if run.name == todo.name)
        options = yaml.safe_load(Path(todo.config).read_text())
        seen[run.method] = options["sft"].get("tokens", 0)
        if run.method != "implicit" or "failed" not in seen:
            _finish(matched, run, {"a": 1.0}, budget=Budget(tokens=4321))
            return job.Outcome("done")
        return job.Outcome("failed", message="no")

    monkeypatch.setattr(launchers, "perform", perform)
    assert execution.run_all(matched, report_console()) == []
    assert seen == {"sft": 0, "implicit": 0, "sft-matched-implicit": 4321}
    matched.output += "-2"
    seen["failed"] = True
    missing = execution.run_all(matched, report_console())
    assert [name.split("-seed")[0] for name in missing] == [
        "Guess-tiny-implicit",
        "Guess-tiny-sft-matched-implicit",
    ]


def test_a_row_without_a_recorded_budget_cannot_be_matched(matched):
    _, implicit, last = planning.all_runs(matched)
    _finish(matched, implicit, {"a": 1.0})
    with pytest.raises(planning.SweepError, match="does not say on how many tokens"):
        execution.configuration(last, Path(matched.output))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sft-matched-nothing", "no method 'nothing'"),
        ("sft-matched-sft-matched-implicit", "itself matches another"),
    ],
)
def test_what_cannot_be_matched_is_said(matched, name, message):
    matched.experiments[0]["methods"] = [name]
    with pytest.raises(planning.SweepError, match=message):
        planning.all_runs(matched)


# The command --------------------------------------------------------------------------------------


def test_a_directory_can_be_reported_without_its_configuration(sweep, monkeypatch, capsys):
    out = Path(sweep.output)
    assert command.main(["--output", str(out), "--report-only"]) == 2
    assert f"{out / command.SWEEP} does not exist" in capsys.readouterr().err
    monkeypatch.setattr(execution, "run_all", lambda sweep, console: [])
    assert command.main(["--config", str(out.parent / "sweep.yaml")]) == 0
    for run in planning.all_runs(_read(out.parent / "sweep.yaml")):
        _finish(sweep, run, {"a": 1.0})
    moved = out.rename(out.with_name("elsewhere"))
    assert command.main(["--output", str(moved), "--report-only"]) == 0
    assert json.loads((moved / "report.json").read_text())["experiments"][0]["done"] == 4
    stored = command_line.parse(Sweep, ["--config", str(moved / command.SWEEP)], prog="test")
    assert replace(stored, output="") == replace(_read(out.parent / "sweep.yaml"), output="")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"scores": {"sft": 3}}', "[" * 100_000])
def test_a_damaged_summary_is_named(sweep, text):
    run = planning.all_runs(sweep)[0]
    _finish(sweep, run, {"a": 1.0})
    file = run.directory(Path(sweep.output)) / "summary.json"
    file.write_text(text)
    with pytest.raises(planning.SweepError, match=re.escape(str(file))):
        report.write(sweep)


def test_a_table_of_one_comparison_speaks_of_no_correction():
    def gain(alone: float, of_all: float) -> dict:
        seeds = [*range(8)]
        return {
            "gain": {"seeds": seeds, "tasks": 96, "detectable": alone, "detectable_holm": of_all}
        }

    one = tables.sees({"rows": [{"gain": None}, gain(6.2, 6.2)]})
    assert "a true gain of 6.2 points" in one
    assert "rows" not in one
    two = tables.sees({"rows": [gain(6.2, 7.0), gain(5.0, 5.8)]})
    assert "a true gain of 5.8 to 7.0 points" in two
    assert "over all 2 rows; for one row chosen beforehand 5.0 to 6.2" in two


@pytest.mark.parametrize(
    ("seeds", "warning"),
    [(1, "about the tasks alone"), (2, "too narrow"), (4, "too narrow"), (5, ""), (8, "")],
)
def test_a_table_of_few_seeds_warns_of_its_intervals(seeds, warning):
    gain = {"seeds": [*range(seeds)], "tasks": 96, "detectable": 6.0, "detectable_holm": 6.0}
    text = tables.sees({"rows": [{"gain": gain}]})
    assert warning in text
    assert ("**" in text) == bool(warning)


@pytest.mark.parametrize(("seeds", "marked"), [(4, False), (5, True)])
def test_no_gain_over_few_seeds_is_marked_as_significant(seeds, marked):
    figures = ("mean", "low", "high", "detectable", "detectable_holm")
    gain = {"seeds": [*range(seeds)], "tasks": 96, "by_seed": [6.0] * seeds, "p": 0.001}
    gain |= {"p_holm": 0.001, **dict.fromkeys(figures, 6.0)}
    row = {"name": "a", "label": "A", "missing_seeds": [], "gain": gain, "paper": {}}
    assert ("\\*" in tables.gains({"baseline": "sft", "rows": [row]})) == marked


def test_gains_over_another_row_are_asked_for_in_the_report(sweep):
    sweep.experiments.append({**sweep.experiments[0], "name": "SFT alone", "methods": ["sft"]})
    for (method, _), run in _by_method(sweep).items():
        _finish(sweep, run, {"a": float(method == "implicit"), "b": 0.0})
    sweep.report_only, sweep.baseline = True, "implicit"
    report.write(sweep)
    data = json.loads((Path(sweep.output) / "report.json").read_text())
    both, alone = (setting for e in data["experiments"] for setting in e["settings"])
    gains = {row["name"]: row["gain"] and row["gain"]["mean"] for row in both["rows"]}
    assert gains == {"sft": -50.0, "implicit": None}
    assert alone["baseline"] == "sft"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--report-only", "--baseline", "implict"],
            "has a row 'implict'. There are",
        ),
        (["--baseline", "implicit"], "add --report-only"),
    ],
)
def test_a_baseline_that_cannot_be_is_refused_before_anything_is_written(
    words, message, tmp_path, capsys
):
    file = _sweep(tmp_path)
    before = {*tmp_path.rglob("*")}
    assert command.main(["--config", str(file), *words]) == 2
    assert message in capsys.readouterr().err
    assert {*tmp_path.rglob("*")} == before
