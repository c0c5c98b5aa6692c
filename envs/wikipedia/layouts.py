"""Other distributions' records of HotpotQA, 2WikiMultihopQA and MuSiQue in the official form.

| column                  | official                 | Hugging Face                            |
|-------------------------|--------------------------|-----------------------------------------|
| `context`               | [title, sentences] pairs | {title: […], sentences or content: […]} |
| `supporting_facts`      | [title, number] pairs    | {title: […], sent_id: […]}              |
| `evidences`             | triples                  | {fact: […], relation: […], entity: […]} |
| `paragraphs` and steps¹ | lists of objects         | the same, or an object of lists         |

¹ `question_decomposition`

Any of these may also be a list of objects, or JSON in a text column. FlashRAG and Search-R1 have
`golden_answers` in place of `answer`, and the columns above within `metadata`; of MuSiQue's
paragraphs, they keep the supporting ones, in the steps of the decomposition.
"""

from __future__ import annotations

import json
from typing import Any

_PAIRS = {
    "context": (("title",), ("sentences", "content")),
    "supporting_facts": (("title",), ("sent_id",)),
    "evidences": (("fact",), ("relation",), ("entity",)),
}
_OBJECTS = ("paragraphs", "question_decomposition")
_NESTED = (*_PAIRS, *_OBJECTS, "metadata", "golden_answers")


def official(record: dict[str, Any]) -> dict[str, Any]:
    """The record in its data set's official form. What is in that form already is not changed.

    Raises ValueError, KeyError or TypeError where the columns do not fit each other.
    """
    record = {k: _parsed(v) if k in _NESTED else v for k, v in record.items()}
    if record.get("golden_answers") is not None:
        record = _with_answers({**(record.pop("metadata", None) or {}), **record})
    for column, names in _PAIRS.items():
        record[column] = _tuples(_parsed(record.get(column)), names)
    for column in _OBJECTS:
        record[column] = _objects(_parsed(record.get(column)))
    if not record["paragraphs"]:
        record["paragraphs"] = _supporting(record["question_decomposition"])
    return record


def metadata(record: dict[str, Any], name: str) -> Any:
    """A value of the record or of its `metadata`."""
    inner = record.get("metadata")
    return record.get(name, inner.get(name) if isinstance(inner, dict) else None)


def _parsed(value: Any) -> Any:
    """The value of JSON in a text column."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("a column's JSON is nested too deeply") from None


def _with_answers(record: dict[str, Any]) -> dict[str, Any]:
    golds = record.pop("golden_answers")
    answer, *others = [golds] if isinstance(golds, str) else list(golds) or [None]
    return {**record, "answer": answer, "aliases": [*others, *(record.get("aliases") or ())]}


def _tuples(column: Any, names: tuple[tuple[str, ...], ...]) -> list[Any]:
    """The tuples of a column; `names`: what each of their parts may be called."""
    if isinstance(column, dict):
        parts = [_part(column, alternatives) for alternatives in names]
        return [list(values) for values in zip(*parts, strict=True)]
    if column and isinstance(column[0], dict):
        return [[_part(item, alternatives) for alternatives in names] for item in column]
    return list(column or ())


def _part(item: dict[str, Any], alternatives: tuple[str, ...]) -> Any:
    name = next((name for name in alternatives if name in item), alternatives[0])
    return item[name]


def _objects(column: Any) -> list[Any]:
    if not isinstance(column, dict):
        return list(column or ())
    return [dict(zip(column, row, strict=True)) for row in zip(*column.values(), strict=True)]


def _supporting(steps: list[Any]) -> list[dict[str, Any]]:
    """The paragraphs that the steps of a decomposition bring along, each once."""
    paragraphs: dict[Any, dict[str, Any]] = {}
    for step in steps:
        if isinstance(step, dict) and isinstance(step.get("support_paragraph"), dict):
            number = step["paragraph_support_idx"]
            paragraphs[number] = {**step["support_paragraph"], "idx": number}
    return [paragraphs[number] for number in sorted(paragraphs)]
