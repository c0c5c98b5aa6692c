"""Text analysis as Lucene's English analyser does it: tokens, possessives, stop words, stems.

The rules of Lucene 8 and 9 (`StandardTokenizer`, `EnglishPossessiveFilter`, `LowerCaseFilter`,
`StopFilter`, `PorterStemFilter`), of which Pyserini's default analyser consists:

- Words break by Unicode's word boundaries (UAX #29): letters and digits run together; one of
  `: . ' ·` between letters and one of `. , ; '` between digits does not break; ideographs and
  Hiragana stand alone; every pictograph is a token of its own.
- Snowball's "porter" is Porter's paper; Lucene carries Porter's own two later corrections
  (`-bli` → `-ble`, `-logi` → `-log`) and leaves words of one or two letters alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MAX_TOKEN = 255
"""Longer runs of letters are cut into tokens of this length."""
_STOP = """a an and are as at be but by for if in into is it no not of on or such that the their
then there these they this to was will with"""
STOP_WORDS = frozenset(_STOP.split())

_ALONE = (
    "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3040-\u3096\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_JOINERS = "\u00ad\u0300-\u036f\u200c-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff"
_BOTH = ".'\u2018\u2019\u2024\ufe52\uff07\uff0e"
_MID_LETTER = _BOTH + ":\u00b7\u0387\u055f\u05f4\u2027\ufe13\ufe55\uff1a"
_MID_DIGIT = (
    _BOTH + ",;\u037e\u0589\u060c\u060d\u066c\u07f8\u2044\ufe10\ufe14\ufe50\ufe54\uff0c\uff1b"
)
_PICTOGRAPHS = (  # Extended_Pictographic as of Unicode 12
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf"
    "\u23e9-\u23f3\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605"
    "\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734"
    "\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27a1\u27b0\u27bf\u2934"
    "\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f0ff"
    "\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f\U0001f18e"
    "\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f23a\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d"
    "\U0001f546-\U0001f64f\U0001f680-\U0001f6ff\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff"
    "\U0001f80c-\U0001f8ff\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001faff"
)
_LETTER = r"[^\W\d_]"
_TOKEN = re.compile(
    f"[{_ALONE}][{_JOINERS}]*"
    f"|(?:(?![{_ALONE}])\\w|(?<=\\w)[{_JOINERS}]"
    f"|(?<={_LETTER})[{_MID_LETTER}](?={_LETTER})|(?<=\\d)[{_MID_DIGIT}](?=\\d))+"
    f"|[{_PICTOGRAPHS}][\ufe0f\U0001f3fb-\U0001f3ff]*(?:\u200d[{_PICTOGRAPHS}]\ufe0f?)*"
)
# The same for plain ASCII, which most texts are: far fewer classes to try.
_ASCII_TOKEN = re.compile(
    r"(?:[a-z0-9_]|(?<=[a-z])[:.'](?=[a-z])|(?<=[0-9])[.,;'](?=[0-9]))+", re.ASCII
)


def tokens(text: str) -> list[str]:
    """The raw tokens of a text in lower case: before possessives, stop words and stemming."""
    text = text.lower()
    return (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)


def term(token: str) -> str:
    """What a raw token is indexed as; "" if it is left out (a stop word, underscores)."""
    if token[-2:] in ("'s", "\u2019s", "\uff07s"):
        token = token[:-2]
    if token in STOP_WORDS or not token.strip("_"):
        return ""
    return _stem(token)


@lru_cache(maxsize=65_536)
def _cached_term(token: str) -> str:
    return term(token)


def analyse(text: str) -> list[str]:
    """The terms of a text, in order.

    >>> analyse("The men's t-shirts, 3.5mm & easily assembled!")
    ['men', 't', 'shirt', '3.5mm', 'easili', 'assembl']
    """
    terms = []
    for token in tokens(text):
        for start in range(0, len(token), MAX_TOKEN):
            if word := _cached_term(token[start : start + MAX_TOKEN]):
                terms.append(word)
    return terms


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("porter", 0)


def _stem(word: str) -> str:
    """Lucene's Porter stem (the module's docstring says how it differs from Snowball's)."""
    if len(word) <= 2:
        return word
    stem = _stemmer().stemWord(word)
    if stem.endswith("bli") and _has_syllable(stem[:-3]):
        return _stemmer().stemWord(stem[:-1] + "e")
    if stem.endswith("logi") and _has_syllable(stem[:-4]):
        return stem[:-1]
    return stem


_SYLLABLE = re.compile(r"(?:[aeiou]|(?<=[^aeiou])y)[^aeiouy]")


def _has_syllable(stem: str) -> bool:
    """Porter's m > 0: a vowel and, later, a consonant."""
    return bool(_SYLLABLE.search(stem))
