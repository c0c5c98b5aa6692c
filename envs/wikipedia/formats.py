"""How the records of the three data sets are read, in their official form (`layouts.official`).

| data set        | id    | paragraphs                    | supporting facts                   |
|-----------------|-------|-------------------------------|------------------------------------|
| HotpotQA        | `_id` | `context`: [title, sentences] | [title, sentence number]           |
| 2WikiMultihopQA | `_id` | the same                      | the same, and `evidences`, triples |
| MuSiQue         | `id`  | `paragraphs`: title, text     | `question_decomposition`           |

Answers: `answer`, with `answer_aliases` (MuSiQue), the aliases and demonyms that `id_aliases.json`
next to the file has for `answer_id` (2Wiki), or a field `aliases`. Questions that MuSiQue-Full
marks as unanswerable are left out. HotpotQA's questions without paragraphs can be read too, for
other corpora.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from stepagent.envs.containers import Member, SourceError, members
from stepagent.envs.core import checksum
from stepagent.envs.wikipedia import layouts
from stepagent.envs.wikipedia.corpus import Page, clean_title, key, page
from stepagent.envs.wikipedia.questions import Hop, Question
from stepagent.envs.wikipedia.sources import named_fields, records

ALIASES_FILE = "id_aliases.json"
MAX_HOPS = 50
"""Supporting pages that a question may have: to order them takes the square of their number."""
_COLUMNS = {
    "hotpotqa": ("context", "supporting_facts", "evidences"),
    "2wikimultihopqa": ("context", "supporting_facts", "evidences"),
    "musique": ("paragraphs", "question_decomposition"),
}
"""What only questions of a data set have, the paragraphs first."""
_SEARCH_R1 = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")
"""The sets whose questions Search-R1 puts into one file, as it names them."""


def is_question(dataset: str, record: Any) -> bool:
    """Whether it is a question of the data set with its paragraphs, or one of FlashRAG's files."""
    if not isinstance(record, dict) or "question" not in record:
        return False
    return bool({_COLUMNS[dataset][0], "golden_answers"} & set(record))


def has_answer(record: Any) -> bool:
    """Whether a question has a gold answer; those of the official test files do not."""
    return bool(record.get("answer") or record.get("golden_answers"))


def question_id(dataset: str, record: Any, where: str) -> str:
    """The record's id. Raises SourceError for what is no question of the data set."""
    if not isinstance(record, dict) or not isinstance(record.get("question"), str):
        fields = named_fields(record)
        raise SourceError(f"{where} is no {dataset} question: it has no text 'question'{fields}")
    columns = {
        d: [c for c in names if layouts.metadata(record, c)] for d, names in _COLUMNS.items()
    }
    if not columns[dataset] and any(columns.values()):
        owner = "MuSiQue" if columns["musique"] else "HotpotQA or 2WikiMultihopQA"
        raise SourceError(f"{where} is no {dataset} question but one of {owner}")
    return str(record.get("_id") or record.get("id") or checksum(record["question"]))


def left_out(dataset: str, record: Any) -> str:
    """Why a question does not count among the data set's; "" if it does."""
    if not isinstance(record, dict):
        return ""
    if layouts.metadata(record, "answerable") is False:
        return "unanswerable questions"
    owner = str(record.get("data_source")).lower().removeprefix("searchr1_")
    return f"questions of {owner}" if owner in _SEARCH_R1 and owner != dataset else ""


def read(dataset: str, record: Any, where: str, aliases: dict[str, list[str]]) -> Question:
    """One question. Raises SourceError that says what is wrong with which record."""
    name = question_id(dataset, record, where)
    try:
        record = layouts.official(record)
        build = _musique if dataset == "musique" else _hotpot
        answer = record.get("answer")
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError("its answer is no text (the official test files have no answers)")
        others = [
            *(record.get("answer_aliases") or ()),
            *(record.get("aliases") or ()),
            *aliases.get(str(record.get("answer_id")), ()),
        ]
        golds = dict.fromkeys([answer, *(o for o in others if isinstance(o, str) and o.strip())])
        kind, passages, hops = build(record)
        return Question(
            id=name,
            kind=kind,
            text=" ".join(record["question"].split()),
            answers=tuple(golds),
            hops=tuple(hops),
            passages=tuple(passages),
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(f"{where} is no {dataset} question: {lacks}") from None


def wikidata_aliases(
    dataset: str, files: Iterable[Member], chosen: Sequence[Any]
) -> dict[str, list[str]]:
    """Answer id → aliases and demonyms, for the questions chosen, from `id_aliases.json` files."""
    answer_ids = {str(r["answer_id"]) for r in chosen if isinstance(r, dict) and r.get("answer_id")}
    aliases: dict[str, list[str]] = {}
    if dataset != "2wikimultihopqa" or not answer_ids:
        return aliases
    places = (f.path if f.inside else f.path.parent / ALIASES_FILE for f in files)
    for place in dict.fromkeys(places):
        for file in members(place) if place.is_file() else ():
            if PurePosixPath(file.name).name != ALIASES_FILE:
                continue
            for number, record in enumerate(records(file), 1):
                if not isinstance(record, dict):
                    raise SourceError(f"record {number} of {file} has no Q_id and aliases")
                if record.get("Q_id") in answer_ids:
                    names = [*(record.get("aliases") or ()), *(record.get("demonyms") or ())]
                    aliases[record["Q_id"]] = names
    return aliases


# HotpotQA and 2WikiMultihopQA ---------------------------------------------------------------------


def _hotpot(record: dict[str, Any]) -> tuple[str, list[Page], list[Hop]]:
    passages = [page(title, [sentences]) for title, sentences in record.get("context", ())]
    supported: dict[str, list[int]] = {}
    for title, number in record.get("supporting_facts", ()):
        supported.setdefault(clean_title(title), []).append(int(number))
    if len(supported) > MAX_HOPS:
        raise ValueError(f"it has {len(supported)} supporting pages, more than {MAX_HOPS}")
    by_title = {p.title: p for p in passages}
    raw = {clean_title(title): sentences for title, sentences in record.get("context", ())}
    triples = record.get("evidences", ())
    hops = []
    for title in _reasoning_order(list(supported), by_title, record):
        sentences = raw.get(title, [])
        facts = [" ".join(sentences[n].split()) for n in supported[title] if n < len(sentences)]
        relation, answer = _triple_of(title, triples)
        text = by_title[title].text if title in by_title else ""
        hops.append(Hop(title, tuple(fact for fact in facts if fact), relation, answer, text))
    return str(record.get("type") or "question"), passages, hops


def _triple_of(title: str, triples: Sequence[Sequence[str]]) -> tuple[str, str]:
    """The sub-question and answer of 2Wiki's evidence on a page."""
    for subject, relation, value in triples:
        if key(title).startswith(key(subject)):
            return f"What is the {relation} of {subject}?", value
    return "", ""


def _reasoning_order(
    titles: list[str], pages: dict[str, Page], record: dict[str, Any]
) -> list[str]:
    """Supporting titles in the order of the reasoning: what the question names comes first, then
    what an earlier page mentions; the others in the data set's order."""
    question, left, ordered = key(record["question"]), list(titles), list[str]()
    seen = question
    while left:
        mentioned = [title for title in left if _mentions(seen, title)]
        # Of those mentioned, the first; a page that only others lead to waits.
        chosen = min(mentioned, key=lambda t: _place(seen, t)) if mentioned else _first(left, pages)
        ordered.append(chosen)
        left.remove(chosen)
        if chosen in pages and record.get("type") != "comparison":
            seen += " " + key(pages[chosen].text)
    return ordered


def _first(titles: list[str], pages: dict[str, Page]) -> str:
    """A title that no other supporting page mentions, if there is one."""
    for title in titles:
        others = (key(pages[t].text) for t in titles if t != title and t in pages)
        if not any(_mentions(text, title) for text in others):
            return title
    return titles[0]


def _mentions(text: str, title: str) -> bool:
    return _place(text, title) >= 0


def _place(text: str, title: str) -> int:
    """Position of a title in a text (a key), with or without its bracketed addition; −1:
    nowhere."""
    last = title.rfind(")") + 1  # without it, each bracket that stays open is searched to the end
    bare = re.sub(r"[(].*?[)]", "", title[:last]) + title[last:]
    return f" {text} ".find(f" {key(bare) or key(title)} ")


# MuSiQue ------------------------------------------------------------------------------------------


def _musique(record: dict[str, Any]) -> tuple[str, list[Page], list[Hop]]:
    paragraphs = record.get("paragraphs", ())
    passages = [page(p["title"], [p["paragraph_text"]]) for p in paragraphs]
    numbers = {p.get("idx", i): i for i, p in enumerate(paragraphs)}
    hops: list[Hop] = []
    answers: list[str] = []
    for step in record.get("question_decomposition", ()):
        support = passages[numbers[step["paragraph_support_idx"]]]
        sub_question = re.sub(
            r"#(\d+)",
            lambda m: answers[int(m[1]) - 1] if 0 < int(m[1]) <= len(answers) else m[0],
            _as_question(step["question"]),
        )
        answers.append(str(step["answer"]))
        facts = [s for s in support.sentences if key(answers[-1]) in key(s)][:1]
        hops.append(Hop(support.title, tuple(facts), sub_question, answers[-1], support.text))
    kind = str(record.get("id", "question")).split("__")[0]
    # FlashRAG numbers the questions anew.
    return kind if "hop" in kind or not hops else f"{len(hops)}hop", passages, hops


def _as_question(text: str) -> str:
    """`Green >> performer` is MuSiQue's short form of a relation.

    >>> _as_question("Green >> performer")
    'What is the performer of Green?'
    """
    subject, arrow, relation = text.partition(">>")
    if not arrow:
        return " ".join(text.split())
    return f"What is the {relation.strip()} of {subject.strip()}?"
