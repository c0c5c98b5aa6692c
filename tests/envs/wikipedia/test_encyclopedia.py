"""The bundled encyclopedia: facts that agree, pages that tell them, questions that follow."""

import subprocess
import sys
from collections import Counter

import pytest

from stepagent.envs.core import checksum
from stepagent.envs.wikipedia import data, encyclopedia
from stepagent.envs.wikipedia.encyclopedia import facts, questions, wording
from stepagent.envs.wikipedia.encyclopedia.links import INFERENCES, LINKS

DATASETS = ("hotpotqa", "2wikimultihopqa", "musique")


@pytest.fixture(scope="module")
def entities():
    return facts.generate(0)


@pytest.fixture(scope="module")
def splits_by_dataset():
    return {dataset: questions.generate(dataset, 0) for dataset in DATASETS}


@pytest.fixture(scope="module")
def written(entities):
    return wording.write(entities, 0)


def test_facts_agree(entities):
    assert len(entities) >= 2000
    kinds = Counter(entity.kind for entity in entities.values())
    assert {"person", "town", "film", "novel", "album", "company", "event"} <= set(kinds)
    for title, entity in entities.items():
        assert entity.title == title
        known = entity.facts
        if entity.kind == "person":
            for parent in ("father", "mother"):
                if parent in known:
                    age = entity.year("born") - entities[known[parent]].year("born")
                    assert 18 <= age <= 60, (title, parent, age)
            if "father" in known:
                assert entities[known["father"]].facts["spouse"] == known["mother"]
                assert title.split()[-1] == known["father"].split()[-1]
            if "spouse" in known:
                assert entities[known["spouse"]].facts["spouse"] == title
            if "died" in known:
                assert 40 < entity.year("died") - entity.year("born") < 100
        for role in ("director", "star", "composer", "author", "performer"):
            if role in known:
                maker, year = entities[known[role]], entity.year("released")
                assert maker.year("born") + 20 <= year
                assert "died" not in maker.facts or year <= maker.year("died")
        for maker in ("studio", "publisher", "label"):
            if maker in known:
                assert entities[known[maker]].year("founded") < entity.year("released")
        if entity.kind == "region":
            assert entities[known["seat"]].facts["region"] == title
        if entity.kind == "country":
            region = entities[entities[known["capital"]].facts["region"]]
            assert region.facts["country"] == title


def test_pages_tell_their_facts_briefly(entities, written):
    openings = set()
    for title, entity in entities.items():
        page, sentence_of = written[title].page, written[title].sentences
        assert 1 <= len(page.sentences) <= 5
        assert len(page.text.split()) <= 80
        assert "{" not in page.text
        for relation in LINKS[entity.kind]:
            if relation in entity.facts:
                value = entity.facts[relation]
                value = entities[value].name if value in entities else value
                assert value in page.sentences[sentence_of[relation]], (title, relation)
        openings.add(page.sentences[0].replace(entity.name, "X")[:12])
    assert len(openings) > 100  # varied wording


@pytest.mark.parametrize("dataset", DATASETS)
def test_answers_follow_from_the_pages(dataset, entities, written, splits_by_dataset):
    splits = splits_by_dataset[dataset]
    texts = [q.text for qs in splits.values() for q in qs]
    assert len(set(texts)) == len(texts) == 1950
    ids = [q.task_id for qs in splits.values() for q in qs]
    assert len(set(ids)) == len(ids)
    for question in splits["test"]:
        assert all(hop.facts[0] in written[hop.title].page.text for hop in question.hops)
        assert all(hop.answer in hop.facts[0] for hop in question.hops)
        titles = [page.title for page in question.passages]
        assert len(set(titles)) == len(titles) == questions.DISTRACTORS[dataset]
        assert {hop.title for hop in question.hops} <= set(titles)
        last = question.hops[-1]
        if question.kind in ("comparison", "bridge_comparison"):
            names = [entities[hop.title].name for hop in question.hops]
            assert question.answers[0] in [*names, "yes", "no"]
            if question.answers[0] in ("yes", "no"):
                half = len(question.hops) // 2
                same = question.hops[half - 1].answer == last.answer
                assert question.answers[0] == ("yes" if same else "no")
        else:
            assert question.answers[0] == last.answer
            assert entities[question.hops[0].title].name in question.text
            for before, after in zip(question.hops, question.hops[1:], strict=False):
                assert entities[after.title].name == before.answer
            assert last.answer.lower() not in question.text.lower()


def test_kinds_are_those_of_the_data_sets(splits_by_dataset):
    kinds = {d: Counter(q.kind for q in splits_by_dataset[d]["train"]) for d in DATASETS}
    assert set(kinds["hotpotqa"]) == {"bridge", "comparison"}
    expected = {"compositional", "inference", "comparison", "bridge_comparison"}
    assert set(kinds["2wikimultihopqa"]) == expected
    assert set(kinds["musique"]) == {"2hop", "3hop1", "4hop1"}
    for dataset, counts in kinds.items():
        assert min(counts.values()) >= 90, (dataset, counts)
    for dataset in DATASETS[:2]:
        answers = Counter(q.answers[0] for q in splits_by_dataset[dataset]["train"])
        assert 0.6 < answers["yes"] / answers["no"] < 1.6
        assert answers.most_common(3)[2][1] < 60  # no answer but these two is worth guessing


def test_inferences_are_named_after_their_links(entities, splits_by_dataset):
    for question in splits_by_dataset["2wikimultihopqa"]["train"]:
        if question.kind != "inference":
            continue
        relative = next(r for r in INFERENCES if r in question.text)
        first, second = INFERENCES[relative]
        person = entities[question.hops[0].title]
        assert entities[person.facts[first]].facts[second] == question.answers[0]


def test_another_seed_makes_another_encyclopedia(entities):
    assert set(facts.generate(1)) != set(entities)


SHOW = """
from stepagent.envs.core import checksum
from stepagent.envs.wikipedia.encyclopedia import questions
print(checksum(*(p.title + p.text for p in questions.pages(0))))
print(checksum(*(str(q) for d in ("hotpotqa", "musique") for qs in
      questions.generate(d, 0).values() for q in qs)))
"""


def test_the_same_encyclopedia_in_every_process():
    texts = {
        subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(texts) == 1
    assert len(texts.pop().split()) == 2


def test_sizes_and_checksum():
    assert len(data.load("musique", "test")) == 300
    assert len(data.load("musique", "test", sizes=(10, 10, 10))) == 10
    assert data.source_checksum("musique", None) == data.source_checksum("hotpotqa", None)


def test_pages_and_questions_are_those_that_their_checksum_stands_for(splits_by_dataset):
    """Where this fails on purpose: record the new checksum of the texts, and renew CHECKSUM."""
    pages = (page.title + page.text for page in questions.pages(0))
    drawn = (
        repr(q) for splits in splits_by_dataset.values() for split in splits.values() for q in split
    )
    texts = checksum(*pages, *drawn)
    assert (texts, encyclopedia.CHECKSUM) == ("62ff1ef1adcb6728", "ec9201d5f3f572fc")
