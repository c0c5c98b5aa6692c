"""Live Wikipedia against a local server that answers as the MediaWiki API does, or fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from stepagent import envs
from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.live import LiveCorpus, LiveError, user_agent
from tests.envs.wikipedia.records import hotpot, write_array
from tests.servers import Scripted, running

PAGES = {
    "Ada Lovelace": "Augusta Ada King, Countess of Lovelace (1815 – 1852) was a writer. She wrote "
    "the first program.\nShe met Charles Babbage in 1833.\n\n\n== Early life ==\nAda was born in "
    "London.",
    "Mercury": None,  # a disambiguation page
    "Mercury (planet)": "Mercury is a planet.",
    "AC/DC": "AC/DC are a band.",
    "Stub": "",
}
REDIRECTS = {"Countess of Lovelace": "Ada Lovelace"}


class Wiki(Scripted):
    """Answers in the API's own shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.url = f"{self.address}/w/api.php"

    @property
    def agents(self) -> list[str]:
        return [headers.get("User-Agent", "") for headers in self.headers]

    def read(self, path: str, body: bytes) -> Any:
        return {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}

    def answer(self, query: dict[str, str]) -> bytes:
        return json.dumps(self.reply(query)).encode()

    def reply(self, query: dict[str, str]) -> dict[str, Any]:
        if "srsearch" in query:
            words = set(query["srsearch"].lower().split())
            hits = [
                {"ns": 0, "title": title, "pageid": 100 + i}
                for i, title in enumerate(PAGES)
                if words & set(f"{title} {PAGES[title]}".lower().split())
            ]
            return {
                "batchcomplete": True,
                "continue": {"sroffset": 5, "continue": "-||"},
                "query": {"searchinfo": {"totalhits": len(hits)}, "search": hits[:5]},
            }
        titles = query["titles"]
        title = titles[:1].upper() + titles[1:].replace("_", " ")
        reply: dict[str, Any] = {}
        if title != titles:
            reply["normalized"] = [{"fromencoded": False, "from": titles, "to": title}]
        if title in REDIRECTS:
            reply["redirects"] = [{"from": title, "to": REDIRECTS[title]}]
            title = REDIRECTS[title]
        if title not in PAGES:
            reply["pages"] = [{"ns": 0, "title": title, "missing": True}]
        else:
            page: dict[str, Any] = {"pageid": 7, "ns": 0, "title": title}
            page["extract"] = PAGES[title]
            if PAGES[title] is None:
                page["extract"] = f"{title} may refer to:\nMercury (planet)"
                page["pageprops"] = {"disambiguation": ""}
            reply["pages"] = [page]
        return {"batchcomplete": True, "query": reply}


@pytest.fixture
def wiki(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Wiki]:
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "cache"))
    server = Wiki()
    with running(server, monkeypatch):
        yield server


def client(wiki: Wiki, **options: Any) -> LiveCorpus:
    settings = {"backoff": 0.01, "retries": 2, "timeout": 5.0, "rate": 1000.0, **options}
    return LiveCorpus(wiki.url, **settings)


@pytest.mark.parametrize(
    "text",
    ["Ada Lovelace", "ada_Lovelace", "Countess of Lovelace", "ada lovelace", "Ada Lovelase"],
)
def test_pages_by_title_redirect_and_slip(wiki: Wiki, text: str):
    result = client(wiki).find(text)
    assert isinstance(result, Page)
    assert result.title == "Ada Lovelace"
    assert [len(paragraph) for paragraph in result.paragraphs] == [2, 1, 1]
    assert "==" not in result.text


@pytest.mark.parametrize("text", ["Mercury", "first program", "Ada|Mercury", "[Ada]", "Stub"])
def test_others_are_similar(wiki: Wiki, text: str):
    similar = client(wiki).find(text)
    assert isinstance(similar, list)
    assert set(similar) <= set(PAGES)
    if text == "Mercury":
        assert "Mercury (planet)" in similar
    asked_for = [query.get("titles") for query in wiki.seen]
    assert not any("|" in (title or "") or "[" in (title or "") for title in asked_for)


def test_requests_say_who_asks_and_what(wiki: Wiki, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STEPAGENT_CONTACT", "me@example.org")
    client(wiki).find("AC/DC")
    assert wiki.agents[0].startswith("StepAgent/")
    assert "me@example.org" in wiki.agents[0] == user_agent()
    query = wiki.seen[0]
    assert query["action"] == "query"
    assert (query["format"], query["formatversion"]) == ("json", "2")
    assert query["titles"] == "AC/DC"
    assert query["redirects"] == "1"
    assert query["maxlag"] == "5"


def test_answers_are_kept(wiki: Wiki):
    one = client(wiki).find("AC/DC")
    again = client(wiki)
    assert again.find("AC/DC") == one
    assert again.requests == 0
    assert len(wiki.seen) == 1


def test_a_damaged_cache_file_is_asked_for_again(wiki: Wiki, tmp_path):
    client(wiki).find("AC/DC")
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text("{cut")
    assert client(wiki).find("AC/DC").title == "AC/DC"
    assert len(wiki.seen) == 2


def test_the_rate_is_kept(wiki: Wiki):
    corpus = client(wiki, rate=10.0)
    threads = [threading.Thread(target=corpus.find, args=(f"T {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gaps = [b - a for a, b in zip(wiki.times, wiki.times[1:], strict=False)]
    assert len(wiki.times) == 8
    assert sum(gaps) >= 0.6


LAG = json.dumps(
    {"error": {"code": "maxlag", "info": "Waiting for 10.64.0.1: 6 seconds lagged.", "lag": 6}}
)


@pytest.mark.parametrize(
    ("status", "body"),
    [(429, ""), (500, "x"), (503, ""), (200, "<html>"), (200, "[]"), (200, LAG), (200, "")],
)
def test_what_passes_is_tried_again(wiki: Wiki, status: int, body: str):
    wiki.plan(status, body)
    wiki.plan(status, body)
    assert client(wiki).find("AC/DC").title == "AC/DC"
    assert len(wiki.seen) == 3
    for _ in range(3):
        wiki.plan(status, body)
    with pytest.raises(LiveError, match=r"cannot be reached .*3 attempts"):
        client(wiki).find("Ada Lovelace")


MALFORMED = [
    "{}",
    '{"query": []}',
    '{"query": {}}',
    '{"query": {"pages": {}}}',
    '{"query": {"pages": ["x"]}}',
    '{"query": {"pages": [{"extract": "x"}]}}',
    '{"query": {"pages": [{"title": "AC/DC", "extract": ["x"]}]}}',
    '{"query": {"pages": [{"title": "AC/DC", "extract": "x", "pageprops": 3}]}}',
    '{"query": {"search": {}}}',
    '{"query": {"search": []}}',
    '{"query": {"search": [{"title": "AC/DC"}]}}',
    '{"query": {"pages": []}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_answers_are_never_kept(wiki: Wiki, tmp_path, body: str):
    wiki.plan(200, body)
    assert client(wiki).find("AC/DC").title == "AC/DC"
    (cached,) = (tmp_path / "cache" / "wikipedia" / "live").rglob("*.json")
    asked = len(wiki.seen)
    cached.write_text(json.dumps(json.loads(body).get("query")) if body[0] == "{" else body)
    assert client(wiki).find("AC/DC").title == "AC/DC"
    assert len(wiki.seen) == asked + 1, "what an older version has kept is asked for again"


def test_retry_after_is_honoured(wiki: Wiki):
    wiki.plan(429, "", Retry_After="0.5")
    client(wiki).find("AC/DC")
    assert wiki.times[1] - wiki.times[0] >= 0.5


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, "", "status 403"),
        (404, "", "status 404"),
        (200, '{"error": {"code": "badvalue", "info": "x"}}', "refuses .*badvalue"),
    ],
)
def test_what_no_retry_helps(wiki: Wiki, status: int, body: str, said: str):
    wiki.plan(status, body)
    with pytest.raises(LiveError, match=said):
        client(wiki).find("AC/DC")
    assert len(wiki.seen) == 1


def test_a_slow_server_is_given_up(wiki: Wiki):
    for _ in range(2):
        wiki.plan(200, "{}", wait=2.0)
    began = time.monotonic()
    with pytest.raises(LiveError, match="no answer in time"):
        client(wiki, timeout=0.2, retries=1).find("AC/DC")
    assert time.monotonic() - began < 1.9


def test_an_episode_outlives_an_api_that_is_down(wiki: Wiki, tmp_path):
    path = write_array(tmp_path / "q.json", [hotpot(i) for i in range(10)])
    env = envs.make("stepagent/HotpotQA-v0", data=str(path), corpus=f"live:{wiki.url}")
    env.reset(seed=0)
    env.corpus.retries, env.corpus.backoff = 1, 0.01
    assert env.step("search[Ada Lovelace]")[0].startswith("Augusta Ada King")
    wiki.plan(503)
    wiki.plan(503)
    observation, reward, done, _, info = env.step("search[AC/DC]")
    assert observation.startswith("The encyclopedia at http://127.0.0.1")
    assert observation.endswith("Try again, or another action.")
    assert (reward, done, info["valid"]) == (0.0, False, False)
    assert env.step("search[AC/DC]")[0] == "AC/DC are a band."
    assert env.step("search[Babbage]")[0] == "Could not find Babbage. Similar: ['Ada Lovelace']."
    assert env.step("finish[Paris]")[1] == 1.0


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"rate": 0}])
def test_wrong_options(options: dict[str, Any]):
    with pytest.raises(ValueError, match="wants timeout"):
        LiveCorpus(**options)
    with pytest.raises(ValueError, match="http://"):
        LiveCorpus("wikipedia.org")
