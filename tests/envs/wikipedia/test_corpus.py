"""How titles are found, in memory and on disk alike."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from stepagent.envs.wikipedia.corpus import (
    Page,
    SmallCorpus,
    is_slip,
    key,
    next_part,
    page,
    pool,
    split_sentences,
)
from stepagent.envs.wikipedia.store import StoredCorpus, Writer, open_cached

PAGES = [
    page("Scott Derrickson", ["Scott Derrickson (born 1966) is a director. He lives in L.A. now."]),
    page("Kiss and Tell (1945 film)", ["A film starring Shirley Temple as Corliss Archer."]),
    page("Mercury (planet)", ["Mercury is the smallest planet."]),
    page("Mercury (element)", ["Mercury is a metal."]),
    page("Alû", ["In Akkadian mythology, Alû is a spirit."]),
    page("AC/DC", ["AC/DC are a rock band."]),
    page("!!!", ["!!! is a band."]),
    page("東京", ["東京 is the capital of Japan."]),
    page("Edward II", ["Edward II was a king of England."]),
    page("Super Bowl XLIX", ["Super Bowl XLIX was a football game."]),
    page("Simon &amp; Simon", ["Simon & Simon is a series."]),
    page("List of [x] things", ["Things in brackets."]),
]


@pytest.fixture(params=["memory", "disk"], scope="module")
def corpus(request, cache):
    return SmallCorpus(PAGES) if request.param == "memory" else open_cached("titles", PAGES)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("Scott Derrickson", "Scott Derrickson"),
        ("scott  derrickson", "Scott Derrickson"),
        ("Scott_Derrickson.", "Scott Derrickson"),
        ("Scott Derickson", "Scott Derrickson"),  # a slip of the pen
        ("Kiss and Tell", "Kiss and Tell (1945 film)"),
        ("mercury planet", "Mercury (planet)"),
        ("Alu", "Alû"),
        ("ac dc", "AC/DC"),
        ("!!!", "!!!"),
        ("東京", "東京"),
        ("Simon & Simon", "Simon & Simon"),
        ("Simon &amp; Simon", "Simon & Simon"),
        ("list of [x] things", "List of [x] things"),
    ],
)
def test_titles_are_found(corpus, query, title):
    result = corpus.find(query)
    assert isinstance(result, Page), result
    assert result.title == title


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("Mercury", {"Mercury (planet)", "Mercury (element)"}),  # two pages: the agent must choose
        ("Edward III", {"Edward II"}),  # a number is no slip of the pen
        ("Super Bowl XLVI", {"Super Bowl XLIX"}),
        ("Shirley Temple", {"Kiss and Tell (1945 film)"}),
        ("king of England", {"Edward II"}),
    ],
)
def test_others_are_similar(corpus, query, first):
    similar = corpus.find(query)
    assert isinstance(similar, list)
    assert similar[0] in first
    assert len(similar) <= 5
    assert all(corpus.has(title) for title in similar)


@pytest.mark.parametrize("query", ["", " ", "zzz qqq", "\ud800", "\x00", "?" * 50, "🜁" * 90])
def test_nothing_is_similar_to_nothing(corpus, query):
    assert corpus.find(query) == []


def test_pages_keep_their_text(corpus):
    by_title = {p.title: p for p in corpus}
    assert len(by_title) == len(PAGES)
    assert by_title["Scott Derrickson"].sentences == [
        "Scott Derrickson (born 1966) is a director.",
        "He lives in L.A. now.",
    ]


def test_keys():
    assert key("Ｆｕｌｌ　width") == "full width"
    assert key("don't") == key("dont") == key("Don’t")
    assert not is_slip("john smit", "john smith")  # too short a word to be sure
    assert is_slip("shakespeare", "shakespaere")
    assert not is_slip("jo smith", "jo smyth jr")
    assert next_part(next_part("A")) == "A (part 3)"


def test_sentences():
    text = 'He met J. R. Smith Jr. in St. Louis. "$3.5 million!" he said. (No. 5 came later.) Ok?'
    assert split_sentences(text) == [
        "He met J. R. Smith Jr. in St. Louis.",
        '"$3.5 million!" he said.',
        "(No. 5 came later.)",
        "Ok?",
    ]
    assert split_sentences("  ") == []
    assert split_sentences("in 1999. 12 people came") == ["in 1999.", "12 people came"]


def test_passages_of_one_title_become_parts():
    texts = [Page("A", "one"), Page("B", "x"), Page("A", "two"), Page("A", "one")]
    assert [p.title for p in pool(texts)] == ["A", "B", "A (part 2)"]


def test_a_store_that_was_stopped_goes_on(tmp_path):
    first = Writer(tmp_path)
    first.add(PAGES[0])
    first.save(at=1)
    first.add(PAGES[1])  # after the last save: lost
    first.close()
    with pytest.raises(ValueError, match="no corpus of version"):
        StoredCorpus(tmp_path)
    second = Writer(tmp_path)
    assert second.saved == {"at": 1}
    assert second.count == 1
    second.add(PAGES[2])
    second.redirect("Planet Mercury", "Mercury (planet)")
    second.redirect("Nowhere", "No such page")
    second.redirect("Scott Derrickson", "Mercury (planet)")  # there is a page of that title
    second.finish()
    corpus = StoredCorpus(tmp_path)
    assert [p.title for p in corpus] == ["Scott Derrickson", "Mercury (planet)"]
    assert corpus.find("planet mercury").title == "Mercury (planet)"
    assert corpus.find("Scott Derrickson").title == "Scott Derrickson"
    assert not corpus.has("Nowhere")
    assert {p.name for p in tmp_path.iterdir()} == {
        "corpus.json",
        "pages.bin",
        "offsets.npy",
        "keys.npy",
        "rows.npy",
    }


def test_a_damaged_store_is_named(tmp_path):
    writer = Writer(tmp_path)
    writer.add(PAGES[0])
    writer.finish()
    with (tmp_path / "pages.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="damaged"):
        StoredCorpus(tmp_path)
    with pytest.raises(ValueError, match="no page"):
        Writer(tmp_path / "empty").finish()


READ = """
import sys
from stepagent.envs.wikipedia.corpus import page
from stepagent.envs.wikipedia.store import open_cached
pages = [page(f"Title {i}", [f"Text number {i} of many words."]) for i in range(500)]
corpus = open_cached("together", pages)
print(corpus.find("Title 77").text, corpus.find("number 123"))
"""


def test_processes_build_and_share_one_corpus(cache):
    with ThreadPoolExecutor(4) as pool_:
        runs = [
            pool_.submit(
                subprocess.run, [sys.executable, "-c", READ], capture_output=True, text=True
            )
            for _ in range(4)
        ]
    results = [run.result() for run in runs]
    assert {r.returncode for r in results} == {0}, results[0].stderr
    assert len({r.stdout for r in results}) == 1
    assert results[0].stdout.startswith("Text number 77 of many words. ['Title 123'")
    assert not list((cache / "wikipedia").glob("corpus-[!t]*"))
    together = (cache / "wikipedia").glob("corpus-together-*")
    assert len([path for path in together if path.is_dir()]) == 1
