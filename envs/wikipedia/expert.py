"""The oracle: it knows each hop's page and the answer, and comments on every page.

It uses the supporting facts and, if there is one, the decomposition of the question: for every hop
it searches the supporting page and reads it; finally it gives the gold answer. A thought quotes
only what has been shown. If the supporting sentence is further down the page, `lookup` fetches it
if that is an action; otherwise the thought says that the page does not tell. In the middle of an
episode it goes on with the hops whose pages have not been shown (`Reading`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from stepagent.envs.core import Plan
from stepagent.envs.wikipedia.corpus import Corpus, Page, key, part_title
from stepagent.envs.wikipedia.live import LiveError
from stepagent.envs.wikipedia.questions import Hop, Question

_PARTS = 40
"""Parts of a page that are searched for a hop's passage."""
Show = Callable[[Page], str]
T = TypeVar("T")


@dataclass
class Reading:
    """What an episode has shown so far."""

    searched: set[str] = field(default_factory=set)
    """What was searched for, and the titles of the pages that this opened."""
    texts: list[str] = field(default_factory=list)
    """What searches and lookups have shown."""
    looked_up: set[tuple[str, str]] = field(default_factory=set)
    """(title of the page, keyword)."""
    page: Page | None = None
    """The page that is open."""


NOTHING_READ = Reading()


def plan(
    question: Question,
    corpus: Corpus,
    show: Show,
    *,
    lookup: bool,
    steps: int,
    reading: Reading = NOTHING_READ,
) -> Plan:
    """(thought, action) pairs that end with the gold answer within `steps` actions.

    `reading`: what was shown before; the hops that it settles are left out.
    """
    pairs: Plan = []
    known = ""  # what the previous page said, in words
    opened, still_open = "", reading.page
    open_hops = []
    for number, hop in enumerate(question.hops):
        title, page = _target(corpus, hop)
        if not _settled(hop, title, page, reading, lookup):
            open_hops.append((number, hop))
        elif _same(page, still_open):
            shown = [fact for fact in hop.facts if any(fact in text for text in reading.texts)]
            known = _learnt(hop, title, shown, True, _Choice(f"{question.task_id}/{number}"))
    open_hops = list(_reachable(open_hops, steps - 1))
    for place, (number, hop) in enumerate(open_hops):
        rng = _Choice(f"{question.task_id}/{number}")
        title, page = _target(corpus, hop)
        if title != opened and not _same(page, still_open):
            goal = _goal(question, hop, number, rng)
            pairs.append((_sentence(known, goal, rng.searching(title)), f"search[{title}]"))
            opened, still_open = title, None
        else:
            known = _sentence(known, _goal(question, hop, number, rng))
        read = show(page) if page else ""
        shown = [fact for fact in hop.facts if fact in read]
        room = steps - 1 - len(pairs) - (len(open_hops) - place - 1)
        if lookup and page and hop.facts and not shown and room > 0:
            word = _keyword(hop, page)
            pairs.append((rng.looking(known, title, word), f"lookup[{word}]"))
            shown = [fact for fact in hop.facts if word.lower() in fact.lower()][:1]
        known = _learnt(hop, title, shown, bool(page), rng)
    rng = _Choice(question.task_id)
    answer = question.answers[0]
    pairs.append((_sentence(known, rng.closing(answer)), f"finish[{answer}]"))
    return pairs


def _settled(hop: Hop, title: str, page: Page | None, reading: Reading, lookup: bool) -> bool:
    """Whether a hop's page has been shown, and on it what can be."""
    titles = {" ".join(title.split()), page.title if page else ""}
    if not titles & reading.searched:
        return False
    if not lookup or page is None or not hop.facts:
        return True
    if any(fact in text for fact in hop.facts for text in reading.texts):
        return True
    keyword = " ".join(_keyword(hop, page).split())
    return (page.title, keyword) in reading.looked_up


def _same(page: Page | None, other: Page | None) -> bool:
    return page is not None and other is not None and page.title == other.title


def _reachable(hops: Sequence[T], searches: int) -> Sequence[T]:
    """The hops that can be searched; the last ones if there are too many."""
    return hops[len(hops) - searches :] if 0 < searches < len(hops) else hops[: max(searches, 0)]


def _target(corpus: Corpus, hop: Hop) -> tuple[str, Page | None]:
    """The title under which the corpus has the hop's passage, and that page (None: it has none)."""
    first: Page | None = None
    for number in range(1, _PARTS + 1):
        title = part_title(hop.title, number)
        try:
            result = corpus.find(title) if number == 1 or corpus.has(title) else None
        except LiveError:  # the plan goes without it; the episode will show the error
            result = None
        if not isinstance(result, Page):
            break
        first = first or result
        if not hop.text or result.text == hop.text:
            return title, result
    return hop.title, first


def _keyword(hop: Hop, page: Page) -> str:
    """The word of the first supporting sentence that occurs in the fewest other sentences."""
    words = [w.strip(".,;:()[]\"'") for w in hop.facts[0].split()]
    if hop.answer and hop.answer in hop.facts[0]:
        words = [hop.answer]
    words = [word for word in words if len(word) > 3] or words
    return min(words, key=lambda word: sum(word.lower() in s.lower() for s in page.sentences))


# Thoughts -----------------------------------------------------------------------------------------


def _goal(question: Question, hop: Hop, number: int, rng: _Choice) -> str:
    if hop.question:
        sub_question = hop.question[:1].upper() + hop.question[1:].rstrip("?. ") + "?"
        opening = _OPENINGS if number == 0 else _NEXT
        return rng.one(opening).format(sub_question)
    is_named = f" {key(hop.title)} " in f" {key(question.text)} "
    return rng.one(_NAMED if is_named else _LED_TO).format(hop.title)


def _learnt(hop: Hop, title: str, shown: Sequence[str], there: bool, rng: _Choice) -> str:
    """What the page has told."""
    if not there:
        return f"There is no page {title} here."
    if not shown:
        return rng.one(_NOT_TOLD).format(title)
    sentence = rng.one(_SAID).format(" ".join(shown))
    if hop.answer and key(hop.answer) in key(sentence):
        return _sentence(sentence, rng.one(_SO).format(hop.answer))
    return sentence


class _Choice:
    """Picks wordings by task and step: the same in every process."""

    def __init__(self, name: str):
        self._number = zlib.crc32(name.encode("utf-8", "replace"))

    def one(self, wordings: Sequence[str]) -> str:
        return wordings[self._number % len(wordings)]

    def searching(self, title: str) -> str:
        return self.one(_SEARCHING).format(title)

    def looking(self, known: str, title: str, word: str) -> str:
        return f"The beginning of {title} is not enough; I look for “{word}” on the page."

    def closing(self, answer: str) -> str:
        return self.one(_CLOSING).format(answer)


def _sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part)


_OPENINGS = (
    "First I have to find out: {}",
    "The first thing to know is: {}",
    "I begin with the innermost part of the question: {}",
)
_NEXT = ("Now I need to know: {}", "The next question is: {}", "What is left to find out: {}")
_NAMED = (
    "The question speaks of {}.",
    "The question is about {}.",
    "One of the things the question names is {}.",
)
_LED_TO = (
    "This leads on to {}.",
    "What is still missing may stand on the page {}.",
    "The next page to read is {}.",
)
_SEARCHING = (
    "I search for {}.",
    "The page on {} should tell.",
    "Let me open the page {}.",
)
_SAID = ("The page says: {}", "I read: {}", "It says there: {}")
_SO = ("So it is {}.", "That means {}.", "This gives {}.")
_NOT_TOLD = (
    "The beginning of {} does not say all I need.",
    "What I was shown of {} does not settle it.",
)
_CLOSING = (
    "So the answer is {}.",
    "Together this answers the question: {}.",
    "That is all I need; the answer is {}.",
)
