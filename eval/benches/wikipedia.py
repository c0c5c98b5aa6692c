"""The Wikipedia environments: search in up to a million passages, episodes, exact match.

Passages are generated: 60 words each, distributed by Zipf's law (the most frequent are English stop
words), with titles of three words. Queries are six words of a random passage. Each size is built
and searched in separate processes, with a separate cache that is deleted at the end.

The baseline is simple BM25, as in the package rank-bm25: a dict of counts for each passage, scored
one passage after another. It is measured up to `plain` passages; above that, the baseline column
holds our targets: 50 ms per search, 2 GB of memory. Memory is resident memory of a process that has
opened the corpus and searched, including mapped pages; for several processes, the sum of their
proportional shares (PSS).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import psutil

from stepagent import envs
from stepagent.envs.core import TextEnv
from stepagent.envs.search import analysis
from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.env import WikipediaEnv
from stepagent.envs.wikipedia.store import StoredCorpus, open_cached
from stepagent.eval.benches import Options, Row, settings

TARGET_MS, TARGET_GB = 50.0, 2.0
"""Targets for a million passages: median time of a search, and memory of the process."""


def bench(options: Options) -> list[Row]:
    """Searches, memory, building, processes that share an index, episodes, exact match.

    Settings: passages (sizes of the corpora), plain (the largest that the baseline is measured on),
    searches (at each size), processes (that share an index), tasks (of the test split).
    """
    args = settings(
        options,
        passages=[10_000, 100_000, 1_000_000],
        plain=100_000,
        searches=200,
        processes=4,
        tasks=100,
    )
    rows: list[Row] = []
    for size in args["passages"]:
        rows += _sized(size, size <= args["plain"], args["searches"], args["processes"])
    return rows + _episodes(options, args["tasks"])


# One size ----------------------------------------------------------------------------------------


def _sized(size: int, plain: bool, searches: int, processes: int) -> list[Row]:
    name = f"{size:,} passages"
    with tempfile.TemporaryDirectory(prefix="stepagent-bench-") as home:
        built = _in_process(home, _build, size)
        median, rss = _in_process(home, _search, size, searches)
        ((alone, _),) = _together(home, 1, size)
        shared = _together(home, processes, size)
    if plain:
        note, baseline = "", _in_process("", _plain, size, max(3, searches // 40))
    else:
        note, baseline = " (baseline: the target)", (built, TARGET_MS, TARGET_GB)
    rates, shares = zip(*shared, strict=True)
    who, all_of_one = f"{processes} processes, {name}", processes * rss
    less, more = Row.less_is_better, Row.more_is_better
    return [
        less(f"index of {name}{'' if plain else ' (no baseline)'}", built, baseline[0], "s"),
        less(f"search in {name}{note}", median, baseline[1], "ms, median"),
        less(f"memory, {name}{note}", rss, baseline[2], "GB"),
        more(f"{who} (baseline: one)", sum(rates), alone, "searches/s"),
        less(f"{who} (baseline: {processes} times one)", sum(shares), all_of_one, "GB"),
    ]


def _in_process(home: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of the function, called in a new process with that cache folder."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _use_cache, (home,)) as pool:
        return pool.submit(work, *arguments).result()


def _together(home: str, processes: int, size: int) -> list[tuple[float, float]]:
    """(searches per second, gigabytes) of each of several processes at the same time."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        ready = manager.Barrier(processes)
        with ProcessPoolExecutor(processes, context, _use_cache, (home,)) as pool:
            runs = [pool.submit(_share, size, ready, seed) for seed in range(processes)]
            return [run.result() for run in runs]


def _use_cache(home: str) -> None:
    if home:
        os.environ["STEPAGENT_CACHE"] = home


def _corpus(size: int) -> StoredCorpus:
    return open_cached(_name(size), passages(size))


def _name(size: int) -> str:
    return f"bench-{size}"


def _build(size: int) -> float:
    """Seconds to build corpus and index; the passages are generated beforehand."""
    invented = list(passages(size))
    start = time.perf_counter()
    assert len(open_cached(_name(size), invented).index) == size
    return time.perf_counter() - start


def _search(size: int, searches: int) -> tuple[float, float]:
    """Median milliseconds of a search, and gigabytes of the process."""
    corpus = _corpus(size)
    texts = list(queries(corpus, searches + 20, 0))
    for query in texts[:20]:
        corpus.find(query)
    median = _median_ms(corpus.find, texts[20:])
    return median, psutil.Process().memory_info().rss / 1e9


def _share(size: int, ready: Any, seed: int) -> tuple[float, float]:
    corpus = _corpus(size)
    texts = list(queries(corpus, 2000, seed + 1))
    for query in texts[:20]:
        corpus.find(query)
    ready.wait(600)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < 5:
        corpus.find(texts[done % len(texts)])
        done += 1
    rate = done / (time.perf_counter() - start)
    pss = psutil.Process().memory_full_info().pss / 1e9
    ready.wait(600)  # no process ends before all have been measured
    return rate, pss


def _plain(size: int, searches: int) -> tuple[float, float, float]:
    """Seconds to build, median milliseconds of a search, gigabytes."""
    pages = list(passages(size))
    start = time.perf_counter()
    index = PlainBM25([f"{page.title}\n{page.text}" for page in pages])
    built = time.perf_counter() - start
    texts = list(queries(pages, searches, 0))
    return built, _median_ms(index.search, texts), psutil.Process().memory_info().rss / 1e9


def _median_ms(search: Callable[[str], Any], texts: Sequence[str]) -> float:
    seconds = []
    for query in texts:
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


class PlainBM25:
    """Simple BM25: every passage is scored, one after the other."""

    def __init__(self, texts: Sequence[str], k1: float = 0.9, b: float = 0.4):
        self.k1, self.b = k1, b
        self.counts = [Counter(analysis.analyse(text)) for text in texts]
        self.lengths = np.array([sum(count.values()) for count in self.counts], np.float64)
        self.occurs = Counter(word for count in self.counts for word in count)

    def search(self, query: str, k: int = 5) -> list[int]:
        """Numbers of the best k passages."""
        scores = np.zeros(len(self.counts))
        norms = self.k1 * (1 - self.b + self.b * self.lengths / self.lengths.mean())
        for word in analysis.analyse(query):
            times = np.array([count.get(word, 0) for count in self.counts])
            passages = self.occurs.get(word, 0)
            idf = math.log(1 + (len(self.counts) - passages + 0.5) / (passages + 0.5))
            scores += idf * times / (times + norms)
        return [int(i) for i in np.argsort(-scores, kind="stable")[:k] if scores[i] > 0]


# Passages -----------------------------------------------------------------------------------------


def passages(count: int, words: int = 60, vocabulary: int = 300_000) -> Iterator[Page]:
    """Passages of invented words, distributed by Zipf's law; deterministic in the arguments."""
    rng = np.random.default_rng(0)
    chances = np.cumsum(1 / np.arange(1, vocabulary + 1) ** 1.05)
    chances /= chances[-1]
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lengths = 3 + np.minimum(9, np.log2(np.arange(1, vocabulary + 1)) / 2).astype(int)
    drawn = letters[rng.integers(0, len(letters), size=(vocabulary, 12))]
    known = ["".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
    known[: len(analysis.STOP_WORDS)] = sorted(analysis.STOP_WORDS)
    names = np.array(known, dtype=object)
    for start in range(0, count, 1000):
        size = min(1000, count - start)
        chosen = names[np.searchsorted(chances, rng.random((1000, words)))[:size]]
        titles = names[rng.integers(100, vocabulary, size=(1000, 2))[:size]]
        for number, (title, text) in enumerate(zip(titles, chosen, strict=True), start):
            half = words // 2
            yield Page(
                f"{title[0].title()} {title[1].title()} {number}",
                " ".join(text[:half]) + ".\n" + " ".join(text[half:]) + ".",
            )


def queries(pages: Sequence[Page] | StoredCorpus, count: int, seed: int) -> Iterator[str]:
    """Six words of a random passage each."""
    rng = np.random.default_rng([seed, 7])
    for _ in range(count):
        words = pages[int(rng.integers(len(pages)))].text.replace(".", "").split()
        yield " ".join(rng.choice(words, size=6, replace=False))


# Episodes -----------------------------------------------------------------------------------------


def _episodes(options: Options, tasks: int) -> list[Row]:
    """Steps per second of the expert's episodes, and the exact match of oracle and guess."""
    env = envs.make(options.env, split="test")
    assert isinstance(env, WikipediaEnv)
    chosen = env.tasks[:tasks]
    plans = []
    for task in chosen:
        env.reset(seed=0, options={"task_id": task})
        plans.append([action for _, action in env.expert_plan()])
    steps = sum(len(plan) for plan in plans)
    corpus = env.shared_corpus
    assert isinstance(corpus, StoredCorpus)
    plain = PlainBM25([f"{page.title}\n{page.text}" for page in corpus])
    our_seconds, plain_seconds = [], []
    for _ in range(options.repeats):
        start = time.perf_counter()
        hits = sum(_play(env, task, plan) for task, plan in zip(chosen, plans, strict=True))
        our_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for plan in plans[:: max(1, len(plans) // 10)]:
            for action in plan:
                plain.search(action)
        part = sum(len(plan) for plan in plans[:: max(1, len(plans) // 10)])
        plain_seconds.append((time.perf_counter() - start) * steps / part)
    guessed = sum(bm25_guess(env, task) for task in chosen)
    name = options.env.split("/")[-1]
    return [
        Row.more_is_better(
            f"{name} steps (baseline: a plain BM25 search per step)",
            steps / statistics.median(our_seconds),
            steps / statistics.median(plain_seconds),
            "steps/s",
        ),
        Row.more_is_better(
            f"{name} exact match of the oracle (baseline: BM25, then a guess)",
            hits / len(chosen),
            guessed / len(chosen),
            "EM",
        ),
    ]


def _play(env: TextEnv, task: str, plan: Sequence[str]) -> float:
    env.reset(seed=0, options={"task_id": task})
    for action in plan:
        *_, info = env.step(action)
    return info["metrics"]["em"]


def bm25_guess(env: WikipediaEnv, task: str) -> float:
    """Exact match of simple retrieval: searches for the question, opens the first hit, answers with
    the first name there that is not in the question (or a date or number, if one is asked for)."""
    env.reset(seed=0, options={"task_id": task})
    question = env.question.text
    shown = env.step(f"search[{question[:300]}]")[0]
    titles = re.findall(r"'([^']+)'", shown.split("Similar: ")[-1])
    if titles:
        shown = env.step(f"search[{titles[0]}]")[0]
    number = re.match(r"when|in which year|how many|what year", question, re.IGNORECASE)
    pattern = r"\d+ \w+ \d{4}|[\d,]{3,}" if number else r"[A-Z]\w+(?: [A-Z]\w+)*"
    names = [name for name in re.findall(pattern, shown) if name not in question and len(name) > 2]
    yes_no = re.match(r"(are|is|was|were|do|does|did)\b", question, re.IGNORECASE)
    answer = "yes" if yes_no else names[0] if names else titles[0] if titles else "no"
    return env.step(f"finish[{answer}]")[-1]["metrics"]["em"]
