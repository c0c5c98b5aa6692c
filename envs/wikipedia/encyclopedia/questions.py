"""Questions on the bundled encyclopedia, of each data set's kinds.

A chain of relations from one page to the next becomes a nested noun phrase ("the mother of the
director of the film …") and, link by link, the sub-questions; two chains whose ends are compared
become a comparison. Every link is stated by a sentence of the page from which it starts.

| data set        | kinds                                                                      |
|-----------------|----------------------------------------------------------------------------|
| HotpotQA        | bridge (2 links), comparison (of values, and yes / no)                     |
| 2WikiMultihopQA | compositional (2 links), inference (kin), comparison, bridge_comparison    |
| MuSiQue         | 2hop, 3hop1, 4hop1: chains of that length, with their decomposition        |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from stepagent.envs.wikipedia.corpus import Page, pool
from stepagent.envs.wikipedia.encyclopedia import facts, names, wording
from stepagent.envs.wikipedia.encyclopedia.facts import Encyclopedia, Entity
from stepagent.envs.wikipedia.encyclopedia.links import (
    COMPARED,
    INFERENCES,
    LINKS,
    MAKERS,
    NAMED,
    SHARED,
    Link,
)
from stepagent.envs.wikipedia.encyclopedia.wording import Written
from stepagent.envs.wikipedia.questions import Hop, Question

_SIZES = {"train": 1500, "dev": 150, "test": 300}
"""Questions of each split and data set."""
DISTRACTORS = {"hotpotqa": 10, "2wikimultihopqa": 10, "musique": 20}
"""Paragraphs that a question comes with, the supporting ones among them."""
_Draw = Callable[["_Asker"], Question | None]


def pages(seed: int) -> list[Page]:
    """All pages of the encyclopedia."""
    return [w.page for w in wording.write(facts.generate(seed), seed).values()]


def generate(dataset: str, seed: int) -> dict[str, list[Question]]:
    """The questions of each split (no text is in two of them)."""
    entities = facts.generate(seed)
    written = wording.write(entities, seed)
    rng = random.Random(f"questions {dataset} {seed}")
    asker = _Asker(dataset, entities, written, rng)
    draws, weights = zip(*_KINDS[dataset], strict=True)
    by_text: dict[str, Question] = {}
    while len(by_text) < sum(_SIZES.values()):
        question = rng.choices(draws, weights)[0](asker)
        if question is not None:
            by_text.setdefault(question.text, question)
    questions, splits, begin = list(by_text.values()), {}, 0
    for split, size in _SIZES.items():
        splits[split] = questions[begin : begin + size]
        begin += size
    return splits


class _Asker:
    """Draws questions; each `ask_…` returns None if the draw fails."""

    def __init__(
        self, dataset: str, entities: Encyclopedia, written: dict[str, Written], rng: random.Random
    ):
        self.dataset, self.entities, self.written, self.rng = dataset, entities, written, rng
        self.of: dict[str, list[Entity]] = {}
        for entity in entities.values():
            self.of.setdefault(entity.kind, []).append(entity)
        self.titles = list(entities)
        self.count = 0

    # Parts of questions ---------------------------------------------------------------------------

    def link(self, entity: Entity, relation: str) -> Link:
        return LINKS[entity.kind][relation]

    def name_of(self, entity: Entity) -> str:
        """How a question names a page's subject."""
        return NAMED.get(entity.kind, "{}").format(entity.name)

    def called(self, value: str) -> str:
        """An answer: a page's subject by its name, any other value unchanged."""
        return self.entities[value].name if value in self.entities else value

    def hop(self, entity: Entity, relation: str) -> Hop:
        written, value = self.written[entity.title], entity.facts[relation]
        return Hop(
            title=entity.title,
            facts=(written.page.sentences[written.sentences[relation]],),
            question=self.link(entity, relation).question_forms[0].format(self.name_of(entity)),
            answer=self.called(value),
            text=written.page.text,
        )

    def walk(self, start: Entity, length: int) -> list[tuple[Entity, str]] | None:
        """A chain of (page, relation) that visits no page twice, or None."""
        steps: list[tuple[Entity, str]] = []
        entity, seen = start, {start.title}
        for number in range(length):
            last = number == length - 1
            open_ = [
                relation
                for relation in LINKS[entity.kind]
                if relation in entity.facts
                and entity.facts[relation] not in seen
                and (last or entity.facts[relation] in self.entities)
                # That a director is a film director needs no search.
                and (relation != "occupation" or not steps or steps[-1][1] in _KIN)
            ]
            if not open_:
                return None
            relation = self.rng.choice(open_)
            steps.append((entity, relation))
            seen.add(value := entity.facts[relation])
            if not last:
                entity = self.entities[value]
        return steps

    def phrase(self, steps: Sequence[tuple[Entity, str]]) -> str:
        """A noun phrase for where the chain leads."""
        phrase = self.name_of(steps[0][0])
        for entity, relation in steps:
            phrase = self.rng.choice(self.link(entity, relation).phrases).format(phrase)
        return phrase

    def question(self, kind: str, text: str, answer: str, hops: Sequence[Hop]) -> Question:
        self.count += 1
        entity = self.entities.get(answer)
        spoken = entity.name if entity else answer
        aliases = () if entity else _date_aliases(answer)
        number = f"{self.count:05d}"
        name = f"{kind}__{number}" if self.dataset == "musique" else number
        passages = self._passages(hops)
        return Question(name, kind, _capital(text), (spoken, *aliases), tuple(hops), passages)

    def _passages(self, hops: Sequence[Hop]) -> tuple[Page, ...]:
        """The supporting pages among pages that they mention or that are drawn, in any order."""
        titles = dict.fromkeys(hop.title for hop in hops)
        while len(titles) < DISTRACTORS[self.dataset]:
            titles[self.rng.choice(self.titles)] = None
        drawn = self.rng.sample(list(titles), len(titles))
        return tuple(pool(self.written[title].page for title in drawn))

    # Kinds of questions ---------------------------------------------------------------------------

    def chain(self, kind: str, length: int) -> Question | None:
        """A chain from a page that the question names."""
        start = self.rng.choice(self.of[self.rng.choice(_STARTS)])
        steps = self.walk(start, length)
        if steps is None:
            return None
        *before, (entity, relation) = steps
        form = self.rng.choice(self.link(entity, relation).question_forms)
        text = form.format(self.phrase(before))
        answer = entity.facts[relation]
        if self.called(answer).lower() in text.lower():
            return None
        return self.question(kind, text, answer, [self.hop(*step) for step in steps])

    def inference(self) -> Question | None:
        """A relative whom no page calls so."""
        relative, (first, second) = self.rng.choice(list(INFERENCES.items()))
        person = self.rng.choice(self.of["person"])
        middle = self.entities.get(person.facts.get(first, ""))
        if middle is None or second not in middle.facts:
            return None
        text = self.rng.choice(("Who was the {} of {}?", "Who is {1}'s {0}?"))
        hops = [self.hop(person, first), self.hop(middle, second)]
        text = text.format(relative, person.name)
        return self.question("inference", text, middle.facts[second], hops)

    def comparison(self) -> Question | None:
        """Two pages, compared by a value of each."""
        if self.rng.random() < 0.35:
            return self._same("comparison", [], "person")
        kind, relation, forms = self.rng.choice(COMPARED)
        return self._ranked("comparison", [], relation, forms, self._two(kind))

    def bridge_comparison(self) -> Question | None:
        """Two works, compared by a value of who made them."""
        kind, role, forms = self.rng.choice(MAKERS)
        if self.rng.random() < 0.4:
            return self._same("bridge_comparison", [role], kind)
        return self._ranked("bridge_comparison", [role], "born", forms, self._two(kind))

    def _two(self, kind: str) -> list[Entity]:
        return self.rng.sample(self.of[kind], 2)

    def _ends(
        self, pair: Sequence[Entity], path: Sequence[str]
    ) -> tuple[list[Entity], list[Hop]] | None:
        """Where the path leads from both, and the hops on the way; None if they meet."""
        hops, ends = [], []
        for entity in pair:
            for relation in path:
                hops.append(self.hop(entity, relation))
                entity = self.entities[entity.facts[relation]]
            ends.append(entity)
        return None if ends[0] is ends[1] else (ends, hops)

    def _ranked(
        self,
        kind: str,
        path: Sequence[str],
        relation: str,
        forms: Sequence[tuple[str, bool]],
        pair: Sequence[Entity],
    ) -> Question | None:
        ends_and_hops = self._ends(pair, path)
        if ends_and_hops is None:
            return None
        ends, hops = ends_and_hops
        one, two = (_number(end.facts[relation]) for end in ends)
        if one == two:
            return None
        form, smallest = self.rng.choice(forms)
        answer = pair[0] if (one < two) == smallest else pair[1]
        text = form.format(pair[0].name, pair[1].name)
        hops = _in_turn(hops, [self.hop(end, relation) for end in ends])
        return self.question(kind, text, answer.title, hops)

    def _same(self, question_kind: str, path: Sequence[str], kind: str) -> Question | None:
        """Whether two people come from the same town (yes as often as no)."""
        relation, form = "birthplace", self.rng.choice(SHARED)
        same = self.rng.random() < 0.5
        for first in self.rng.sample(self.of[kind], 50):
            if other := self._matching(first, path, relation, same):
                break
        ends_and_hops = self._ends([first, other], path) if other else None
        if other is None or ends_and_hops is None:
            return None
        ends, hops = ends_and_hops
        subjects = [
            self.phrase([(entity, path[0])]) if path else entity.name for entity in (first, other)
        ]
        hops = _in_turn(hops, [self.hop(end, relation) for end in ends])
        return self.question(question_kind, form.format(*subjects), "yes" if same else "no", hops)

    def _matching(
        self, first: Entity, path: Sequence[str], relation: str, same: bool
    ) -> Entity | None:
        """Another of its kind with another end, which shares the first one's value or does not."""
        mine = self._end(first, path)
        others = self.rng.sample(self.of[first.kind], len(self.of[first.kind]))
        for other in others:
            end = self._end(other, path)
            if end is not mine and (end.facts[relation] == mine.facts[relation]) == same:
                return other
        return None

    def _end(self, entity: Entity, path: Sequence[str]) -> Entity:
        for relation in path:
            entity = self.entities[entity.facts[relation]]
        return entity


def _in_turn(bridges: Sequence[Hop], ends: Sequence[Hop]) -> list[Hop]:
    """First all of one side, then all of the other."""
    half = len(bridges) // 2
    return [*bridges[:half], ends[0], *bridges[half:], ends[1]]


def _number(value: str) -> tuple[int, ...]:
    """A date, a year or a number with commas, to be compared."""
    parts = value.split()
    if len(parts) == 3:
        return int(parts[2]), names.MONTHS.index(parts[1]), int(parts[0])
    return (int(value.replace(",", "")),)


def _date_aliases(value: str) -> tuple[str, ...]:
    """`4 March 1931` may also be answered as `March 4, 1931`."""
    parts = value.split()
    return (
        (f"{parts[1]} {parts[0]}, {parts[2]}",)
        if len(parts) == 3 and parts[1] in names.MONTHS
        else ()
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_KIN = {"father", "mother", "spouse"}
_STARTS = (
    ["film"] * 5 + ["novel"] * 3 + ["album"] * 3 + ["person"] * 3
    + ["company", "landmark", "event", "university"]
)  # fmt: skip
_KINDS: dict[str, list[tuple[_Draw, float]]] = {
    # data set: (how a question is drawn, how often)
    "hotpotqa": [(lambda a: a.chain("bridge", 2), 0.75), (_Asker.comparison, 0.25)],
    "2wikimultihopqa": [
        (lambda a: a.chain("compositional", 2), 0.4),
        (_Asker.inference, 0.26),
        (_Asker.comparison, 0.17),
        (_Asker.bridge_comparison, 0.17),
    ],
    "musique": [
        (lambda a: a.chain("2hop", 2), 0.5),
        (lambda a: a.chain("3hop1", 3), 0.3),
        (lambda a: a.chain("4hop1", 4), 0.2),
    ],
}
