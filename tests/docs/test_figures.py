"""The gains that the pages state are those of the results in `docs/reproduction`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepagent.training.sweep.statistics import gain

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "reproduction"
PAGES = ["README.md", *(f"docs/pages/{p}.md" for p in ("evidence", "own-successes", "few-labels"))]
PAGES += ["docs/pages/methods-check.md"]
OLD = ROOT / "docs" / "pages" / "reproduction.md"
"""Of version 0.1, whose results are not kept as data"""
AFTERWARDS = [
    ("own-successes", "implicit-successes-25", "ppo"),
    ("own-successes", "implicit-successes-25", "grpo"),
    ("other-labels", "implicit-successes-25", "sft-25"),
    ("other-labels", "implicit-successes-25", "sft-matched-implicit-successes-25"),
    ("other-labels", "sft-matched-implicit-successes-25", "sft-25"),
    ("thermometer", "implicit-successes seed 0", "sft seed 0"),
    ("thermometer", "implicit-successes seed 1", "sft seed 1"),
    ("thermometer", "implicit-successes seed 0", "sft-matched-implicit-successes seed 0"),
]
"""Gains that are in no report as it was written, but in one with `--baseline`: sweep, row, over"""
STATED = re.compile(
    r"(?P<sign>[−+] )?(?P<mean>\d+\.\d)(?: points)? "
    r"\[(?P<low>(?:− )?\d+\.\d), (?P<high>(?:− )?\d+\.\d)\]"
)
Figures = tuple[float, float, float]
"""Mean and 95 % interval, to one decimal"""


def _figures(gain: Any) -> Figures:
    low, mean, high = (round(gain[key], 1) + 0.0 for key in ("low", "mean", "high"))
    return mean, low, high


def _reported(part: Any) -> Iterator[Figures]:
    """All gains within a part of a report."""
    if isinstance(part, dict) and {"mean", "low", "high"} <= part.keys():
        yield _figures(part)
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for value in values:
        yield from _reported(value)


def _number(text: str) -> float:
    return float(text.replace("− ", "-").replace("+ ", ""))


def _stated(text: str) -> dict[Figures, str]:
    """The gains in a page, each with its words."""
    found = {}
    for match in STATED.finditer(" ".join(text.split())):
        mean = _number((match["sign"] or "") + match["mean"])
        found[mean, _number(match["low"]), _number(match["high"])] = match[0]
    return found


def _scores(sweep: str, row: str) -> dict[int, dict[str, float]]:
    """Seed → task → the final score, in percent, of a row's runs or of one (`ROW seed 0`)."""
    name, _, seed = row.partition(" seed ")
    found = {}
    for line in (RESULTS / f"{sweep}.jsonl").read_text().splitlines():
        run = json.loads(line)
        match = re.fullmatch(rf".*-nano-{re.escape(name)}-seed(\d+)-\w+", run["run"])
        if match and seed in ("", match[1]):
            *_, found[int(match[1])] = run["tasks"].values()
    return found


def _afterwards(sweep: str, row: str, over: str) -> Figures:
    second, first = _scores(sweep, row), _scores(sweep, over)
    seeds = sorted(first.keys() & second.keys())
    tasks = sorted(first[seeds[0]])
    counted = gain([[second[seed][t] - first[seed][t] for t in tasks] for seed in seeds])
    return _figures(vars(counted))


@pytest.fixture(scope="module")
def known() -> set[Figures]:
    gains = {_afterwards(*row) for row in AFTERWARDS} | _stated(OLD.read_text()).keys()
    for file in RESULTS.glob("*.json"):
        gains |= set(_reported(json.loads(file.read_text())))
    return gains | {(-mean + 0.0, -high + 0.0, -low + 0.0) for mean, low, high in gains}


@pytest.mark.parametrize("page", PAGES)
def test_every_gain_with_an_interval_is_in_the_results(page, known):
    stated = _stated((ROOT / page).read_text())
    assert len(stated) >= 3
    assert [words for figures, words in stated.items() if figures not in known] == []


def test_a_gain_is_read_with_its_signs():
    text = "gains **+ 6.2 points\n[3.1, 9.2]**, loses − 0.3 [− 2.3,\n1.5], 6.9 [4.2, 10.0] above"
    assert [*_stated(text)] == [(6.2, 3.1, 9.2), (-0.3, -2.3, 1.5), (6.9, 4.2, 10.0)]
