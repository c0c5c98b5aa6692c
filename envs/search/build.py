"""Builds a search index (`index.Index`) in a stream: documents pass through one batch at a time.

First pass: each batch's (term, document, times) triples go to a spool file, while document
frequencies and lengths are counted. Second pass: every posting goes to its place in files sorted by
term, with its finished BM25 score. In memory at once: the vocabulary, a byte per document, and a
batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stepagent.envs.search import analysis
from stepagent.files import open_file

ARRAYS = ("terms", "offsets", "starts", "documents", "scores", "best")
"""Files of an index: the sorted vocabulary as bytes, where each word begins in it, where each
word's postings begin, document numbers, scores, and each word's highest score."""
_BATCH = 8192


def write(folder: Path, texts: Iterable[str], key: str, k1: float, b: float, version: int) -> None:
    """Writes an index's files to an empty folder. Raises ValueError if there is no document."""
    spool = folder / "postings.tmp"
    counted = _Counted()
    with spool.open("wb") as file:
        source = iter(texts)
        while batch := list(islice(source, _BATCH)):
            counted.add(batch, file)
    if not counted.norms:
        raise ValueError("the corpus has no document: there is nothing to search")
    words = sorted(counted.vocabulary)
    numbers = np.fromiter((counted.vocabulary[w] for w in words), np.int64, len(words))
    counted.vocabulary.clear()
    frequency = counted.frequency[numbers]
    arrays: dict[str, Any] = {"starts": np.concatenate([[0], np.cumsum(frequency)])}
    encoded = [word.encode("utf-8", "replace") for word in words]
    arrays["offsets"] = np.cumsum([0, *map(len, encoded)])
    arrays["terms"] = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    size = int(arrays["starts"][-1])
    for name, kind in (("documents", np.int32), ("scores", np.float32)):
        arrays[name] = _created(folder / f"{name}.npy", kind, size)
    rank = np.empty(len(words), np.int64)
    rank[numbers] = np.arange(len(words))
    _place(spool, counted, rank, frequency, arrays, k1, b)
    spool.unlink()
    best = (
        np.maximum.reduceat(arrays["scores"], arrays["starts"][:-1]) if size else arrays["scores"]
    )
    arrays["best"] = np.asarray(best, np.float32)
    for name in ("terms", "offsets", "starts", "best"):
        np.save(folder / f"{name}.npy", arrays[name], allow_pickle=False)
    lengths = {name: len(arrays[name]) for name in ARRAYS}
    if size:
        for name in ("documents", "scores"):
            arrays[name].flush()
    meta = {"version": version, "key": key, "documents": len(counted.norms), "lengths": lengths}
    (folder / "meta.json").write_text(json.dumps({**meta, "k1": k1, "b": b}), encoding="utf-8")


def _created(path: Path, kind: Any, size: int) -> np.ndarray:
    if size:
        return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(size,))
    np.save(path, np.zeros(0, kind), allow_pickle=False)  # an empty file cannot be mapped
    return np.zeros(0, kind)


class _Counted:
    """What the first pass over the documents counts."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self.frequency = np.zeros(0, np.int64)
        """In how many documents each term occurs."""
        self.norms = bytearray()
        """Each document's length in Lucene's one-byte form."""
        self.tokens = 0
        self.filled = 0
        """Documents with at least one term."""
        self.batches: list[int] = []
        """Postings of each spooled batch."""
        self._numbers: dict[str, int] = {}

    def add(self, batch: list[str], spool: Any) -> None:
        """Spools the batch's (term, document, times) triples, sorted by term and document."""
        terms: list[int] = []
        sizes = []
        for text in batch:
            before = len(terms)
            for token in analysis.tokens(text):
                number = self._numbers.get(token)
                if number is None:
                    number = self._learn(token, terms)
                if number >= 0:
                    terms.append(number)
            sizes.append(len(terms) - before)
        first = len(self.norms)
        self.norms += bytes(_encoded_length(size) for size in sizes)
        self.tokens += len(terms)
        self.filled += sum(size > 0 for size in sizes)
        owner = np.repeat(np.arange(len(batch)), sizes)
        pairs, times = np.unique(np.asarray(terms, np.int64) * _BATCH + owner, return_counts=True)
        numbers = pairs // _BATCH
        frequency = np.bincount(numbers, minlength=len(self.vocabulary))
        frequency[: len(self.frequency)] += self.frequency
        self.frequency = frequency
        self.batches.append(len(pairs))
        for column in (numbers, pairs % _BATCH + first, times):
            spool.write(column.astype(np.int32).tobytes())

    def _learn(self, token: str, terms: list[int]) -> int:
        """The number of a new token; −1 for what is not indexed."""
        if len(token) > analysis.MAX_TOKEN:  # rare: cut into pieces, all but the last counted here
            for start in range(0, len(token) - analysis.MAX_TOKEN, analysis.MAX_TOKEN):
                piece = self._learn(token[start : start + analysis.MAX_TOKEN], terms)
                if piece >= 0:
                    terms.append(piece)
            return self._learn(token[start + analysis.MAX_TOKEN :], terms)
        word = analysis.term(token)
        number = self.vocabulary.setdefault(word, len(self.vocabulary)) if word else -1
        if len(self._numbers) >= 500_000:  # numbers, names, typos: keep memory bounded
            self._numbers.clear()
        self._numbers[token] = number
        return number


def _place(
    spool: Path,
    counted: _Counted,
    rank: np.ndarray,
    frequency: np.ndarray,
    arrays: dict[str, Any],
    k1: float,
    b: float,
) -> None:
    """Writes every posting to its place, with its score, in Lucene's arithmetic (32-bit floats)."""
    idf = np.log(1 + (counted.filled - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    mean = counted.tokens / max(counted.filled, 1)
    lengths = np.array([_decoded_length(code) for code in range(256)])
    inverse = (1 / (k1 * (1 - b + b * lengths / max(mean, 1e-9)))).astype(np.float32)
    norms = np.frombuffer(bytes(counted.norms), np.uint8)
    cursor = arrays["starts"][:-1].copy()
    with open_file(spool, "rb") as file:
        for size in counted.batches:
            numbers, documents, times = np.fromfile(file, np.int32, 3 * size).reshape(3, size)
            terms = rank[numbers]
            order = np.argsort(terms, kind="stable")
            terms, documents, times = terms[order], documents[order], times[order]
            firsts = np.flatnonzero(np.diff(terms, prepend=-1))
            counts = np.diff(firsts, append=size)
            at = cursor[terms] + np.arange(size) - np.repeat(firsts, counts)
            cursor[terms[firsts]] += counts
            weight = idf[terms]
            gain = 1 + times.astype(np.float32) * inverse[norms[documents]]
            arrays["documents"][at] = documents
            arrays["scores"][at] = weight - weight / gain


def _encoded_length(length: int) -> int:
    """Lucene's one-byte form of a document's length: exact below 40, then four significant bits.

    >>> [_decoded_length(_encoded_length(n)) for n in (0, 39, 40, 43, 107, 1000)]
    [0, 39, 40, 42, 104, 984]
    """
    if length < 24:
        return length
    rest = length - 24
    bits = rest.bit_length()
    if bits < 4:
        return 24 + rest
    return min(24 + (((bits - 3) << 3) | ((rest >> (bits - 4)) & 7)), 255)


def _decoded_length(code: int) -> int:
    if code < 24:
        return code
    bits, shift = (code - 24) & 7, ((code - 24) >> 3) - 1
    return 24 + (bits if shift < 0 else (bits | 8) << shift)
