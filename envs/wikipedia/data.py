"""The questions of the three data sets: their official files, the paper's sample, the splits.

What `source` may be:

- None: the bundled encyclopedia, 1,500 / 150 / 300 questions.
- A folder with the official files. The paper's way: train questions are drawn from the training
  file, dev and test questions from the development file (the official test files have no answers).
- Any other folder or file of questions in the data set's own format: all of them are taken
  together; a tenth goes to dev, a fifth to test, the rest to train.

At most 5,000 / 500 / 500 are drawn, as in the paper: those with the smallest checksum of seed and
question id. So the order of the file does not matter, a file of any size is read as a stream, and
no question is in two splits.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepagent.envs.core import SPLITS, checksum
from stepagent.envs.wikipedia import encyclopedia, formats
from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.encyclopedia import questions as bundled
from stepagent.envs.wikipedia.questions import Question
from stepagent.envs.wikipedia.sources import SourceError, file_checksum, records
from stepagent.files import cache_folder, write_shared_text

SIZES = (5000, 500, 500)
"""Questions of the train, dev and test splits that the paper draws."""
BUNDLED_SEED = 0
OFFICIAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # data set: (training files, development files); the first existing one is used
    "hotpotqa": (
        ("hotpot_train_v1.1.json",),
        ("hotpot_dev_distractor_v1.json", "hotpot_dev_fullwiki_v1.json"),
    ),
    "2wikimultihopqa": (("train.json",), ("dev.json",)),
    "musique": (
        ("musique_ans_v1.0_train.jsonl", "musique_full_v1.0_train.jsonl"),
        ("musique_ans_v1.0_dev.jsonl", "musique_full_v1.0_dev.jsonl"),
    ),
}
_VERSION = 1
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.bz2", ".jsonl.bz2")


def load(
    dataset: str,
    split: str,
    source: str | Path | None = None,
    sizes: Iterable[int] = SIZES,
    seed: int = 0,
) -> tuple[Question, ...]:
    """The questions of a split, in a fixed order.

    Raises SourceError for files that are missing, cut off or of another format, naming them.
    """
    sizes = checked_sizes(sizes)
    files = () if source is None else tuple(_files(dataset, source))
    sums = tuple(file_checksum(path) for path in files)
    return _load(dataset, split, files, sums, sizes, seed)


def checked_sizes(sizes: Any) -> tuple[int, int, int]:
    """The three splits' sizes. Raises ValueError for anything but three numbers of at least 1."""
    numbers = tuple(sizes) if isinstance(sizes, Iterable) else ()
    if len(numbers) != 3 or not all(isinstance(size, int) and size >= 1 for size in numbers):
        raise ValueError(
            f"sizes is {sizes!r}: it must be three numbers (train, dev, test), each at least 1"
        )
    train, dev, test = numbers
    return train, dev, test


def located(dataset: str, source: str | Path) -> Path:
    """The questions' file or folder. Raises SourceError if there is none; reads nothing."""
    path = Path(source).expanduser()
    if not path.is_file() and not path.is_dir():
        raise SourceError(f"no folder or file of {dataset} questions at {path.absolute()}")
    return path


def source_checksum(dataset: str, source: str | Path | None) -> str:
    """Changes when the questions' files (or the bundled encyclopedia) do."""
    if source is None:
        return checksum(encyclopedia.CHECKSUM, str(BUNDLED_SEED))
    return checksum(*(file_checksum(path) for path in _files(dataset, source)))


@lru_cache(maxsize=8)
def _load(
    dataset: str,
    split: str,
    files: tuple[Path, ...],
    sums: tuple[str, ...],
    sizes: tuple[int, int, int],
    seed: int,
) -> tuple[Question, ...]:
    """Reads the split from the cache; draws all three splits first if it is missing."""
    name = checksum(dataset, str(_VERSION), encyclopedia.CHECKSUM, *sums, str(sizes), str(seed))
    paths = {s: cache_folder() / "wikipedia" / f"questions-{name}-{s}.jsonl" for s in SPLITS}
    if not all(path.is_file() for path in paths.values()):
        splits = _draw(dataset, files, sizes, seed) if files else _bundled(dataset, sizes)
        for which, path in paths.items():
            records = (json.dumps(q.to_dict(), ensure_ascii=False) for q in splits[which])
            write_shared_text(path, "".join(f"{record}\n" for record in records))
    with paths[split].open(encoding="utf-8") as file:
        return tuple(Question.from_dict(json.loads(line)) for line in file)


# The bundled encyclopedia -------------------------------------------------------------------------


def _bundled(dataset: str, sizes: tuple[int, int, int]) -> dict[str, list[Question]]:
    splits = bundled.generate(dataset, BUNDLED_SEED)
    return {split: splits[split][:size] for split, size in zip(SPLITS, sizes, strict=True)}


def bundled_name() -> str:
    """Name of the bundled encyclopedia in the cache."""
    return f"world-{checksum(encyclopedia.CHECKSUM, str(BUNDLED_SEED))}"


def bundled_pages() -> Iterator[Page]:
    """All pages of the bundled encyclopedia."""
    yield from bundled.pages(BUNDLED_SEED)


# Files --------------------------------------------------------------------------------------------


def _files(dataset: str, source: str | Path) -> Iterator[Path]:
    """The question files of a folder, the training file first if the official ones exist."""
    source = located(dataset, source)
    if source.is_file():
        yield source
        return
    pair = [next((source / n for n in names if (source / n).is_file()), None)
            for names in OFFICIAL[dataset]]  # fmt: skip
    if all(pair):
        yield from (path for path in pair if path)
        return
    paths = [path for path in sorted(source.iterdir()) if path.name.endswith(_ENDINGS)]
    paths = [path for path in paths if formats.has_contexts(dataset, path)]
    if not paths:
        names = " and ".join(first for first, *_ in OFFICIAL[dataset])
        raise SourceError(
            f"{source.absolute()} holds no {dataset} questions: {names} are expected there, or "
            "other files of that format with their paragraphs"
        )
    yield from paths


def _draw(
    dataset: str, files: tuple[Path, ...], sizes: tuple[int, int, int], seed: int
) -> dict[str, list[Question]]:
    """The splits' questions, each split in the order of the checksums."""
    train, dev, test = sizes
    training, development = OFFICIAL[dataset]
    official = len(files) == 2 and files[0].name in training and files[1].name in development
    if official:
        first = _smallest(dataset, files[:1], train, seed)
        taken = {question.id for question in first}
        second = _smallest(dataset, files[1:], dev + test, seed, without=taken)
        if len(second) < 2:
            raise SourceError(f"{files[1]} holds too few questions for a dev and a test split")
        share = min(test, max(1, len(second) * test // (dev + test)))
        return {"train": first, "test": second[:share], "dev": second[share:][:dev]}
    smallest = _smallest(dataset, files, sum(sizes), seed)
    if len(smallest) < 3:
        raise SourceError(
            f"{files[0]} holds {len(smallest)} questions: three splits need at least 3"
        )
    a, b = min(test, max(1, len(smallest) // 5)), min(dev, max(1, len(smallest) // 10))
    return {"test": smallest[:a], "dev": smallest[a : a + b], "train": smallest[a + b :][:train]}


def _smallest(
    dataset: str,
    files: Iterable[Path],
    count: int,
    seed: int,
    without: set[str] | frozenset[str] = frozenset(),
) -> list[Question]:
    """The questions with the smallest checksums of (seed, id), at most `count`; none twice."""
    heap: list[tuple[int, str, Any]] = []  # the largest on top; records are parsed at the end
    seen: set[str] = set(without)
    for path in files:
        for number, record in enumerate(records(path), 1):
            name = formats.question_id(dataset, record, f"record {number} of {path}")
            if name is None or name in seen:
                continue
            seen.add(name)
            digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "replace")).digest()
            entry = (-int.from_bytes(digest[:8], "big"), name, (record, path, number))
            if len(heap) < count:
                heapq.heappush(heap, entry)
            elif entry[0] > heap[0][0]:
                heapq.heapreplace(heap, entry)
    chosen = [entry[2] for entry in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
    aliases = formats.wikidata_aliases(dataset, files, [record for record, _, _ in chosen])
    return [
        formats.read(dataset, record, f"record {number} of {path}", aliases)
        for record, path, number in chosen
    ]
