"""WebShop against upstream's way of doing the same: steps, episodes, memory, search.

The baseline of steps and episodes is our version of upstream's way: the same rules, but every page
is written as HTML and parsed again with BeautifulSoup, twice per step (for what can be clicked, and
for the text), and every search is computed again. It omits upstream's Flask, Jinja and Java, so it
flatters upstream, which does 45–59 steps per second with 1,000 products. The baseline of search
adds up entire posting lists of the same index densely, as bm25s does; that of building is bm25s.
The baseline of memory is a separate shop for every environment or process, as in upstream.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from stepagent import envs
from stepagent.envs.search import Index, analyse
from stepagent.envs.webshop import catalogue, engine, generate, pages
from stepagent.envs.webshop.env import WebShopEnv
from stepagent.eval.benches import Options, Row, measure, settings

WEBSHOP = "stepagent/WebShop-v0"
_Episode = tuple[str, list[str]]
"""Task id, and the actions of one episode."""


def bench(options: Options) -> list[Row]:
    """All rows. Settings: data (a folder of real files; None: the bundled shop), goals, episodes
    (of the test split), environments (at once), processes, products (generated, for search).

    Raises ImportError if BeautifulSoup or bm25s is missing (extra `dev`).
    """
    args = settings(
        options,
        data=None,
        goals="human",
        episodes=60,
        environments=64,
        processes=4,
        products=100_000,
    )
    arguments = {
        "split": "test",
        "goals": args["goals"],
        "data": args["data"],
        "max_steps": 30,
    }
    env = envs.make(WEBSHOP, **arguments)
    assert isinstance(env, WebShopEnv)
    episodes = _episodes(env, args["episodes"])
    return [
        *_speed(env, episodes, options.repeats),
        *_at_once(arguments, episodes, args["environments"], options.repeats),
        *_memory(arguments, args["environments"]),
        *_search(env.shop, args["products"], args["processes"], options.repeats),
    ]


def _episodes(env: WebShopEnv, count: int) -> list[_Episode]:
    """For each task a search and four random clicks, then the expert's actions."""
    episodes = []
    rng = random.Random(0)
    for task in env.tasks[:count]:
        env.reset(seed=0, options={"task_id": task})
        plan = [action for _, action in env.expert_plan()]
        walk = [plan[0]]
        env.step(plan[0])
        for _ in range(4):
            clicks = [action for action in env.visit.actions() if "buy now" not in action]
            walk.append(rng.choice(clicks or plan[:1]))
            env.step(walk[-1])
        episodes.append((task, walk + plan))
    return episodes


def _play(env: WebShopEnv, episodes: Sequence[_Episode]) -> int:
    """Plays the episodes; returns the number of steps."""
    steps = 0
    for task, actions in episodes:
        env.reset(seed=0, options={"task_id": task})
        for action in actions:
            steps += 1
            if any(env.step(action)[2:4]):
                break
    return steps


class _PlainEnv(WebShopEnv):
    """The same environment with upstream's way of making pages (see the module's docstring)."""

    def begin(self, task_id: str) -> str:
        self.instruction = self.goal(task_id).instruction
        self._visit = _PlainVisit(
            self.shop, self.goal(task_id), search=lambda words: self.shop._search(words)
        )
        return self._visit.observation()


class _PlainVisit(engine.Visit):
    def act(self, action: str) -> bool:
        soup = _soup(_html(self.page))
        buttons = soup.find_all(class_=["btn", "product-link"])
        clickable = {tag.get_text().lower() for tag in buttons}
        clickable |= {tag.get("value") for tag in soup.select('input[type="radio"]')}
        name, _, rest = action.partition("[")
        return (name != "click" or rest[:-1].lower() in clickable) and super().act(action)

    def observation(self) -> str:
        texts = _soup(_html(self.page)).find_all(string=True)
        hidden = {"style", "script", "head", "title", "meta", "[document]"}
        seen = (t for t in texts if t.parent.name not in hidden and t != "\n")
        return " [SEP] ".join(t.strip() for t in seen)


def _soup(html: str) -> Any:
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")


_TAGS = {
    pages.TEXT: "<div class='row'>\n  <h4>{0}</h4>\n</div>\n",
    pages.BUTTON: "<form method='post' action='/x'>\n  <button class='btn'>{0}</button>\n</form>\n",
    pages.LINK: "<div class='row'>\n  <h4><a class='product-link' href='/x'>{0}</a></h4>\n</div>\n",
    pages.OPTION: "<input type='radio' name='o' value='{0}'>\n<label for='o'>{0}</label>\n",
}


def _html(page: pages.Page) -> str:
    body = "".join(_TAGS[kind].format(escape(text)) for kind, text in page.nodes)
    head = "<head>\n  <link rel='stylesheet' href='/style.css'>\n  <title>WebShop</title>\n</head>"
    shell = f"<body>\n<div class='container'>\n{body}</div>\n</body>"
    return f"<!DOCTYPE html>\n<html>\n{head}\n{shell}\n</html>"


def _speed(env: WebShopEnv, episodes: list[_Episode], repeats: int) -> list[Row]:
    plain = _PlainEnv(split=env.split, goals=env.goals, data=env.data, max_steps=env.max_steps)
    few = episodes[:6]
    for task, actions in few:  # both sides must show the same pages
        for side in (env, plain):
            side.reset(seed=0, options={"task_id": task})
        for action in actions:
            outcome, plain_outcome = env.step(action), plain.step(action)
            if outcome[:4] != plain_outcome[:4]:
                raise ValueError(f"the baseline shows another page after {action!r}")
            if outcome[2] or outcome[3]:
                break
    steps, fewer = _play(env, episodes), _play(plain, few)
    seconds = measure(lambda: _play(env, episodes), lambda: _play(plain, few), repeats)
    our_step, plain_step = seconds[0] / steps, seconds[1] / fewer
    resets = measure(lambda: _resets(env, episodes), lambda: _resets(plain, episodes), repeats)
    fresh = _uncached_search(env, episodes)
    count = len(episodes)
    return [
        Row.more_is_better("WebShop steps", 1 / our_step, 1 / plain_step, "steps/s"),
        Row.more_is_better(
            "WebShop episodes", count / seconds[0], len(few) / seconds[1], "episodes/s"
        ),
        Row.less_is_better("WebShop step that is no new search", *_clicks(env, plain, few), "ms"),
        Row.less_is_better("WebShop step that is a new search", *fresh, "ms"),
        Row.less_is_better(
            "WebShop reset", 1000 * resets[0] / count, 1000 * resets[1] / count, "ms"
        ),
    ]


def _resets(env: WebShopEnv, episodes: Sequence[_Episode]) -> None:
    for task, _ in episodes:
        env.reset(seed=0, options={"task_id": task})


def _clicks(
    ours: WebShopEnv, plain: WebShopEnv, episodes: Sequence[_Episode]
) -> tuple[float, float]:
    """Median milliseconds of a click, for both."""

    def times(env: WebShopEnv) -> list[float]:
        seconds = []
        for task, actions in episodes:
            env.reset(seed=0, options={"task_id": task})
            for action in actions:
                start = time.perf_counter()
                ended = any(env.step(action)[2:4])
                if action.startswith("click"):
                    seconds.append(time.perf_counter() - start)
                if ended:
                    break
        return seconds

    return 1000 * statistics.median(times(ours)), 1000 * statistics.median(times(plain))


def _uncached_search(env: WebShopEnv, episodes: Sequence[_Episode]) -> tuple[float, float]:
    """Median milliseconds of a new search: ours, and adding entire lists densely."""
    queries = [action[7:-1] for _, actions in episodes for action in actions if "search[" in action]
    index = env.shop.index
    return _search_ms(index, queries)


def _search_ms(index: Index, queries: Sequence[str]) -> tuple[float, float]:
    """Median milliseconds of a search: ours, and adding entire lists densely."""
    return (
        1000 * _median(lambda query: index.search(query, pages.MAX_HITS), queries),
        1000 * _median(lambda query: _dense(index, query), queries),
    )


def _median(work: Callable[[str], Any], queries: Sequence[str]) -> float:
    times = []
    for query in queries:
        start = time.perf_counter()
        work(query)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _dense(index: Index, query: str) -> np.ndarray:
    """The best 50, found as in bm25s: the scores of all documents, then a partition."""
    scores = np.zeros(len(index), np.float32)
    for word in analyse(query):
        if (number := index._term_number(word)) >= 0:
            documents, weights = index._postings(number)
            np.add.at(scores, documents, weights)
    best = np.argpartition(scores, -min(50, len(scores)))[-50:]
    return best[np.argsort(-scores[best], kind="stable")]


def _at_once(
    arguments: dict[str, Any], episodes: list[_Episode], count: int, repeats: int
) -> list[Row]:
    """`count` environments stepped in turn, against plain ones."""
    ours = [envs.make(WEBSHOP, **arguments) for _ in range(count)]
    plain = [_PlainEnv(**arguments) for _ in range(count)]

    def rounds(side: Sequence[Any], actions: int) -> None:
        for i, env in enumerate(side):
            env.reset(seed=0, options={"task_id": episodes[i % len(episodes)][0]})
        for number in range(actions):
            for i, env in enumerate(side):
                env.step(episodes[i % len(episodes)][1][number])

    our_seconds, plain_seconds = measure(
        lambda: rounds(ours, 4), lambda: rounds(plain[:8], 4), repeats
    )
    return [
        Row.more_is_better(
            f"WebShop steps, {count} environments",
            4 * count / our_seconds,
            4 * 8 / plain_seconds,
            "steps/s",
        )
    ]


_MEMORY = """
import json, sys
from stepagent import envs
from stepagent.envs.webshop import engine, nouns
count, kind, arguments = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
nouns.nouns("a warm up")
opened = []
for i in range(count):
    if kind == "own":
        engine.open_shop.cache_clear()
    env = envs.make("stepagent/WebShop-v0", **arguments)
    env.reset(seed=i)
    for _, action in env.expert_plan():
        env.step(action)
    opened.append(env)
print("done", flush=True)
sys.stdin.read()
"""


_SEARCHING = """
import sys
from stepagent.envs.webshop import catalogue, engine
shop = engine.Shop(catalogue.make(sys.argv[1], iter(())), 0)
for number in range(0, len(shop), max(1, len(shop) // 300)):
    shop.search(shop.catalogue.product(number).title)
print("done", flush=True)
sys.stdin.read()
"""


def _process(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _megabytes(processes: Sequence[subprocess.Popen[str]]) -> tuple[float, float]:
    """Megabytes of the processes together, and what they would need without sharing, once all have
    played: the sum of their proportional and of their resident set sizes. Ends them.
    """
    import psutil

    for process in processes:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise ValueError("a process of the memory benchmark failed")
    memories = [psutil.Process(process.pid).memory_full_info() for process in processes]
    for process in processes:
        process.communicate("")
    return sum(memory.pss for memory in memories) / 1e6, sum(
        memory.rss for memory in memories
    ) / 1e6


def _memory(arguments: dict[str, Any], environments: int) -> list[Row]:
    """Memory of a process with one and with many environments, after each has played."""
    arguments_json = json.dumps(arguments)
    one, _ = _megabytes([_process(_MEMORY, "1", "shared", arguments_json)])
    many, _ = _megabytes([_process(_MEMORY, str(environments), "shared", arguments_json)])
    eight, _ = _megabytes([_process(_MEMORY, "8", "own", arguments_json)])
    own = one + (environments - 1) * max(0.0, eight - one) / 7
    return [
        Row.less_is_better("WebShop memory, 1 environment", one, one, "MB"),
        Row.less_is_better(f"WebShop memory, {environments} environments", many, own, "MB"),
    ]


def _search(shop: engine.Shop, products: int, processes: int, repeats: int) -> list[Row]:
    """Building an index against bm25s; search among many products; processes that share it."""
    texts = [product.index_text() for product in shop.catalogue]
    times = iter(range(1_000_000))
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> None:
            from stepagent.envs.search import build

            build.write(_new_folder(folder, next(times)), texts, "bench", 0.9, 0.4, 1)

        built = measure(ours, lambda: _bm25s(texts), repeats)
    key = f"bench-{generate.CHECKSUM}-{products}"
    many = catalogue.make(key, generate.products(-(-products // 60)))
    large = engine.Shop(many, 0)
    rng = random.Random(0)
    rows = [int(many.goals("human")[rng.randrange(len(many))][0]) for _ in range(60)]
    queries = [str(many.product(row).wishes[0]["instruction"]) for row in rows]
    _search_ms(large.index, queries[:10])
    milliseconds = _search_ms(large.index, queries)
    together = _megabytes([_process(_SEARCHING, key) for _ in range(processes)])
    return [
        Row.less_is_better(f"WebShop index of {len(texts)} products", *built, "s"),
        Row.less_is_better(f"WebShop search among {len(many):,} products", *milliseconds, "ms"),
        Row.less_is_better(
            f"WebShop memory, {processes} processes searching them", *together, "MB"
        ),
    ]


def _new_folder(folder: str, number: int) -> Any:
    from pathlib import Path

    path = Path(folder) / str(number)
    path.mkdir()
    return path


def _bm25s(texts: Sequence[str]) -> None:
    import bm25s

    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
    index.index([analyse(text) for text in texts], show_progress=False)
