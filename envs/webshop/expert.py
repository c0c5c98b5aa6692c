"""The expert: a shopper who knows what the goal means, and buys through the pages like anyone else.

It searches for the goal's own words, goes through the results page by page, opens the first product
that meets every wish, reads its features if the title does not tell, chooses the options, checks
the price and buys. It may know from the goal that a product meets the wishes; where the product is
and what can be clicked, it learns from the page. If no product meets them all within the steps, it
takes the one that meets most.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepagent.envs.core import Plan
from stepagent.envs.webshop import reward
from stepagent.envs.webshop.data import Goal, Product
from stepagent.envs.webshop.engine import Shop, Visit
from stepagent.envs.webshop.pages import MAX_HITS, PAGE_SIZE

_WORD = re.compile(r"[^\W_]+(?:[-'.][^\W_]+)*")
_TALK_TEXT = """
i im i'm am a an the of for to in on at and or with that is are it its they them be me my you
can could would should please want need find show get buy looking look like some any also these
those this which has have must from by one so price lower than dollars features if will id i'd
love prefer under less dollar ones
"""
_TALK = frozenset(_TALK_TEXT.split())


@dataclass(frozen=True)
class _Offer:
    """A product in the results: its place, options to choose, and the reward of buying it."""

    query: str
    place: int
    """Its index among the hits, from 0."""
    product: Product
    options: tuple[tuple[str, str], ...]
    reward: float
    reads: bool
    """Whether its features have to be read, because no wish is in the title."""

    @property
    def steps(self) -> int:
        return 3 + self.place // PAGE_SIZE + len(self.options) + 2 * self.reads


def keywords(goal: Goal) -> list[str]:
    """The words to search for: the attributes, the kind of thing, the options."""
    words: list[str] = []
    for phrase in (*goal.attributes, goal.query, *goal.option_values()):
        words += [w for w in _WORD.findall(phrase.lower()) if w not in words]
    return words


def queries(goal: Goal) -> Iterator[str]:
    """Queries in the order in which they are tried: from the wishes to the exact name."""
    yield " ".join(keywords(goal))
    wish = goal.instruction.split(", and price lower than")[0].lower()
    yield " ".join(word for word in _WORD.findall(wish) if word not in _TALK)
    yield " ".join(_WORD.findall(" ".join((*goal.attributes, goal.query))))
    yield " ".join(_WORD.findall(goal.name.lower()))
    yield goal.query


def plan(shop: Shop, goal: Goal, limit: int) -> Plan:
    """(thought, action) pairs that reach the goal, or come closest, in at most `limit` steps.

    Raises ValueError if no search finds anything that could be bought in so few steps.
    """
    best: _Offer | None = None
    for query in filter(None, map(str.strip, queries(goal))):
        for offer in _offers(shop, goal, query, limit):
            if best is None or (offer.reward, -offer.steps) > (best.reward, -best.steps):
                best = offer
        if best is not None and best.reward == 1.0:
            break
    if best is None:
        raise ValueError(f"nothing can be bought for {goal.instruction!r} in {limit} steps")
    return _written(shop, goal, best)


def _offers(shop: Shop, goal: Goal, query: str, limit: int) -> Iterator[_Offer]:
    """The results of a query, in order, until one meets every wish."""
    for place, number in enumerate(shop.search(query)[:MAX_HITS]):
        product = shop.catalogue.product(number)
        options = options_to_choose(product, goal)
        reads = needs_reading(product, goal)
        offer = _Offer(query, place, product, options, 0.0, reads)
        if offer.steps > limit:
            offer = _Offer(query, place, product, options, 0.0, False)
        if offer.steps > limit:
            continue
        earned = reward.reward(product, goal, shop.price(product), dict(options)).reward
        yield _Offer(query, place, product, options, earned, offer.reads)
        if earned == 1.0:
            return


def needs_reading(product: Product, goal: Goal) -> bool:
    """Whether no wish is in the product's title, so that its features have to be read."""
    title = product.title.lower()
    return not any(attribute in title for attribute in goal.attributes)


def options_to_choose(product: Product, goal: Goal) -> tuple[tuple[str, str], ...]:
    """(name, value) of the options to click: for every wish the value that fits best."""
    return tuple(_choice(product, goal))


def _choice(product: Product, goal: Goal) -> Iterator[tuple[str, str]]:
    taken: set[str] = set()
    pairs = goal.option_texts()
    for pair in pairs:
        value = pair if isinstance(pair, str) else pair[1]
        name = "" if isinstance(pair, str) else pair[0]
        best = max(
            (
                (_fit(own_name, own, name, value, pair), -order, own_name, own)
                for order, (own_name, own) in enumerate(_values(product))
                if own_name not in taken
            ),
            default=(0, 0, "", ""),
        )
        if best[0] > 0:
            taken.add(best[2])
            yield best[2], best[3]


def _values(product: Product) -> Iterator[tuple[str, str]]:
    """(name, value) of every option that can be clicked by typing its value."""
    last = {value: name for name, values in product.options.items() for value in values}
    for name, values in product.options.items():
        for value in values:
            if last[value] == name and not set("[]\n") & set(value) and value == value.lower():
                yield name, value


def _fit(
    name: str, value: str, goal_name: str, goal_value: str, option: str | tuple[str, str]
) -> int:
    """How well an option's value fits a wish: 0 not at all, 4 exactly."""
    if value == goal_value.lower():
        return 4 if not goal_name or name == goal_name else 3
    if not reward.similar(reward.colour_of(value), reward.colour_of(option)):
        return 0
    return 2 if goal_value.lower() in value or value in goal_value.lower() else 1


def _written(shop: Shop, goal: Goal, offer: _Offer) -> Plan:
    """The offer as steps with thoughts, played through, so that every click exists on its page."""
    say = Voice(goal)
    visit, steps = Visit(shop, goal), Plan()

    def do(thought: str, action: str) -> None:
        if visit.act(action):
            steps.append((thought, action))

    do(say.search(), f"search[{offer.query}]")
    for page in range(offer.place // PAGE_SIZE):
        do(say.turn(page + 1), "click[next >]")
    do(say.open(offer.product), f"click[{offer.product.asin.lower()}]")
    if offer.reads:
        do(say.read(), "click[features]")
        do(say.results(), "click[< prev]")
    for name, value in offer.options:
        do(say.choose(name, value), f"click[{value}]")
    do(say.buy(offer.product, offer.reward), "click[buy now]")
    return steps


class Voice:
    """Thoughts about one goal; which wording is used depends on the goal alone."""

    def __init__(self, goal: Goal):
        self.goal, self.turnings = goal, zlib.crc32(goal.instruction.encode())
        self.thing = goal.query or "product"
        self.wishes = _listed(goal.attributes)
        self.budget = f"{goal.price_upper:.2f} dollars" if goal.price_upper < 1e6 else ""

    def _one(self, *wordings: str) -> str:
        return wordings[self.turnings % len(wordings)]

    def search(self) -> str:
        options = _listed(self.goal.option_values())
        details = f" in {options}" if options else ""
        return self._one(
            f"I am asked for {self.thing} with {self.wishes}{details}. I search for these words.",
            f"What counts is {self.wishes}{details}, and that it is {self.thing}. Let me search.",
        )

    def turn(self, page: int) -> str:
        return f"Nothing on page {page} fits all of it. I look at the next page."

    def turn_back(self) -> str:
        return "I have gone too far. I look at the page before."

    def leave(self) -> str:
        return f"This is not the {self.thing} that I am asked for. I go back."

    def search_again(self) -> str:
        return "I do not find what I am asked for this way. I go back and search again."

    def open(self, product: Product) -> str:
        price = f" at {product.price_tag}" if self.budget else ""
        limit = f" My limit is {self.budget}." if self.budget else ""
        return self._one(
            f"{product.asin}{price} looks right: {self.thing} with {self.wishes}.{limit}",
            f"Of these, {product.asin}{price} fits what is asked for.{limit}",
        )

    def read(self) -> str:
        return f"The title does not speak of {self.wishes}. The features may."

    def results(self) -> str:
        return "That agrees with what I am looking for. Back to the product."

    def choose(self, name: str, value: str) -> str:
        return self._one(f"The {name} should be {value}.", f"For the {name} I choose {value}.")

    def buy(self, product: Product, earned: float) -> str:
        met = "Everything is chosen" if earned == 1.0 else "Nothing I found comes closer"
        price = f", and {product.price_tag} is within {self.budget}" if self.budget else ""
        if self.budget and product.pricing and product.pricing[0] > self.goal.price_upper:
            price = f", though {product.price_tag} is above {self.budget}"
        return f"{met}{price}. I buy it."


def _listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
