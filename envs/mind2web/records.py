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

    def of(self, where: str) -> list[str]:
        """The kinds of defects of one step."""
        return sorted(kind for kind, places in self._places.items() if where in places)

    def first(self) -> str:
        """The kinds, each with its count and a place; "" if there is none."""
        kinds = sorted(self._places.items())
        return "; ".join(f"{len(at)} × {kind}, such as {min(at)}" for kind, at in kinds)

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
class StepFacts:
    """What a step has of what it needs, known without its task being read."""

    uid: str
    page: bool = True
    candidates: bool = True
    positive: bool = True


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


def page_fields(html: str) -> tuple[str, ...]:
    """The fields that may hold a page, "cleaned" or "raw", the first one that is there counting."""
    return ("cleaned_html", "cleaned_html_truncated") if html == "cleaned" else ("raw_html",)


def _page(record: Mapping[str, Any], html: str) -> str:
    return next((p for f in page_fields(html) if isinstance(p := record.get(f), str) and p), "")


def _step(action: Mapping[str, Any], uid: str, html: str, problems: Problems) -> RecordedStep:
    positives = parse_candidates(action.get("pos_candidates"), uid, problems)
    negatives = parse_candidates(action.get("neg_candidates"), uid, problems)
    return make_step(
        uid,
        _page(action, html),
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
        # As in MindAct, a click has no value, whatever was recorded.
        "" if op == "CLICK" else " ".join(str(operation.get("value") or "").split()),
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
    """The candidates of a list in the official format; it, or each of them, may be JSON text."""
    if isinstance(items, str):
        items = _parsed(items)
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
    value = _parsed(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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


def tasks_from_rows(
    rows: Sequence[Mapping[str, Any]], problems: Problems, html: str = "cleaned"
) -> list[Task]:
    """Tasks of rows of single steps: those with the same annotation_id are one task.

    A row has annotation_id, action_uid, confirmed_task, operation, the page, and in one of two ways

    - candidates (backend_node_id and the element as text), pos_backend_node_ids, previous_actions;
    - pos_candidates and neg_candidates as the official files have them (or each as JSON text), and
      the task's action_reprs with target_action_index: the multimodal release.
    """
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
    return [_task_from_rows(name, group, problems, html) for name, group in groups.items()]


def _index(row: Mapping[str, Any]) -> int:
    """The row's place among the task's actions."""
    index = row.get("action_idx", row.get("target_action_index"))
    return int(index) if isinstance(index, int) or str(index).isdecimal() else 0


def _task_from_rows(
    name: str, rows: list[Mapping[str, Any]], problems: Problems, html: str
) -> Task:
    steps = []
    for row in sorted(rows, key=_index):
        uid = f"{name}_{row.get('action_uid', _index(row))}"
        right, candidates = _row_candidates(row, uid, problems)
        reprs = [str(text) for text in _list(row, "action_reprs", uid, problems)]
        history = [str(text) for text in _list(row, "previous_actions", uid, problems)]
        step = make_step(
            uid,
            _page(row, html),
            row.get("operation"),
            right,
            candidates,
            problems,
            history if "previous_actions" in row else reprs[: _index(row)],
        )
        target = reprs[_index(row)] if _index(row) < len(reprs) else ""
        steps.append(_with(step, target=target))
    first = rows[0]
    texts = (str(first.get(key) or "") for key in ("website", "domain", "subdomain"))
    website, domain, subdomain = texts
    instruction = " ".join(str(first["confirmed_task"]).split())
    return Task(name, website, domain, subdomain, instruction, tuple(steps))


def _row_candidates(
    row: Mapping[str, Any], uid: str, problems: Problems
) -> tuple[list[str], list[Candidate]]:
    """(node ids of the right ones, all of them)."""
    if "candidates" not in row and "pos_candidates" in row:
        positives = parse_candidates(row["pos_candidates"], uid, problems)
        negatives = parse_candidates(row.get("neg_candidates"), uid, problems)
        return [candidate.node for candidate in positives], [*positives, *negatives]
    candidates = []
    for item in _list(row, "candidates", uid, problems):
        item = _object(item)
        node, text = str(item.get("backend_node_id") or ""), str(item.get("rendered") or "")
        tag = re.match(r"<([\w-]+)", text)
        if node:
            attributes = _shown(dict(_RENDERED.findall(text.removesuffix(">"))))
            candidates.append(Candidate(node, tag[1] if tag else "", attributes))
    right = [str(node) for node in _list(row, "pos_backend_node_ids", uid, problems)]
    return right, candidates
