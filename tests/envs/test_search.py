import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stepagent.envs.search import Index, analyse, build
from stepagent.envs.search.index import VERSION


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path))
    return tmp_path / "search"


def _corpus(size, seed=0, longest=30):
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(300)]
    weights = [1 / (i + 1) for i in range(300)]
    return [" ".join(rng.choices(words, weights, k=rng.randint(1, longest))) for _ in range(size)]


def _plain(documents, query, k):
    """BM25 by its formula, document by document, in Lucene's lengths."""
    terms = [analyse(text) for text in documents]
    mean = sum(map(len, terms)) / len(terms)
    frequency = Counter(word for words in terms for word in set(words))
    scores = []
    for number, words in enumerate(terms):
        counts = Counter(words)
        length = build._decoded_length(build._encoded_length(len(words)))
        norm = 0.9 * (0.6 + 0.4 * length / mean)
        score = sum(
            np.log(1 + (len(terms) - frequency[w] + 0.5) / (frequency[w] + 0.5))
            * (counts[w] / (counts[w] + norm))
            for w in analyse(query)
            if counts[w]
        )
        if score > 0:
            scores.append((number, score))
    return sorted(scores, key=lambda pair: (-round(pair[1], 5), pair[0]))[:k]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The men's T-shirts and 3.5mm jacks", ["men", "t", "shirt", "3.5mm", "jack"]),
        ("question:q us.we 1,000 2.5″ 3⁄4", ["question:q", "us.w", "1,000", "2.5", "3⁄4"]),
        ("easily assembled, easy assembly", ["easili", "assembl", "easi", "assembl"]),
        ("use us analogies technology", ["us", "us", "analog", "technolog"]),
        ("❤\ufe0f❤red™ __ café", ["❤\ufe0f", "❤", "red", "™", "café"]),
        ("\u4e2d\u6587 ok", ["\u4e2d", "\u6587", "ok"]),
        ("don\u2019t women\u2019s", ["don\u2019t", "women"]),
        ("", []),
        ("the of", []),
    ],
)  # fmt: skip
def test_analysis_is_lucenes(text, terms):
    assert analyse(text) == terms


def test_long_tokens_are_cut():
    assert [len(term) for term in analyse("x" * 600)] == [255, 255, 90]
    assert len(Index.build(["x" * 600, "y"], "long").search("x" * 255, 5)) == 1


def test_scores_are_bm25_by_its_formula():
    documents = _corpus(400, longest=120)
    index = Index.build(documents, "formula")
    assert len(index) == 400
    for query in ("word3", "word0 word1 word250", "word5 word5 word40 the", "word1 word2 word0"):
        hits, every = index.search(query, 25), dict(_plain(documents, query, 400))
        assert [score for _, score in hits] == pytest.approx(
            sorted(every.values(), reverse=True)[:25], rel=1e-4
        )
        assert [every[n] for n, _ in hits] == pytest.approx([s for _, s in hits], rel=1e-5)


def test_scores_are_those_of_bm25s():
    bm25s = pytest.importorskip("bm25s")
    documents = _corpus(300, seed=1, longest=39)  # lengths below 40 are exact in Lucene's byte
    index = Index.build(documents, "bm25s")
    other = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    other.index([analyse(text) for text in documents], show_progress=False)
    for query in ("word1 word7", "word100 word3 word2"):
        scores = other.get_scores(analyse(query))
        for number, score in index.search(query, 300):
            assert score == pytest.approx(float(scores[number]), rel=1e-5)


def test_skipping_common_terms_changes_nothing():
    rng = random.Random(3)
    documents = _corpus(20_000, seed=2)
    index = Index.build(documents, "skip")
    numbers = {w: index._term_number(w) for w in (f"word{i}" for i in range(300))}
    for _ in range(40):
        words = rng.sample(list(numbers), rng.randint(1, 8))
        dense = np.zeros(len(index))
        for word in words:
            numbers_found, scores = index._postings(numbers[word])
            dense[numbers_found] += scores
        dense = dense.astype(np.float32)
        best = np.lexsort((np.arange(len(dense)), -dense))[:50]
        expected = [int(n) for n in best if dense[n] > 0]
        assert [n for n, _ in index.search(" ".join(words), 50)] == expected


def test_nothing_known_finds_nothing():
    index = Index.build(["red shoes", "blue shoes"], "few")
    assert index.search("the", 5) == []
    assert index.search("umbrella \ud800", 5) == []
    assert index.search("shoes", 0) == []
    assert [n for n, _ in index.search("shoes", 5)] == [0, 1]


def test_documents_without_words_and_an_empty_corpus():
    index = Index.build(["", "red", "the"], "holes")
    assert len(index) == 3
    assert [n for n, _ in index.search("red", 3)] == [1]
    with pytest.raises(ValueError, match="no document"):
        Index.build([], "empty")
    assert Index.build(["the", "\u3002"], "stops").search("the", 3) == []


def test_the_cached_index_is_opened_without_reading_the_texts():
    def unread():
        raise AssertionError("the texts were read")

    first = Index.build(lambda: iter(["red shoes", "blue hats"]), "cached")
    assert Index.build(unread, "cached").search("hats", 1) == first.search("hats", 1)
    with pytest.raises(AssertionError):
        Index.build(unread, "another")


@pytest.mark.parametrize("damage", ["meta.json", "scores.npy", "terms.npy"])
def test_a_damaged_index_is_made_again(cache, damage):
    folder = Index.build(["red shoes"], "hurt").folder
    file = folder / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert Index.build(["red shoes"], "hurt").search("red", 1)[0][0] == 0


@pytest.mark.parametrize("key", ["", "../up", "a/b", "x" * 200])
def test_a_key_that_cannot_name_a_folder(key):
    with pytest.raises(ValueError, match="key"):
        Index.build(["red"], key)


def test_two_processes_make_one_index(cache):
    code = (
        "from stepagent.envs.search import Index\n"
        "i = Index.build((f'word{n % 7} thing{n}' for n in range(3000)), 'both')\n"
        "print(i.search('word3 thing10', 3))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)
    ]
    outputs = {process.communicate(timeout=120)[0] for process in started}
    assert len(outputs) == 1
    assert b"(3," in outputs.pop()
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [f"both.k0.9-b0.4.v{VERSION}"]


@pytest.mark.real_data
def test_hits_are_lucenes():
    folder = os.environ.get("STEPAGENT_DATA")
    if not folder:
        pytest.skip("STEPAGENT_DATA is not set: no recorded Lucene hits to compare with")
    shop = Path(folder) / "webshop"
    lines = (shop / "documents_1000.jsonl").read_text(encoding="utf-8").splitlines()
    documents = sorted((d["id"], d["contents"]) for d in map(json.loads, lines))
    index = Index.build((text for _, text in documents), "real")
    recorded = json.loads((shop / "upstream" / "lucene_top50.json").read_text(encoding="utf-8"))
    equal = 0
    for query in recorded:
        hits = [(documents[n][0], score) for n, score in index.search(query["q"], 50)]
        lucenes = [name for name, _ in query["hits"]]
        assert hits[0][1] == pytest.approx(query["hits"][0][1], rel=1e-3)
        equal += [name for name, _ in hits] == lucenes
    assert equal >= 98, f"only {equal} of {len(recorded)} lists of 50 are Lucene's"


def test_an_index_of_another_corpus_is_made_again(cache):
    mine = Index.build(["red fox"], "mine").folder
    other = Index.build(["blue whale", "grey seal"], "other").folder
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    index = Index.build(["red fox"], "mine")
    assert (index.key, len(index), index.search("fox", 1)[0][0]) == ("mine", 1, 0)
