"""The project's search: BM25 as Lucene computes it, over an index that processes share.

The scores are those of Lucene's `BM25Similarity` as Pyserini sets it (k1 = 0.9, b = 0.4), lengths
in Lucene's lossy one-byte form; ties come in the order of the documents (Pyserini sorts them by the
documents' names, so index in that order to get its order). `analysis` prepares the texts. As in
bm25s (Lù, 2024) the index holds finished scores, so a search only adds. In addition,

- it is built in a stream (a million documents in about a gigabyte) and memory-mapped, including
  the vocabulary: only the pages that searches touch are resident, once for all processes;
- a search reads the lists of rare terms first and only looks candidates up in those of common ones,
  once no other document can reach the first k (MaxScore; Turtle and Flood, 1995). The result
  is exact.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from stepagent.envs.search import build
from stepagent.envs.search.analysis import analyse
from stepagent.files import build_once, cache_folder, read_text

VERSION = 1
_MAX_QUERY = 1000
"""Terms of a query that are used (Lucene allows 1,024 clauses)."""
Texts = Iterable[str] | Callable[[], Iterable[str]]


class Index:
    """A memory-mapped BM25 index. `Index.build` opens or builds one.

    Attributes
    ----------
    key: the checksum of the corpus, as the caller gave it.
    folder: where its files are.
    """

    def __init__(self, folder: Path):
        meta = json.loads(read_text(folder / "meta.json"))
        if meta.get("version") != VERSION:
            raise ValueError(f"{folder}: index version {meta.get('version')!r}, not {VERSION}")
        self.folder, self.key = folder, str(meta["key"])
        self._size = int(meta["documents"])
        # As plain views of the mapped files: slicing a memmap object takes ten times as long.
        arrays = {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in build.ARRAYS}
        if {name: len(array) for name, array in arrays.items()} != meta["lengths"]:
            raise ValueError(f"{folder}: the index's files do not belong together")
        self._terms, self._offsets = arrays["terms"].data, arrays["offsets"].data
        self._starts, self._best = arrays["starts"].data, arrays["best"].data
        self._documents, self._scores = arrays["documents"], arrays["scores"]
        self._term_number = lru_cache(maxsize=65_536)(self._bisect)

    @classmethod
    def build(cls, texts: Texts, key: str, *, k1: float = 0.9, b: float = 0.4) -> Index:
        """The index of a corpus: opened if it is cached, else built (once, by one process).

        Parameters
        ----------
        texts: the documents in order, or a function that gives them; read only to build the index.
        key: a checksum of the corpus (letters, digits, `-`, `_`); another corpus needs another key.
        k1, b: BM25's saturation of repeated words and its discount of long documents.

        Raises ValueError for a key that cannot name a folder or for a corpus without documents, and
        OSError if the cache cannot be written.
        """
        if not re.fullmatch(r"[\w-]{1,120}", key, re.ASCII):
            raise ValueError(f"key {key!r}: 1 to 120 letters, digits, - or _ are allowed")
        folder = cache_folder() / "search" / f"{key}.k{k1:g}-b{b:g}.v{VERSION}"

        def make(partial: Path) -> None:
            build.write(partial, texts() if callable(texts) else texts, key, k1, b, VERSION)

        build_once(folder, make)
        return cls(folder)

    def __len__(self) -> int:
        """Number of documents."""
        return self._size

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """The best k documents as (number, score), best first, ties in the documents' order.

        Documents that share no term with the query are not among them; a query without known words
        finds nothing.
        """
        counts = Counter(analyse(query)[:_MAX_QUERY])
        known = ((self._term_number(word), times) for word, times in counts.items())
        # Rarest first, by the most that a term can add; as in Lucene, sums are 64-bit, scores 32.
        lists = sorted((-times * self._best[n], n, times) for n, times in known if n >= 0)
        if not lists or k < 1:
            return []
        documents, total = self._candidates([(n, t, -bound) for bound, n, t in lists], k)
        total = total.astype(np.float32)
        first = np.lexsort((documents, -total))[:k]
        return list(zip(documents[first].tolist(), total[first].tolist(), strict=True))

    def _candidates(
        self, lists: list[tuple[int, int, float]], k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A sorted superset of the best k, with sums. `lists`: (term, times, most it adds)."""
        # rest[i]: the most that terms from i on can still add to a document.
        rest = [*np.cumsum([bound for *_, bound in lists][::-1])[::-1].tolist(), 0.0]
        sums = np.zeros(self._size)
        seen: list[np.ndarray] = []
        count = 0
        for i, (number, times, _) in enumerate(lists):
            documents, scores = self._postings(number)
            if count >= k and len(documents) > 1000:
                candidates = np.concatenate(seen)
                if rest[i] < _kth(sums[candidates], k):  # no unseen document can get in any more
                    return self._narrowed(np.sort(candidates), sums, lists[i:], rest[i:], k)
            before = sums[documents]
            sums[documents] = before + times * scores
            seen.append(documents[before == 0])
            count += len(seen[-1])
        return self._narrowed(np.sort(np.concatenate(seen)), sums, [], [0.0], k)

    def _narrowed(
        self,
        candidates: np.ndarray,
        sums: np.ndarray,
        lists: list[tuple[int, int, float]],
        rest: list[float],
        k: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The candidates that the remaining terms can still lift to the first k, with their
        sums."""
        total = sums[candidates]
        for i in range(len(lists) + 1):
            if len(candidates) > k:
                keep = total >= _kth(total, k) - rest[i]
                candidates, total = candidates[keep], total[keep]
            if i < len(lists):
                number, times, _ = lists[i]
                total = total + times * self._look_up(number, candidates)
        return candidates, total

    def _postings(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        span = slice(self._starts[number], self._starts[number + 1])
        return self._documents[span], self._scores[span]

    def _look_up(self, number: int, candidates: np.ndarray) -> np.ndarray:
        """The term's score in each of the (sorted) candidates; 0 if it does not occur."""
        documents, scores = self._postings(number)
        at = np.minimum(np.searchsorted(documents, candidates), len(documents) - 1)
        return np.where(documents[at] == candidates, scores[at], np.float32(0))

    def _bisect(self, word: str) -> int:
        """The term's number, by bisection in the sorted vocabulary; −1 if it is unknown."""
        target, low, high = word.encode("utf-8", "replace"), 0, len(self._offsets) - 1
        while low < high:
            middle = (low + high) // 2
            here = bytes(self._terms[self._offsets[middle] : self._offsets[middle + 1]])
            if here == target:
                return middle
            low, high = (middle + 1, high) if here < target else (low, middle)
        return -1


def _kth(scores: np.ndarray, k: int) -> float:
    """The k-th highest score, slightly lowered to allow for rounding."""
    return float(np.partition(scores, len(scores) - k)[len(scores) - k]) * (1 - 1e-5)
