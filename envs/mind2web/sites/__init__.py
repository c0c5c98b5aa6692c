"""Bundled websites, so that the environment works without a download.

Six kinds of sites (`kinds`) make 72 of them, each with its own looks (`pages`) and words
(`themes.json`), with tasks and recorded gold steps in the benchmark's format (`browser`,
`BundledSites`). Splits are by site: train (48 sites, 576 tasks) and dev (6, 48) are of travel,
shopping, entertainment, lifestyle and work; test (18, 144) is of trades not in train, nearly all in
other domains (health, government, finance, education, sports, garden). Task ids are
`kind/site/number`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepagent.envs.mind2web.records import Problems, StepFacts, Task, task_from_official
from stepagent.envs.mind2web.sites.base import Site, SiteGoal
from stepagent.envs.mind2web.sites.kinds import KINDS
from stepagent.envs.mind2web.sites.pages import slug
from stepagent.files import read_text

TASKS_PER_SITE = {"train": 12, "dev": 8, "test": 8}
_THEMES = Path(__file__).with_name("themes.json")
CHECKSUM = "5bf660630f465981"
"""Stands for the sites and tasks in fingerprints; a test says when to renew it."""


@lru_cache(maxsize=1)
def _themes() -> dict[str, Any]:
    return json.loads(read_text(_THEMES))


@lru_cache(maxsize=1)
def sites() -> dict[str, tuple[Site, str]]:
    """Name (`kind/site`) → (site, split)."""
    by_name: dict[str, tuple[Site, str]] = {}
    for kind, splits in _themes().items():
        for split, themes in splits.items():
            for theme in themes:
                for brand in theme["brands"]:
                    by_name[f"{kind}/{slug(brand)}"] = (KINDS[kind](theme, brand), split)
    return by_name


@lru_cache(maxsize=256)
def goals(name: str) -> tuple[SiteGoal, ...]:
    """The tasks of a site."""
    site, split = sites()[name]
    return tuple(site.goals(TASKS_PER_SITE[split]))


def goal_of(task_id: str) -> tuple[Site, SiteGoal]:
    """Site and goal of a bundled task."""
    name, _, number = task_id.rpartition("/")
    return sites()[name][0], goals(name)[int(number)]


def record(task_id: str) -> dict[str, Any]:
    """A bundled task in the official format: its gold steps, played and written down."""
    from stepagent.envs.mind2web.sites.browser import Browser, snapshot

    site, goal = goal_of(task_id)
    browser, actions, reprs = Browser(site), [], []
    for number, move in enumerate(goal.moves):
        raw, cleaned, candidates, ids = snapshot(browser.page)
        node = ids[move.element]
        positives = [c for c in candidates if c["backend_node_id"] == node]
        for positive in positives:
            candidates.remove(positive)
        actions.append(
            {
                "action_uid": f"{slug(task_id)}-{number}",
                "raw_html": raw,
                "cleaned_html": cleaned,
                "operation": {"op": move.op, "original_op": move.op, "value": move.value},
                "pos_candidates": positives,
                "neg_candidates": candidates,
            }
        )
        reprs.append(describe(browser.find(move.element), move.op, move.value))
        browser.do(move)
    if browser.state.get("done") != goal.done:
        raise AssertionError(f"{task_id}: the gold steps lead to {browser.state}, not {goal.done}")
    return {
        "annotation_id": task_id,
        "website": site.name,
        "domain": site.theme["domain"],
        "subdomain": site.theme["subdomain"],
        "confirmed_task": goal.instruction,
        "action_reprs": reprs,
        "actions": actions,
    }


_ROLES = {"a": "link", "select": "combobox", "input": "textbox"}


def describe(element: Any, op: str, value: str) -> str:
    """An action in words, as the benchmark writes its history: `[button]  Search -> CLICK`."""
    tag, kind = element.tag, element.get("type")
    role = "checkbox" if kind == "checkbox" else _ROLES.get(tag, tag)
    text = " ".join("".join(element.itertext()).split()) if tag != "select" else ""
    label = element.get("aria-label") or element.get("placeholder") or text
    if not label and element.get("id"):
        root = element.getroottree()
        label = "".join(
            f"{x.text}" for x in root.iter("label") if x.get("for") == element.get("id")
        )
    return f"[{role}]  {label} -> {op}" + (f": {value}" if value else "")


class BundledSites:
    """The tasks on the bundled sites; a task is recorded on demand."""

    def __init__(self, html: str, problems: Problems):
        self.html, self.problems = html, problems

    def ids(self, split: str) -> Sequence[str]:
        count = TASKS_PER_SITE[split]
        return [
            f"{name}/{number}"
            for name, (_, owner) in sites().items()
            if owner == split
            for number in range(count)
        ]

    def facts(self, split: str) -> dict[str, list[StepFacts]]:
        return {
            task_id: [
                StepFacts(f"{task_id}_{slug(task_id)}-{number}")
                for number in range(len(goal_of(task_id)[1].moves))
            ]
            for task_id in self.ids(split)
        }

    def left_out(self, split: str) -> dict[str, int]:
        return {}

    def task(self, task_id: str) -> Task:
        task = task_from_official(record(task_id), self.html, self.problems)
        assert task is not None
        return task

    def checksum(self) -> str:
        return CHECKSUM
