"""The bundled shop: products and wishes from a seeded generator, in WebShop's format.

Sixty kinds of product in the original's five categories, forty products of each by default. Every
kind draws attributes from its own pool, so for each wish there are dozens of near misses: the right
kind with one attribute too few, in the wrong colours, or too expensive. Texts are short, because
small policies have to read them; the ids name the kind, such as `BSH017`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from stepagent.envs.webshop.data import Product
from stepagent.files import read_text

SEED = 7
PER_KIND = 40
_TABLE = Path(__file__).with_name("kinds.yaml")
_UNCOUNTED = (
    *("Polish", "Mix", "Coffee", "Tea", "Sauce"),
    *("Candy", "Honey", "Oil", "Granola", "Jerky"),
)
_WISHES = (
    "i am looking for {a} that {is_} {attributes}{options}",
    "i need {a}, {attributes}{options}",
    "can you find me {a}? {it} should be {attributes}{options}",
    "i want to buy {a} with these features: {attributes}{options}",
    "please find {a} for {use}, {attributes}{options}",
    "looking for {attributes} {noun}{options}",
    "show me {attributes} {noun} for {use}{options}",
    "my old {noun} {is_} worn out. find me {a} again, {attributes}{options}",
    "get me {attributes} {noun}, please{options}",
    "i would like {a} for {use}. {it} must be {attributes}{options}",
)


@dataclass(frozen=True)
class _Kind:
    code: str
    noun: str
    category: str
    path: str
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    dollars: tuple[int, int]
    use: str


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[_Kind, ...], tuple[str, ...]]:
    """The kinds of product, category by category, and the brands."""
    table = yaml.safe_load(read_text(_TABLE))
    kinds = []
    for category, records in table["kinds"].items():
        for record in records:
            record["attributes"] = tuple(record["attributes"])
            record["options"] = {name: tuple(v) for name, v in record["options"].items()}
            kinds.append(_Kind(category=category, **record))
    return tuple(kinds), tuple(table["brands"])


CHECKSUM = "b1673d8640b6e6e2"
"""Stands for the products in fingerprints and in the cache; a test says when to renew it."""


def products(per_kind: int = PER_KIND, seed: int = SEED) -> Iterator[Product]:
    """The shop's products: `per_kind` of each of the sixty kinds, the same for the same seed."""
    for kind in _table()[0]:
        for number in range(per_kind):
            yield _product(kind, number, random.Random(f"{seed}/{kind.code}/{number}"))


def _product(kind: _Kind, number: int, rng: random.Random) -> Product:
    attributes = rng.sample(kind.attributes, rng.randint(3, 4))
    brand, use = rng.choice(_table()[1]), kind.use
    shown, rest = [word.title() for word in attributes[:2]], attributes[2:]
    title = rng.choice(
        (
            f"{brand} {shown[0]} {shown[1]} {kind.noun}",
            f"{brand} {kind.noun}, {shown[0]}, {shown[1]}",
            f"{shown[0]} {kind.noun} by {brand}, {shown[1]}",
            f"{brand} {shown[1]} {kind.noun} with {shown[0]}",
        )
    )
    options = {
        name: _some(values, rng, at_least=2 if len(values) < 4 else 3)
        for name, values in kind.options.items()
    }
    pricing = _pricing(kind.dollars, rng)
    first = f"{', '.join(word.capitalize() for word in rest)}: made for {use}."
    return Product(
        asin=f"B{kind.code}{number:03d}",
        title=title,
        description=f"{kind.noun} by {brand} for {use}.",
        bullets=(first, f"{shown[0]} and {shown[1].lower()}.", "Returns within 30 days."),
        price_tag="$" + " to $".join(map(str, pricing)),
        pricing=pricing,
        options=options,
        attributes=tuple(attributes),
        category=kind.category,
        query=kind.noun.lower(),
        product_category=kind.path,
        wishes=(_wish(kind, attributes, options, rng),),
        template=_template(kind, attributes, rng),
    )


def _some(values: Sequence[str], rng: random.Random, at_least: int) -> tuple[str, ...]:
    """Some of the values, in their own order."""
    chosen = set(rng.sample(values, rng.randint(min(at_least, len(values)), len(values))))
    return tuple(value for value in values if value in chosen)


def _pricing(dollars: tuple[int, int], rng: random.Random) -> tuple[float, ...]:
    """A price, or (one in five) the two ends of a range; skewed towards low prices."""
    low, high = dollars
    price = round(low + (high - low) * rng.random() ** 1.6 - 0.01, 2)
    if rng.random() < 0.2:
        return price, round(price * rng.uniform(1.2, 1.8), 2)
    return (price,)


def _wish(
    kind: _Kind, attributes: Sequence[str], options: dict[str, tuple[str, ...]], rng: random.Random
) -> dict[str, object]:
    named_attributes = rng.sample(list(attributes), rng.randint(2, 3))
    names = sorted(rng.sample(sorted(options), rng.choice((1, 2, 2))), key=list(options).index)
    chosen = {name: rng.choice(options[name]) for name in names}
    clauses = {
        1: (", in {0}", ". i want the {0} one", ". the {n0} should be {0}"),
        2: (", in {0} and {1}", ". {n0} {0} and {n1} {1}", ". i want {0}, {1}"),
    }
    clause = rng.choice(clauses[len(chosen)])
    noun = kind.noun.lower()
    many = noun.endswith("s") and not noun.endswith("dress")
    text = rng.choice(_WISHES).format(
        a=noun if many or kind.noun.endswith(_UNCOUNTED) else f"{_article(noun)} {noun}",
        noun=noun,
        is_="are" if many else "is",
        it="they" if many else "it",
        use=kind.use,
        attributes=_listed(named_attributes),
        options=clause.format(*chosen.values(), **{f"n{i}": name for i, name in enumerate(chosen)}),
    )
    return {"instruction": text, "attributes": named_attributes, "options": list(chosen.values())}


def _template(kind: _Kind, attributes: Sequence[str], rng: random.Random) -> dict[str, object]:
    pair = rng.sample(list(attributes), 2)
    return {
        "instruction": f"Find me {pair[0]} {kind.noun.lower()} with {pair[1]}",
        "attributes": pair,
    }


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
