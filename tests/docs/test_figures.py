"""The gains that the pages state are those of the results in `docs/reproduction`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepagent import command_line
from stepagent.training.sweep import command, records, report, rows
from stepagent.training.sweep.planning import Sweep, runs, with_baseline
from stepagent.training.sweep.results import read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "reproduction"
PAGES = ["README.md", "CHANGELOG.md"]
PAGES += [f"docs/pages/{page}.md" for page in ("evidence", "own-successes", "few-labels")]
PAGES += [f"docs/pages/{page}.md" for page in ("methods-check", "methods/rft")]
OLD = ROOT / "docs" / "pages" / "reproduction.md"
"""Of version 0.1, whose results are not kept as data"""
AFTERWARDS = [
    ("own-successes", "sft", []),
    ("own-successes", "implicit-successes-25 practice=1", []),
    ("own-successes", "ppo", []),
    ("own-successes", "grpo", []),
    ("own-successes", "anchor-successes-25", []),
    ("own-successes", "rft-sound", []),
    ("other-labels", "sft-25", []),
    ("other-labels", "anchor-successes-25", []),
    ("other-labels", "rft-sound", []),
    ("other-labels", "sft-matched-implicit-successes-25", []),
    ("sizes", "sft", []),
    ("evidence-smollm2", "sft", []),
    ("evidence-smollm2", "anchor-successes", []),
    ("thermometer", "sft", [0]),
    ("thermometer", "sft", [1]),
    ("thermometer", "sft-matched-implicit-successes", [0]),
]
"""The sweep, the row and, where they are not all, the seeds of gains that were asked for after the
sweep: `stepagent sweep --config SWEEP --known FILE --report-only --baseline ROW --seeds SEEDS`."""
STATED = re.compile(
    r"(?P<sign>[−+] )?(?P<mean>\d+\.\d)(?: points)? "
    r"\[(?P<low>(?:− )?\d+\.\d), (?P<high>(?:− )?\d+\.\d)\]"
)
Figures = tuple[float, float, float]
"""Mean and 95 % interval, to one decimal"""


def _gains(experiments: list[dict[str, Any]]) -> Iterator[Figures]:
    """Of all rows of a report, the score's and those of agreement; and how much more a row gains
    with another model."""
    for experiment in experiments:
        gains = [row["gain"] for row in experiment.get("between", [])]
        for row in (row for setting in experiment["settings"] for row in setting["rows"]):
            gains += [row["gain"], *(m.get("gain") for m in row["agreement"].values())]
        for gain in filter(None, gains):
            yield round(gain["mean"], 1), round(gain["low"], 1), round(gain["high"], 1)


def _afterwards(name: str, row: str, seeds: list[int], output: Path) -> list[dict[str, Any]]:
    """The experiments of the report that `--baseline` makes."""
    words = ["--config", name, "--output", str(output), "--known", str(RESULTS / f"{name}.jsonl")]
    sweep = command_line.parse(Sweep, words, prog="test", configs=command.CONFIGS)
    sweep.baseline, sweep.seeds = row, seeds or sweep.seeds
    records.adopt(sweep)
    experiments = []
    for experiment in (e for e in with_baseline(sweep) if e.baseline == row):
        results = [read(run, output) for run in runs(sweep, experiment)]
        chosen = rows.best_on_dev(experiment, results)
        experiments.append(report.as_data(experiment, results, chosen))
    return experiments


def _number(text: str) -> float:
    return float(text.replace("− ", "-").replace("+ ", ""))


def _stated(text: str) -> dict[Figures, str]:
    """The gains in a page, each with its words."""
    found = {}
    for match in STATED.finditer(" ".join(text.split())):
        mean = _number((match["sign"] or "") + match["mean"])
        found[mean, _number(match["low"]), _number(match["high"])] = match[0]
    return found


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> set[Figures]:
    gains = set(_stated(OLD.read_text()))
    for file in RESULTS.glob("*.json"):
        reported = set(_gains(json.loads(file.read_text())["experiments"]))
        gains |= reported
        if not file.with_suffix(".jsonl").is_file():  # no runs to ask: a row's loss is also a gain
            gains |= {(-mean, -high, -low) for mean, low, high in reported}
    output = tmp_path_factory.mktemp("sweeps")
    for name, row, seeds in AFTERWARDS:
        gains |= set(_gains(_afterwards(name, row, seeds, output / name)))
    return gains


@pytest.mark.parametrize("page", PAGES)
def test_every_gain_with_an_interval_is_in_the_results(page, known):
    stated = _stated((ROOT / page).read_text())
    assert len(stated) >= 3
    assert [words for figures, words in stated.items() if figures not in known] == []


def test_a_gain_is_read_with_its_signs():
    text = "gains **+ 6.2 points\n[3.1, 9.2]**, loses − 0.3 [− 2.3,\n1.5], 6.9 [4.2, 10.0] above"
    assert [*_stated(text)] == [(6.2, 3.1, 9.2), (-0.3, -2.3, 1.5), (6.9, 4.2, 10.0)]
