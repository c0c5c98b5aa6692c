"""Opens the corpus that an environment's `corpus` argument names."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from stepagent.envs.containers import SourceError
from stepagent.envs.core import checksum
from stepagent.envs.wikipedia import data
from stepagent.envs.wikipedia.corpus import Corpus, pool
from stepagent.envs.wikipedia.live import WIKIPEDIA, LiveCorpus
from stepagent.envs.wikipedia.questions import Question, pooled_pages
from stepagent.envs.wikipedia.sources import file_checksum, pages
from stepagent.envs.wikipedia.store import UNFINISHED, StoredCorpus, is_store, open_cached


def check_name(name: str) -> None:
    """Raises SourceError if `open_corpus` has no corpus of that name. Reads no file."""
    kind, _, url = name.partition(":")
    if name == "pooled":
        return
    if kind == "live":
        try:
            _live(url or WIKIPEDIA)
        except ValueError as error:
            raise SourceError(f"corpus {name!r}: {error}") from None
        return
    path = Path(name).expanduser()
    if is_store(path):
        return
    if path.is_file() and ".xml" in path.suffixes:
        raise SourceError(
            f"{path} is a dump: make a corpus from it with stepagent wikipedia-corpus {path} "
            "--out FOLDER, then give the folder"
        )
    if (path / UNFINISHED).is_file():
        raise SourceError(
            f"{path} is an unfinished corpus: run the same stepagent wikipedia-corpus again"
        )
    if not path.is_file() and not path.is_dir():
        raise SourceError(
            f"no corpus {name!r}: it is 'pooled', 'distractor', 'live', 'live:URL' of a MediaWiki "
            "API, a file, archive or folder of pages, or a folder made by stepagent "
            f"wikipedia-corpus (looked for {path.absolute()})"
        )


def open_corpus(
    name: str, dataset: str, source: str | Path | None, questions: Collection[Question]
) -> Corpus:
    """The corpus of that name: "pooled", "live", "live:URL", pages or a prepared folder.

    `questions`: those whose paragraphs "pooled" means; `source`: where they come from. Raises
    SourceError (a ValueError) where there is no such corpus.
    """
    check_name(name)
    if name == "pooled":
        return _bundled() if source is None else _pooled(dataset, questions)
    kind, _, url = name.partition(":")
    if kind == "live":
        return _live(url or WIKIPEDIA)
    path = Path(name).expanduser()
    if is_store(path):
        return StoredCorpus(path)
    return open_cached(file_checksum(path), pool(pages(path)))


def _bundled() -> StoredCorpus:
    """All pages of the bundled encyclopedia."""
    return open_cached(data.bundled_name(), data.bundled_pages())


def _pooled(dataset: str, questions: Collection[Question]) -> StoredCorpus:
    """The paragraphs of these questions, each once."""
    if not any(question.passages for question in questions):
        raise SourceError(
            f"these {dataset} questions come without paragraphs: give a corpus, such as "
            "corpus='live' or a file of pages"
        )
    pooled = pooled_pages(list(questions))
    parts = (part for page in pooled for part in (page.title, page.text))
    return open_cached(checksum(*parts), pool(pooled_pages(list(questions))))


@lru_cache(maxsize=8)
def _live(url: str) -> LiveCorpus:
    """One client per API, so that all environments of a process share its rate limit."""
    return LiveCorpus(url)
