"""Records: a task and its steps, from the official format or from rows of single steps.

Defects of a record are counted per step in a `Problems` and never raise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepagent.envs.mind2web.answers import OPERATIONS
from stepagent.envs.mind2web.prune import ATTRIBUTES, Candidate, scattered

_MAPPED = {"HOVER": "CLICK", "ENTER": "CLICK"}
"""Operations of the recording that the benchmark itself counts as clicks."""
_CUT = ("... [HTML truncated", "] ...")
"""Start and end of the note that a page was cut; it contains no other `]`."""
_RENDERED = re.compile(r'(?<![\w-])([\w-]++)="([^"]*)(?:"|\Z)')


class Problems:
    """Defects of the data: kind → the steps that have it, each counted once."""

    def __init__(self) -> None:
        self._places: dict[str, set[str]] = {}

    def add(self, kind: str, where: str) -> None:
        self._places.setdefault(kind, set()).add(where)

    def counts(self) -> dict[str, int]:
        return {kind: len(places) for kind, places in sorted(self._places.items())}

    def items(self) -> Iterable[tuple[str, set[str]]]:
        return self._places.items()

    def __repr__(self) -> str:
        return f"Problems({self.counts()})"


@dataclass(frozen=True)
class RecordedStep:
    """One recorded action and the page before it."""

    uid: str
    html: str
    op: str
    """CLICK, TYPE or SELECT (another word only if the data have one)."""
    value: str
    positives: tuple[str, ...]
    """Node ids that count as right; may be empty, or not among the candidates."""
    candidates: tuple[Candidate, ...]
    """In an order that reveals nothing (`scattered`): files list the right ones first."""
    history: tuple[str, ...]
    """The recorded actions before it, such as `[button]  Search -> CLICK`."""
    target: str = ""
    """The recorded action in words; "" if the data do not say."""


@dataclass(frozen=True)
class Task:
    """A task on a website, and its recorded steps."""

    id: str
    website: str
    domain: str
    subdomain: str
    instruction: str
    steps: tuple[RecordedStep, ...]


def task_from_official(record: Mapping[str, Any], html: str, problems: Problems) -> Task | None:
    """A task of the official format; None (and counted) if it lacks an id, a text or actions."""
    name = str(record.get("annotation_id") or "")
    instruction = " ".join(str(record.get("confirmed_task") or "").split())
    actions = record.get("actions")
    if not name or not instruction or not isinstance(actions, list) or not actions:
        problems.add("task without id, instruction or actions", name or repr(record)[:80])
        return None
    reprs = [str(text) for text in _list(record, "action_reprs", name, problems)]
    steps = []
    for i, action in enumerate(actions):
        if not isinstance(action, dict):
            problems.add("action that is not an object", f"{name}/{i}")
            action = {}
        steps.append(_step(action, f"{name}_{action.get('action_uid', i)}", html, problems))
        target = reprs[i] if i < len(reprs) else ""
        steps[-1] = _with(steps[-1], history=tuple(reprs[:i]), target=target)
    return Task(
        name,
        str(record.get("website") or ""),
        str(record.get("domain") or ""),
        str(record.get("subdomain") or ""),
        instruction,
        tuple(steps),
    )


def _with(step: RecordedStep, **changes: Any) -> RecordedStep:
    return RecordedStep(**{**step.__dict__, **changes})


def _step(action: Mapping[str, Any], uid: str, html: str, problems: Problems) -> RecordedStep:
    positives = parse_candidates(action.get("pos_candidates"), uid, problems)
    negatives = parse_candidates(action.get("neg_candidates"), uid, problems)
    page_key = "cleaned_html" if html == "cleaned" else "raw_html"
    page = action.get(page_key)
    return make_step(
        uid,
        page if isinstance(page, str) else "",
        action.get("operation"),
        [candidate.node for candidate in positives],
        [*positives, *negatives],
        problems,
    )


def make_step(
    uid: str,
    html: str,
    operation: Any,
    positives: Iterable[str],
    candidates: Iterable[Candidate],
    problems: Problems,
    history: Iterable[str] = (),
) -> RecordedStep:
    """A step; its defects are counted."""
    operation = _object(operation)
    op = str(operation.get("op") or "").upper()
    op = _MAPPED.get(op, op)
    if op not in OPERATIONS:
        problems.add("operation outside the three", uid)
    unique = {candidate.node: candidate for candidate in candidates}
    if not html.strip():
        problems.add("no page", uid)
    if not unique:
        problems.add("no candidates", uid)
    right = tuple(dict.fromkeys(positives))
    if not right:
        problems.add("no positive candidate", uid)
    return RecordedStep(
        uid,
        _without_note(html),
        op,
        " ".join(str(operation.get("value") or "").split()),
        right,
        tuple(unique[name] for name in sorted(unique, key=scattered)),
        tuple(history),
    )


def _without_note(html: str) -> str:
    """The page without the note at its end that it was cut, and without the blanks around it."""
    begin, end = _CUT
    page = html.rstrip()
    if page.endswith(end):
        page = page[: -len(end)]
        at = page.find(begin, page.rfind("]") + 1)
        if at >= 0:
            return page[:at].rstrip()
    return html


def parse_candidates(items: Any, uid: str, problems: Problems) -> list[Candidate]:
    """The candidates of a list in the official format."""
    candidates = []
    for item in items if isinstance(items, list) else ():
        item = _object(item)
        node = str(item.get("backend_node_id") or "")
        if not node:
            problems.add("candidate without node id", uid)
            continue
        attributes = _object(item.get("attributes"))
        candidates.append(Candidate(node, str(item.get("tag") or ""), _shown(attributes)))
    return candidates


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, parsed or still a text; {} for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _list(record: Mapping[str, Any], name: str, where: str, problems: Problems) -> list[Any]:
    """The list in a field; [] where there is none (counted if there is something else)."""
    values = record.get(name)
    if values and not isinstance(values, list):
        problems.add(f"{name} that is not a list", where)
    return values if isinstance(values, list) else []


def _shown(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The attributes that pruned pages show."""
    known = {str(k).replace("-", "_"): v for k, v in attributes.items()}
    return tuple((name, str(known[name])[:2000]) for name in ATTRIBUTES if known.get(name))


def tasks_from_rows(rows: Sequence[Mapping[str, Any]], problems: Problems) -> list[Task]:
    """Tasks of rows of single steps (`data.PlainFile` describes a row)."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        name, text = (
            str(row.get("annotation_id") or ""),
            str(row.get("confirmed_task") or ""),
        )
        if not name or not text.strip():
            problems.add("row without annotation_id or confirmed_task", str(number))
            continue
        groups.setdefault(name, []).append(row)
    return [_task_from_rows(name, group, problems) for name, group in groups.items()]


def _task_from_rows(name: str, rows: list[Mapping[str, Any]], problems: Problems) -> Task:
    def place(row: Mapping[str, Any]) -> int:
        index = row.get("action_idx")
        return index if isinstance(index, int) else 0

    steps = []
    for row in sorted(rows, key=place):
        uid, candidates = f"{name}_{row.get('action_uid', place(row))}", []
        for item in _list(row, "candidates", uid, problems):
            item = _object(item)
            node, text = str(item.get("backend_node_id") or ""), str(item.get("rendered") or "")
            tag = re.match(r"<([\w-]+)", text)
            if node:
                attributes = _shown(dict(_RENDERED.findall(text.removesuffix(">"))))
                candidates.append(Candidate(node, tag[1] if tag else "", attributes))
        page = row.get("cleaned_html") or row.get("cleaned_html_truncated") or ""
        steps.append(
            make_step(
                uid,
                page if isinstance(page, str) else "",
                row.get("operation"),
                [str(node) for node in _list(row, "pos_backend_node_ids", uid, problems)],
                candidates,
                problems,
                [str(text) for text in _list(row, "previous_actions", uid, problems)],
            )
        )
    first = rows[0]
    texts = (str(first.get(key) or "") for key in ("website", "domain", "subdomain"))
    website, domain, subdomain = texts
    instruction = " ".join(str(first["confirmed_task"]).split())
    return Task(name, website, domain, subdomain, instruction, tuple(steps))
