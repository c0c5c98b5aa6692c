"""Pages, how a title is found, and the corpus of one question.

`Corpus.find` is what `search[entity]` does: the page with that title (as written; else ignoring
case, accents, punctuation or a bracketed addition; else allowing for a typo), or the titles of
similar pages. `store.StoredCorpus` answers from disk, `live.LiveCorpus` from Wikipedia itself,
and `SmallCorpus` here from the few paragraphs that one question comes with (the distractor
setting).
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

SIMILAR = 5
"""Similar titles that are given if there is no page."""
CANDIDATES = 20
"""Search hits whose titles are checked for a typo."""


@dataclass(frozen=True)
class Page:
    """A title and its text: one sentence per line, an empty line between paragraphs."""

    title: str
    text: str

    @property
    def paragraphs(self) -> list[list[str]]:
        """The sentences of each paragraph."""
        return [part.split("\n") for part in self.text.split("\n\n") if part]

    @property
    def sentences(self) -> list[str]:
        return [line for line in self.text.split("\n") if line]


def page(title: str, paragraphs: Iterable[str | Iterable[str]]) -> Page:
    """A page from paragraphs, each a text (which is split) or a list of its sentences."""
    parts = []
    for paragraph in paragraphs:
        is_text = isinstance(paragraph, str)
        sentences = split_sentences(paragraph) if isinstance(paragraph, str) else paragraph
        lines = sentences if is_text else [" ".join(line.split()) for line in sentences]
        parts.append("\n".join(line for line in lines if line))
    return Page(clean_title(title), "\n\n".join(part for part in parts if part))


# Sentences ----------------------------------------------------------------------------------------

# Possessive, and only from the first stop of a run: linear in hostile text.
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+\s+(?=[\"'“‘(\[$£€]*\w)")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"“])(?:[A-Za-z]|(?:[A-Za-z]\.)+[A-Za-z]?|Mr|Mrs|Ms|Dr|Prof|St|Ste|Mt|Ft|Jr|Sr|Gen"
    r"|Col|Capt|Lt|Sgt|Maj|Rev|Hon|Gov|Sen|Rep|Pres|vs?|cf|ca|approx|est|No|Nos|Vol|pp?|op|Inc|Ltd"
    r"|Co|Corp|Bros|etc|[ei]\.[eg]|al|feat|fl|lit|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.$"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph, blanks collapsed.

    >>> split_sentences("Dr. A. B. Cole (born c. 1901) ran St. Mary's. She left in 1930! Why?")
    ["Dr. A. B. Cole (born c. 1901) ran St. Mary's.", 'She left in 1930!', 'Why?']
    """
    text = " ".join(text.split())
    sentences, begin = [], 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 1]
        # Nothing ends before a small letter, nor with the full stop of an abbreviation.
        stops = end.group().rstrip()
        stop = end.start() + len(stops)
        before = text[max(begin, stop - 16) : stop]
        if following.islower() or (stops == "." and _ABBREVIATION.search(before)):
            continue
        sentences.append(text[begin:stop])
        begin = end.end()
    return [*sentences, text[begin:]] if text[begin:] else sentences


# Titles -------------------------------------------------------------------------------------------

_ADDITION = re.compile(r"(?<!\s)\s*+\([^()]*\)$")
_NO_WORD = re.compile(r"[\W_]+")
_PART = re.compile(r"(.+) \(part (\d{1,4})\)")
_ROMAN = re.compile(r"[ivxlcdm]+")


def unescape(text: str) -> str:
    """HTML's escapes as the characters that they stand for."""
    try:
        return html.unescape(text)
    except ValueError:  # an escape of more digits than Python converts stands for none
        return text


def clean_title(title: str) -> str:
    """The title on one line, without HTML's escapes (HotpotQA has `Simon &amp; Simon`)."""
    return " ".join(unescape(title).split())


def key(title: str) -> str:
    """The title without case, accents and punctuation. Never empty unless the title is.

    >>> key("Alû_(Demon)"), key("  ALU demon "), key("!!!")
    ('alu demon', 'alu demon', '!!!')
    """
    plain = unescape(title).casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFKD", plain).casefold()
        plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = _NO_WORD.sub(" ", plain.replace("'", "").replace("’", "")).strip()
    return words or " ".join(plain.split())


def base_key(title: str) -> str | None:
    """The key without a bracketed addition; None if there is none.

    >>> base_key("Kiss and Tell (1945 film)")
    'kiss and tell'
    """
    base = _ADDITION.sub("", title)
    return key(base) if base and base != title else None


def is_slip(query: str, title: str) -> bool:
    """Whether two keys differ by a typo in one long word.

    Numbers (`Edward II`, `1994`) and short words must be the same: they distinguish pages.

    >>> is_slip("scott derickson", "scott derrickson"), is_slip("super bowl 48", "super bowl 49")
    (True, False)
    """
    from rapidfuzz.distance import OSA

    query_words, title_words = query.split(), title.split()
    if len(query_words) != len(title_words):
        return False
    different = [(a, b) for a, b in zip(query_words, title_words, strict=True) if a != b]
    if len(different) != 1:
        return not different
    a, b = different[0]
    if any(c.isdigit() for c in a + b) or _ROMAN.fullmatch(a) or _ROMAN.fullmatch(b):
        return False
    shorter = min(len(a), len(b))
    return shorter >= 5 and OSA.distance(a, b) <= (1 if shorter < 9 else 2)


def part_title(title: str, number: int) -> str:
    """Title of the n-th passage (from 1) of a page that a data set has in several passages."""
    return title if number == 1 else f"{title} (part {number})"


def next_part(title: str) -> str:
    """Title of the passage that follows.

    >>> next_part("Green"), next_part("Green (part 2)")
    ('Green (part 2)', 'Green (part 3)')
    """
    match = _PART.fullmatch(title)
    return part_title(match[1], int(match[2]) + 1) if match else part_title(title, 2)


def pool(pages: Iterable[Page]) -> Iterator[Page]:
    """The pages without repetitions; further passages of one title become its parts.

    MuSiQue draws its paragraphs from anywhere on a page, so one title may come with many texts.
    """
    seen: dict[str, list[int]] = {}  # the texts' hashes, as the texts may not fit in memory
    for passage in pages:
        texts = seen.setdefault(passage.title, [])
        if (text := hash(passage.text)) not in texts:
            texts.append(text)
            yield Page(part_title(passage.title, len(texts)), passage.text)


# Corpora ------------------------------------------------------------------------------------------


class Corpus(ABC):
    """A set of pages that can be searched."""

    @abstractmethod
    def find(self, entity: str) -> Page | list[str]:
        """The entity's page, or up to SIMILAR titles of similar pages, the most similar first.

        Never raises for any text. (`LiveCorpus` raises `LiveError` if the API cannot be reached.)
        """

    @abstractmethod
    def has(self, title: str) -> bool:
        """Whether there is a page with that title (ignoring case, accents and punctuation)."""

    @abstractmethod
    def checksum(self) -> str:
        """A checksum of its contents ("" if that cannot be known)."""


def choose(query: str, titles: Sequence[str]) -> str:
    """Of several titles with the same key, the one most similar to the query."""
    from rapidfuzz.distance import Indel

    if query in titles:
        return query
    codes = [ord(character) for character in query]  # any text, lone surrogates too
    return min(titles, key=lambda title: Indel.distance(codes, [ord(c) for c in title]))


class SmallCorpus(Corpus):
    """The paragraphs that one question comes with."""

    def __init__(self, pages: Iterable[Page]):
        self._pages = {passage.title: passage for passage in pool(pages)}
        self._titles: dict[str, list[str]] = {}
        self._bases: dict[str, list[str]] = {}
        for title in self._pages:
            self._titles.setdefault(key(title), []).append(title)
            if base := base_key(title):
                self._bases.setdefault(base, []).append(title)
        self._words = {p.title: set(key(f"{p.title} {p.text}").split()) for p in self}
        self._pages_with = Counter(word for words in self._words.values() for word in words)

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages.values())

    def find(self, entity: str) -> Page | list[str]:
        query = key(entity)
        same = self._titles.get(query) or self._bases.get(query, [])
        if same and (query in self._titles or len(same) == 1):
            return self._pages[choose(entity, same)]
        similar = self._ranked(query)
        for title in similar:
            if is_slip(query, key(title)):
                return self._pages[title]
        return similar[:SIMILAR]

    def has(self, title: str) -> bool:
        return key(title) in self._titles

    def _ranked(self, query: str) -> list[str]:
        """Titles by the summed rarity of the query's words on the page; words in the title count
        double."""
        words, size = set(query.split()), len(self._pages)
        rated = []
        for title, on_page in self._words.items():
            title_words = set(key(title).split())
            rating = sum(
                (1 + (word in title_words)) * math.log(1 + size / self._pages_with[word])
                for word in sorted(words & on_page)
            )
            rated.append((-rating, title))
        return [title for rating, title in sorted(rated) if rating < 0]

    def checksum(self) -> str:
        return ""
