"""Products, goals, prices, budgets and splits of a shop.

Everything random depends on a seed and the product's id, never on the order of loading or the
process: a product whose price is a range costs the same everywhere, and its goals keep their
budgets. (Upstream draws both before seeding, so they differ from process to process.)
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GOALS = ("human", "synthetic")
NO_PRICE = 100.0
"""Price of a product without one, in dollars."""
NO_BUDGET = 1_000_000.0
BUDGETS = tuple(10.0 * i for i in range(1, 100))
UPSTREAM_TEST, UPSTREAM_DEV = 500, 1000
"""Sizes of upstream's test and dev splits; in smaller shops each gets an eighth."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product as upstream's loader produces it; field names in our spelling."""

    asin: str
    title: str
    description: str = ""
    bullets: tuple[str, ...] = ()
    price_tag: str = "$100.0"
    pricing: tuple[float, ...] = (NO_PRICE,)
    """The price, or the two ends of its range, in dollars."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Option name → its values, both in lower case."""
    attributes: tuple[str, ...] = ()
    category: str = ""
    query: str = ""
    product_category: str = ""
    rating: str = "N.A."
    reviews: tuple[Mapping[str, Any], ...] = ()
    wishes: tuple[Mapping[str, Any], ...] = ()
    """People's wishes (`instruction`, `attributes`, `options`): sources of human goals."""
    template: Mapping[str, Any] | None = None
    """Source of synthetic goals (`instruction`, `attributes`)."""

    def index_text(self) -> str:
        """The text that is searched: title, description, first bullet and options, in lower
        case."""
        options = ", and ".join(f"{k}: {', '.join(v)}" for k, v in self.options.items())
        first = self.bullets[0] if self.bullets else ""
        return " ".join([self.title, self.description, first, options]).lower()


@dataclass(frozen=True, slots=True)
class Goal:
    """What a shopper wants. `asin` is one product that fits."""

    asin: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | Mapping[str, str]
    """Only values (human goals), or name → value (synthetic goals)."""
    price_upper: float
    name: str
    query: str
    category: str
    product_category: str

    def option_texts(self) -> list[str | tuple[str, str]]:
        """The options as the reward compares them: values, or (name, value) pairs."""
        if isinstance(self.options, Mapping):
            return list(self.options.items())
        return list(self.options)

    def option_values(self) -> list[str]:
        """The wanted values alone."""
        return list(self.options.values() if isinstance(self.options, Mapping) else self.options)

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Goal:
        """A goal from upstream's own dictionary. Raises KeyError for a missing field."""
        options = record["goal_options"]
        return Goal(
            asin=record["asin"],
            instruction=record["instruction_text"],
            attributes=tuple(record["attributes"]),
            options=dict(options) if isinstance(options, Mapping) else tuple(options),
            price_upper=float(record["price_upper"]),
            name=record["name"],
            query=record["query"],
            category=record["category"],
            product_category=record["product_category"],
        )


def price_of(product: Product, seed: int) -> float:
    """What the product costs, in dollars: its price, or a draw between the ends of its range."""
    if len(product.pricing) < 2:
        return product.pricing[0] if product.pricing else NO_PRICE
    low, high = product.pricing[:2]
    return random.Random(f"{seed}/price/{product.asin}").uniform(low, high)


def budget(price: float, rng: random.Random) -> tuple[float, str]:
    """(price_upper, the sentence that says so) for a product of this price.

    The larger of two different draws from the next four multiples of 10 above the price (up to
    990); if fewer than two are left, there is no limit and no sentence.
    """
    above = [limit for limit in BUDGETS if limit > price][:4]
    if len(above) < 2:
        return NO_BUDGET, ""
    upper = max(rng.sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def goal_count(product: Product, kind: str) -> int:
    """How many goals of a kind ask for the product."""
    if kind == "human":
        return sum(bool(wish["attributes"]) for wish in product.wishes)
    if not product.template or not product.template["attributes"]:
        return 0
    return math.prod(map(len, product.options.values()))


def goal(product: Product, kind: str, number: int, seed: int) -> Goal:
    """The product's goal with that number (below `goal_count`)."""
    if kind == "human":
        wish = [wish for wish in product.wishes if wish["attributes"]][number]
        instruction = wish["instruction"].strip(".")
        options: tuple[str, ...] | dict[str, str] = tuple(wish["options"])
        attributes = wish["attributes"]
        draw = f"{seed}/budget/human/{product.asin}/{number}"
    else:
        assert product.template is not None
        options = _combination(product.options, number)
        instruction, attributes = product.template["instruction"], product.template["attributes"]
        if options:
            instruction += " with " + ", and ".join(f"{k}: {v}" for k, v in options.items())
        draw = f"{seed}/budget/synthetic/{product.asin}"  # one budget for all of a product's goals
    upper, sentence = budget(price_of(product, seed), random.Random(draw))
    return Goal(
        asin=product.asin,
        instruction=instruction + sentence,
        attributes=tuple(attributes),
        options=options,
        price_upper=upper,
        name=product.title,
        query=product.query,
        category=product.category,
        product_category=product.product_category,
    )


def _combination(options: Mapping[str, tuple[str, ...]], number: int) -> dict[str, str]:
    """One value of each option: the one of that number in the order of `itertools.product` over
    the options, sorted by name."""
    chosen = {}
    for name in sorted(options, reverse=True):
        number, at = divmod(number, len(options[name]))
        chosen[name] = options[name][at]
    return dict(reversed(chosen.items()))


def split_of(count: int, seed: int) -> dict[str, array[int]]:
    """The numbers, from 0, of the goals of each split: shuffled by the seed, then cut as upstream
    cuts its own list.

    The first 500 are test, the next 1,000 dev, the rest train; with fewer than 4,000
    goals, test and dev get an eighth each (at least one). Raises ValueError for fewer than three
    goals.
    """
    if count < 3:
        raise ValueError(f"the shop has {count} goals: three splits need at least 3")
    shuffled = array("i", range(count))
    random.Random(seed).shuffle(shuffled)
    test, dev = UPSTREAM_TEST, UPSTREAM_DEV
    if count < 4000:
        test = dev = max(1, count // 8)
    return {
        "test": shuffled[:test],
        "dev": shuffled[test : test + dev],
        "train": shuffled[test + dev :],
    }
