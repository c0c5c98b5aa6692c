"""The questions of the three data sets: their official files, the paper's sample, the splits.

What `source` may be:

- None: the bundled encyclopedia, 1,500 / 150 / 300 questions.
- A folder or archive (`musique.zip`) with the official files, or with files that are called `train`
  and `dev` or `validation` as on the Hugging Face hub. The paper's way: train questions are drawn
  from the training files, dev and test questions from the development files.
- Any other folder, archive or file of questions in the data set's own format or one of `layouts`:
  all of them are taken together; a tenth goes to dev, a fifth to test, the rest to train.

Files without answers, as the official test files are, are left out beside others.

At most 5,000 / 500 / 500 are drawn, as in the paper: those with the smallest checksum of seed and
question id. So the order of the file does not matter, a file of any size is read as a stream, and
no question is in two splits.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from stepagent.envs.containers import COMPRESSED, Member, SourceError, members
from stepagent.envs.core import SPLITS, checked_sizes, checksum
from stepagent.envs.wikipedia import encyclopedia, formats
from stepagent.envs.wikipedia.corpus import Page
from stepagent.envs.wikipedia.encyclopedia import questions as bundled
from stepagent.envs.wikipedia.questions import Question
from stepagent.envs.wikipedia.sources import file_checksum, is_data, records, records_in
from stepagent.files import build_once, cache_folder, open_file, read_text, write_text

log = logging.getLogger(__name__)
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
_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".feather", ".zip")
_SUBFOLDERS = ("data", "default", "distractor", "fullwiki", "train", "dev", "validation", "test")
"""Folders of a data set's repository, or of `save_to_disk`, that hold its files."""
_ROLE = re.compile(r"(?:.*-)?(train|dev|validation|test)(?:-\d+-of-\d+)?")
_QUESTIONS = "questions"
_LEFT_OUT = ("empty file", "file without answers")
_ROLES = {"train": "training", "dev": "development", "validation": "development", "test": "test"}


@dataclass(frozen=True)
class Files:
    """The files of questions in a folder or archive."""

    training: tuple[Member, ...] = ()
    development: tuple[Member, ...] = ()
    """Empty, as `training` is, where all questions are taken together."""
    together: tuple[Member, ...] = ()
    left_out: tuple[str, ...] = ()
    """Of each file that is left out, why."""

    @property
    def all(self) -> tuple[Member, ...]:
        return (*self.training, *self.development, *self.together)

    def checksums(self) -> tuple[str, ...]:
        """The checksum of each file or archive on the disk."""
        return tuple(file_checksum(path) for path in dict.fromkeys(f.path for f in self.all))


@dataclass(frozen=True)
class Sample:
    """The questions of a split, in a fixed order."""

    questions: tuple[Question, ...]
    left_out: dict[str, int]
    """What of the split's files was not taken, reason → number."""


def load(
    dataset: str,
    split: str,
    source: str | Path | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> tuple[Question, ...]:
    """The questions of a split, in a fixed order.

    Raises SourceError for files that are missing, cut off or of another format, naming them.
    """
    return sample(dataset, split, source, sizes, seed).questions


def sample(
    dataset: str,
    split: str,
    source: str | Path | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> Sample:
    """The questions of a split, and what was left out. Raises as `load`."""
    sizes = checked_sizes(sizes)
    files = Files() if source is None else _files(dataset, located(dataset, source))
    drawn = _load(dataset, split, files, files.checksums(), sizes, seed)
    return Sample(drawn.questions, {**dict(Counter(files.left_out)), **drawn.left_out})


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
    return checksum(*_files(dataset, located(dataset, source)).checksums())


@lru_cache(maxsize=8)
def _load(
    dataset: str,
    split: str,
    files: Files,
    sums: tuple[str, ...],
    sizes: tuple[int, int, int],
    seed: int,
) -> Sample:
    """Reads the split from the cache; draws all three splits first if it is missing."""
    roles = [[file.name for file in group] for group in (files.training, files.together)]
    name = checksum(
        dataset, str(_VERSION), encyclopedia.CHECKSUM, *sums, str(sizes), str(seed), str(roles)
    )
    folder = cache_folder() / "wikipedia" / f"questions-{name}"

    def build(partial: Path) -> None:
        splits = _draw(dataset, files, sizes, seed) if files.all else _bundled(dataset, sizes)
        for which, drawn in splits.items():
            records = (json.dumps(q.to_dict(), ensure_ascii=False) for q in drawn.questions)
            write_text(partial / f"{which}.jsonl", "".join(f"{record}\n" for record in records))
            write_text(partial / f"{which}-left-out.json", json.dumps(drawn.left_out))

    build_once(folder, build)
    with open_file(folder / f"{split}.jsonl") as file:
        questions = tuple(Question.from_dict(json.loads(line)) for line in file)
    return Sample(questions, json.loads(read_text(folder / f"{split}-left-out.json")))


# The bundled encyclopedia -------------------------------------------------------------------------


def _bundled(dataset: str, sizes: tuple[int, int, int]) -> dict[str, Sample]:
    splits = bundled.generate(dataset, BUNDLED_SEED)
    sized = zip(SPLITS, sizes, strict=True)
    return {split: Sample(tuple(splits[split][:size]), {}) for split, size in sized}


def bundled_name() -> str:
    """Name of the bundled encyclopedia in the cache."""
    return f"world-{checksum(encyclopedia.CHECKSUM, str(BUNDLED_SEED))}"


def bundled_pages() -> Iterator[Page]:
    """All pages of the bundled encyclopedia."""
    yield from bundled.pages(BUNDLED_SEED)


# Files --------------------------------------------------------------------------------------------


def _files(dataset: str, source: Path) -> Files:
    """The question files of a file, an archive or a folder."""
    listed = list(_listed(source))
    training, development = (
        next((file for name in names for file in listed if _plain_name(file) == name), None)
        for names in OFFICIAL[dataset]
    )
    if training and development:
        return Files((training,), (development,))
    if source.is_file() and len(listed) == 1:  # named by the user: reading says what is wrong
        return Files(together=tuple(listed))
    contents = {file: _content(dataset, file) for file in listed}
    files = tuple(file for file, content in contents.items() if content == _QUESTIONS)
    left_out = tuple(content for content in contents.values() if content in _LEFT_OUT)
    if not files:
        names = " and ".join(first for first, *_ in OFFICIAL[dataset])
        raise SourceError(
            f"{source.absolute()} holds no {dataset} questions: {names} are expected there, or "
            "other files of that format with their paragraphs"
        )
    roles = [_role(file) for file in files]
    if "training" in roles and None not in roles:
        by_role = {
            role: tuple(file for file, r in zip(files, roles, strict=True) if r == role)
            for role in _ROLES.values()
        }
        if later := by_role["development"] or by_role["test"]:
            return Files(by_role["training"], later, left_out=left_out)
    return Files(together=files, left_out=left_out)


def _listed(source: Path) -> Iterator[Member]:
    """The files of data in it; of its folders, only those that are named as data sets' are."""
    if source.is_file():
        yield from (file for file in members(source) if not file.inside or is_data(file.name))
        return
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or not is_data(path.name):
            continue
        if path.is_dir() and path.name.lower() in _SUBFOLDERS:
            yield from _listed(path)
        elif path.is_file() and _without_compression(path.name).endswith(_ENDINGS):
            yield from (file for file in members(path) if is_data(file.name))


def _without_compression(name: str) -> str:
    return next((name.removesuffix(end) for end in COMPRESSED if name.endswith(end)), name)


def _plain_name(file: Member) -> str:
    return _without_compression(PurePosixPath(file.inside or file.path.name).name)


def _role(file: Member) -> str | None:
    """training, development or test by the file's name or its folder's; None if they do not say."""
    stem = _plain_name(file).partition(".")[0]
    folder = (PurePosixPath(file.inside) if file.inside else file.path).parent.name
    match = _ROLE.fullmatch(stem.lower()) or _ROLE.fullmatch(folder.lower())
    return _ROLES[match[1]] if match else None


def _content(dataset: str, file: Member) -> str:
    """What a file holds, by its first record: questions of the data set with paragraphs and
    answers, something else, or one of `_LEFT_OUT`, with a warning.

    Raises SourceError if the file cannot be read: no data is dropped silently.
    """
    with file.opened() as (kind, data):
        first = None if kind == "empty" else next(records_in(file, kind, data), None)
    if kind == "empty":
        content = "empty file"
    elif first is None or not formats.is_question(dataset, first):
        content = "something else"
    else:
        content = _QUESTIONS if formats.has_answer(first) else "file without answers"
    if content in _LEFT_OUT:
        _warn_once(f"{file} is left out: {content}")
    return content


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _draw(dataset: str, files: Files, sizes: tuple[int, int, int], seed: int) -> dict[str, Sample]:
    """The splits' questions, each split in the order of the checksums."""
    train, dev, test = sizes
    if files.training:
        first = _smallest(dataset, files.training, train, seed)
        taken = {question.id for question in first.questions}
        second = _smallest(dataset, files.development, dev + test, seed, without=taken)
        questions, size = second.questions, len(second.questions)
        if size < 2:
            raise SourceError(
                f"{files.development[0]} holds too few questions for a dev and a test split"
            )
        share = min(test, max(1, size * test // (dev + test)))
        parts = {"test": questions[:share], "dev": questions[share:][:dev]}
        later = {split: Sample(part, second.left_out) for split, part in parts.items()}
        return {"train": first, **later}
    drawn = _smallest(dataset, files.together, sum(sizes), seed)
    questions, size = drawn.questions, len(drawn.questions)
    if size < 3:
        reasons = ", ".join(f"{count} {reason}" for reason, count in drawn.left_out.items())
        raise SourceError(
            f"{files.together[0]} holds {size} questions of {dataset}"
            f"{f', left out: {reasons}' if reasons else ''}: three splits need at least 3"
        )
    a, b = min(test, max(1, size // 5)), min(dev, max(1, size // 10))
    parts = {
        "test": questions[:a],
        "dev": questions[a : a + b],
        "train": questions[a + b :][:train],
    }
    return {split: Sample(part, drawn.left_out) for split, part in parts.items()}


def _smallest(
    dataset: str,
    files: Iterable[Member],
    count: int,
    seed: int,
    without: set[str] | frozenset[str] = frozenset(),
) -> Sample:
    """The questions with the smallest checksums of (seed, id), at most `count`; none twice."""
    heap: list[tuple[int, str, Any]] = []  # the largest on top; records are parsed at the end
    seen: set[str] = set(without)
    left_out: Counter[str] = Counter()
    for file in files:
        for number, record in enumerate(records(file), 1):
            if reason := formats.left_out(dataset, record):
                left_out[reason] += 1
                continue
            name = formats.question_id(dataset, record, f"record {number} of {file}")
            if name in seen:
                continue
            seen.add(name)
            digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "replace")).digest()
            entry = (-int.from_bytes(digest[:8], "big"), name, (record, file, number))
            if len(heap) < count:
                heapq.heappush(heap, entry)
            elif entry[0] > heap[0][0]:
                heapq.heapreplace(heap, entry)
    chosen = [entry[2] for entry in sorted(heap, key=lambda entry: (-entry[0], entry[1]))]
    aliases = formats.wikidata_aliases(dataset, files, [record for record, _, _ in chosen])
    questions = tuple(
        formats.read(dataset, record, f"record {number} of {file}", aliases)
        for record, file, number in chosen
    )
    return Sample(questions, dict(sorted(left_out.items())))
