"""Comparisons: figures, formats, refusals."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from stepagent.eval import agreement, compare, paper, tables
from stepagent.eval.comparison import compare as compare_runs
from stepagent.eval.load_runs import load_runs
from tests.eval.example_results import FINGERPRINT, episode, write_run

TASKS = [*(f"boil/{i}" for i in range(10)), *(f"melt/{i}" for i in range(10))]


@pytest.fixture
def two(tmp_path):
    a = write_run(tmp_path / "a", {t: float(i % 2) for i, t in enumerate(TASKS)}, "base")
    b = write_run(tmp_path / "b", dict.fromkeys(TASKS, 1.0), "better")
    return [a, b]


def test_figures(two):
    comparison = compare_runs(load_runs(two, []))
    assert [(r.run, r.figures["reward_mean"]) for r in comparison.runs] == [
        ("base", 0.5),
        ("better", 1),
    ]
    (difference,) = comparison.differences
    assert (difference.first, difference.second) == ("base", "better")
    assert difference.paired.mean == 0.5
    assert (difference.paired.better, difference.paired.worse) == (10, 0)
    assert difference.paired.p == difference.p_holm == pytest.approx(2 / 2**10)
    of_types = {d.task_type: d for d in comparison.differences_by_type}
    assert set(of_types) == {"boil", "melt"}
    assert of_types["boil"].paired.p == pytest.approx(2 / 2**5)
    assert of_types["boil"].p_holm == pytest.approx(2 * 2 / 2**5)
    assert comparison.references == paper.references("stepagent/WebShop-v0")
    assert comparison.notes == []


def test_pairs_and_against(two, tmp_path):
    three = load_runs([*two, write_run(tmp_path / "c", dict.fromkeys(TASKS, 0.2), "third")], [])
    assert len(compare_runs(three).differences) == 3
    differences = compare_runs(three, against="better").differences
    assert [(d.first, d.second) for d in differences] == [("better", "base"), ("better", "third")]
    with pytest.raises(ValueError, match="no run is called 'x': there are base, better, third"):
        compare_runs(three, against="x")


def test_remarks(two, tmp_path):
    few = write_run(
        tmp_path / "c", {"boil/1": 1.0, "new/1": 0.0}, "few", seed=4, error="agent: broke"
    )
    comparison = compare_runs(load_runs([*two, few], []))
    notes = "\n".join(comparison.notes)
    assert "not on the same tasks (1 are common to all)" in notes
    assert "different seeds" in notes
    assert "few: 2 episodes failed; they count as 0" in notes
    assert "few has 2 episodes" in notes
    assert comparison.runs[2].figures["reward_mean"] == 0


def test_terminal(two, capsys):
    assert compare.main(two) == 0
    shown = capsys.readouterr().out
    assert "50.0 [30.0, 70.0]" in shown
    assert "better − base" in shown
    assert "+50.0" in shown
    assert "Paper: Llama-3-8B, StepAgent-Inverse" in shown
    assert "67.6" in shown
    assert "Holm" in shown
    assert compare.main([*two, "--no-paper"]) == 0
    assert "67.6" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["terminal", "markdown", "csv", "latex"])
def test_formats_by_name_and_into_files(two, tmp_path, capsys, kind):
    assert compare.main([*two, "--format", kind]) == 0
    shown = capsys.readouterr().out
    out = tmp_path / "new" / "table.txt"
    assert compare.main([*two, "--format", kind, "--out", str(out)]) == 0
    if kind != "terminal":
        assert out.read_text() == shown
    for words in ("base", "better", "67.6"):
        assert words in out.read_text()


def test_the_file_name_determines_the_format(two, tmp_path):
    starts = {"t.md": "### ", "t.tex": "% \\usepackage", "t.csv": "table,source,"}
    for name, start in starts.items():
        assert compare.main([*two, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)


@pytest.mark.parametrize(
    "name", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", " =1", "\r=1", "＝1", "＠1"]
)
def test_no_cell_of_a_csv_is_a_formula(tmp_path, name):
    runs = [write_run(tmp_path / side, {"a": 1.0}, agent=name + side) for side in ("x", "y")]
    shown = compare.as_csv(compare_runs(load_runs(runs, [])))
    rows = list(csv.DictReader(io.StringIO(shown)))
    cells = [cell for row in rows for cell in row.values() if cell and "1" in cell]
    assert any(cell[-1] == "x" for cell in cells)
    assert not [c for c in cells if c.lstrip()[0] in "=+@＝＋－＠" or c.lstrip()[:2] == "-1"]


@pytest.mark.parametrize("name", ["a;=1", "a; +1", "a;-x", ";@x", "a\n=1", "a;;＝1"])
def test_no_part_of_a_cell_is_a_formula_where_semicolons_separate(name):
    parts = tables.cell(name).replace("\n", ";").split(";")
    assert not [part for part in parts if part.strip()[:1] in tuple("=+-@＝＋－＠")]
    assert tables.cell(name).replace("'", "") == name


def test_csv_is_tidy(two):
    rows = list(csv.DictReader(io.StringIO(compare.as_csv(compare_runs(load_runs(two, []))))))
    ours = {r["run"]: r for r in rows if r["table"] == "runs" and r["source"] == "ours"}
    assert float(ours["base"]["score"]) == 50
    assert {r["run"]: r["score"] for r in rows if r["source"] == "paper"}[
        "Mistral-7B, SFT"
    ] == "60.1"
    (difference,) = [r for r in rows if r["table"] == "differences"]
    assert (difference["compared_with"], difference["difference"]) == ("base", "50.0")
    assert {r["task_type"] for r in rows if r["table"] == "task types"} == {"boil", "melt"}


def test_names_cannot_break_a_table(tmp_path):
    name = r"[a]|b & 50% of_{x} \ <b>#1</b> $^~"
    paths = [
        write_run(tmp_path / "a", {"x/1": 0.5}, name),
        write_run(tmp_path / "b", {"x/1": 0.5}, "c"),
    ]
    comparison = compare_runs(load_runs(paths, []))
    markdown = compare.RENDERERS["markdown"](comparison)
    line = next(line for line in markdown.splitlines() if "50% of" in line)
    assert line.replace(r"\|", "").count("|") == 8
    assert r"\<b\>" in line
    latex = compare.RENDERERS["latex"](comparison)
    assert (
        r"{[}a]\textbar{}b \& 50\% of\_\{x\} \textbackslash{} \textless{}b\textgreater{}\#1"
        in latex
    )
    assert name in compare.RENDERERS["terminal"](comparison)


def test_names_cannot_reach_the_terminal(tmp_path, capsys):
    name = "\x1b[2Jcleared\u202e \ud800"
    lines = [json.dumps(asdict(episode("x/1", 0.5, name))) + "\n"]
    (tmp_path / "r.jsonl").write_text("".join(lines), encoding="ascii")
    for kind in compare.RENDERERS:
        assert compare.main([str(tmp_path / "r.jsonl"), "--format", kind]) == 0
        shown = capsys.readouterr().out
        assert "2Jcleared� �" in shown
        assert not set("\x1b\u202e") & set(shown)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"split": "dev"}, "split: test (base) | dev (other)"),
        (
            {"env": "stepagent/ALFWorld-v0"},
            "environment: stepagent/WebShop-v0 (base) | stepagent/A",
        ),
        ({"fingerprint": {**FINGERPRINT, "data": "d2"}}, "data: d1 (base) | d2 (other)"),
        ({"fingerprint": {**FINGERPRINT, "prompt": "p2"}}, "prompt: p1 (base) | p2 (other)"),
        ({"fingerprint": {**FINGERPRINT, "stepagent": "2"}}, "stepagent: 0.1 (base) | 2 (other)"),
    ],
)
def test_what_is_not_comparable_is_refused(two, tmp_path, capsys, changes, difference):
    other = write_run(tmp_path / "c", dict.fromkeys(TASKS, 0.0), "other", **changes)
    assert compare.main([two[0], other]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert difference in " ".join(refused.err.split())
    assert "--force" in refused.err
    assert compare.main([two[0], other, "--force"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"They differ in {difference}" in shown
    assert ("no task in common" in shown) == ("env" in changes)


# Suites ---------------------------------------------------------------------------------------


@pytest.fixture
def suite_folder(tmp_path):
    """Two agents on two environments; on the second one they differ."""
    folder = tmp_path / "suite"
    for agent, score in (("expert", 1.0), ("random", 0.0)):
        for entry, env in (("First", "WebShop"), ("Second", "ALFWorld")):
            rewards = dict.fromkeys(TASKS, score if entry == "Second" else 0.5)
            write_run(folder / agent / entry, rewards, agent, env=f"stepagent/{env}-v0")
    (folder / "summary.json").write_text('{"suite": "mine"}')
    return folder


@pytest.mark.parametrize("kind", ["terminal", "markdown", "csv", "latex"])
def test_a_suite_is_compared_entry_by_entry(suite_folder, capsys, kind):
    assert compare.main([str(suite_folder), "--format", kind]) == 0
    shown = capsys.readouterr().out
    for words in ("First", "Second", "67.6", "expert", "random"):
        assert words in shown
    assert "expert/First" not in shown
    if kind != "csv":
        assert "no task in common" not in shown
        assert shown.count("Intervals: 95 %") == 1
    else:
        rows = list(csv.DictReader(io.StringIO(shown)))
        differences = [(r["env"], r["difference"]) for r in rows if r["table"] == "differences"]
        assert differences == [("First", "0.0"), ("Second", "-100.0")]
        assert shown.count("table,source") == 1


def test_suites_side_by_side_and_against(suite_folder, tmp_path, capsys):
    other = tmp_path / "other"
    write_run(other / "new" / "First", dict.fromkeys(TASKS, 0.7), "new")
    (other / "summary.json").write_text('{"suite": "mine"}')
    options = ["--format", "csv", "--against"]
    assert compare.main([str(suite_folder), str(other), *options, "new"]) == 0
    shown = capsys.readouterr()
    rows = [r for r in csv.DictReader(io.StringIO(shown.out)) if r["table"] == "differences"]
    assert [(r["run"], r["compared_with"]) for r in rows] == [("expert", "new"), ("random", "new")]
    assert "Second: no run is called 'new' (expert, random); left out" in shown.err
    assert compare.main([str(suite_folder), *options, "nobody"]) == 2
    assert "no run is called 'nobody'" in capsys.readouterr().err


def test_runs_of_no_suite_or_not_comparable_within_one_are_refused(suite_folder, tmp_path, capsys):
    assert compare.main([str(suite_folder / "expert")]) == 1
    assert "they differ in environment" in " ".join(capsys.readouterr().err.split())
    other = write_run(tmp_path / "one", dict.fromkeys(TASKS, 0.5), "other")
    assert compare.main([str(suite_folder), other]) == 1
    later = {**FINGERPRINT, "stepagent": "2"}
    write_run(
        suite_folder / "third" / "First", dict.fromkeys(TASKS, 0.5), "third", fingerprint=later
    )
    capsys.readouterr()
    assert compare.main([str(suite_folder)]) == 1
    assert "error: First: these runs cannot be compared" in " ".join(
        capsys.readouterr().err.split()
    )


def test_bad_lines_are_reported_and_the_rest_compared(two, tmp_path, capsys):
    with open(f"{two[0]}/results.jsonl", "a") as file:
        file.write(episode("boil/0", 1.0, "base").to_json() + "\n")
        file.write('{"version": 2, "env": "x"}\n{"cut')
    assert compare.main(two) == 0
    errors = " ".join(capsys.readouterr().err.split())
    assert "results.jsonl:22: schema version 2" in errors
    assert "results.jsonl:23: not JSON" in errors
    assert "'boil/0' with seed 0: 2 times" in errors


def test_wrong_options(two, tmp_path, capsys):
    assert compare.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in " ".join(capsys.readouterr().err.split())
    assert compare.main([*two, "--against", "x"]) == 2
    for wrong in (["--format", "pdf"], ["--frce"]):
        with pytest.raises(SystemExit) as error:
            compare.main([*two, *wrong])
        assert error.value.code == 2
    with pytest.raises(SystemExit):
        compare.main([])


def test_agreement_is_compared_where_it_was_measured(two, tmp_path, capsys):
    third = write_run(tmp_path / "c", dict.fromkeys(TASKS, 0.2), "third")
    for folder, matches in ((two[0], (True, False)), (two[1], (True, True))):
        rows = [agreement.TrajectoryAgreement(t, (1.0, 3.0), matches) for t in TASKS]
        agreement.save(Path(folder), rows)
    comparison = compare_runs(load_runs([*two, third], []))
    assert {run: a.step_match for run, a in comparison.agreements.items()} == {
        "base": 0.5,
        "better": 1.0,
    }
    assert list(comparison.agreement_differences) == [("base", "better")]
    assert comparison.agreement_differences["base", "better"]["step_match"].mean == 0.5
    rows = list(csv.DictReader(io.StringIO(compare.as_csv(comparison))))
    (gain,) = [row for row in rows if row["table"] == "agreement differences"]
    assert (gain["run"], gain["compared_with"], gain["tasks"]) == ("better", "base", "20")
    assert [float(gain[f"step_match{end}"]) for end in ("", "_low", "_high")] == [50, 50, 50]
    assert compare.main(two) == 0
    lines = capsys.readouterr().out.splitlines()
    trajectory_match = next(line for line in lines if "+100.0 [+100.0, +100.0]" in line)
    assert trajectory_match.rstrip().endswith("< 0.001")
