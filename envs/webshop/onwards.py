"""The expert in the middle of a visit: what it buys from any page, and how it gets there.

It weighs the product in hand, those that the last search found, and those that a search of its own
would find (`expert.queries`), by the reward of buying them and then by the steps that takes. Where
the steps left are too few, it leaves out reading, then the way over the search page, then options.
Every way gets one step shorter as it is walked, so asking again at each step leads to the purchase.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from stepagent.envs.core import Plan
from stepagent.envs.webshop import reward
from stepagent.envs.webshop.data import Product
from stepagent.envs.webshop.engine import Visit
from stepagent.envs.webshop.expert import Voice, needs_reading, options_to_choose, queries
from stepagent.envs.webshop.pages import MAX_HITS, PAGE_SIZE

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Way:
    """A purchase and the steps that lead to it, in order."""

    product: Product
    reward: float
    options: Options
    """(name, value) to click on the product's page."""
    reads: bool
    approach: Plan
    """Steps to the product's page."""

    @property
    def steps(self) -> int:
        return len(self.approach) + 2 * self.reads + len(self.options) + 1


class Buyer:
    """Plans for one visit; what it has found out about products stays for the next question."""

    def __init__(self, visit: Visit):
        self.visit, self.say = visit, Voice(visit.goal)
        self._options: dict[str, Options] = {}
        self._rewards: dict[tuple[str, tuple[str, ...]], float] = {}

    def plan(self, limit: int) -> Plan:
        """(thought, action) pairs from the present page to the best purchase in at most `limit`
        steps; empty where nothing of worth can be bought."""
        best: _Way | None = None
        for ways in (self._in_hand(limit), self._among_hits(limit), self._searched(limit)):
            for way in ways:
                if best is None or (way.reward, -way.steps) > (best.reward, -best.steps):
                    best = way
            if best is not None and best.reward == 1.0:
                break
        return [] if best is None or best.reward == 0 else self._written(best)

    def _written(self, way: _Way) -> Plan:
        say, steps = self.say, list(way.approach)
        if way.reads:
            steps += [(say.read(), "click[features]"), (say.results(), "click[< prev]")]
        steps += [(say.choose(name, value), f"click[{value}]") for name, value in way.options]
        return [*steps, (say.buy(way.product, way.reward), "click[buy now]")]

    # Ways -----------------------------------------------------------------------------------------

    def _in_hand(self, limit: int) -> Iterator[_Way]:
        """Buying the product whose page is open."""
        if (product := self.visit.product) is not None:
            back = [(self.say.results(), "click[< prev]")] if self.visit.page.name == "sub" else []
            yield from self._way(product, back, limit, chosen=self.visit.options)

    def _among_hits(self, limit: int) -> Iterator[_Way]:
        """Buying one of the products that the last search found, the nearest page first."""
        say, visit = self.say, self.visit
        back: Plan = []
        if visit.page.name == "sub":
            back.append((say.leave(), "click[< prev]"))
        if visit.page.name in ("sub", "item"):
            back.append((say.leave(), "click[< prev]"))
        hits = visit.hits[:MAX_HITS]
        places = sorted(range(len(hits)), key=lambda i: abs(i // PAGE_SIZE + 1 - visit.number))
        for place in places:
            page = place // PAGE_SIZE + 1
            forward = [(say.turn(n), "click[next >]") for n in range(visit.number, page)]
            backward = [(say.turn_back(), "click[< prev]") for _ in range(page, visit.number)]
            product = visit.shop.catalogue.product(hits[place])
            approach = [*back, *forward, *backward, self._open(product)]
            for way in self._way(product, approach, limit):
                yield way
                if way.reward == 1.0:
                    return

    def _searched(self, limit: int) -> Iterator[_Way]:
        """Buying one of the products that a search of the expert's own finds."""
        say, visit = self.say, self.visit
        back = [(say.search_again(), "click[back to search]")] if visit.page.name != "index" else []
        for query in filter(None, map(str.strip, queries(visit.goal))):
            search = (say.search(), f"search[{query}]")
            perfect = False
            for place, number in enumerate(visit.shop.search(query)[:MAX_HITS]):
                turns = [(say.turn(n), "click[next >]") for n in range(1, place // PAGE_SIZE + 1)]
                product = visit.shop.catalogue.product(number)
                onwards = [search, *turns, self._open(product)]
                ways = list(self._way(product, [*back, *onwards], limit))
                for way in ways or self._way(product, onwards, limit):
                    yield way
                    perfect = way.reward == 1.0
                if perfect:
                    break
            if perfect:
                return

    def _open(self, product: Product) -> tuple[str, str]:
        return self.say.open(product), f"click[{product.asin.lower()}]"

    def _way(
        self, product: Product, approach: Plan, limit: int, chosen: dict[str, str] | None = None
    ) -> Iterator[_Way]:
        """The purchase of a product after these steps, if there are steps enough for it."""
        chosen = chosen or {}
        room = limit - len(approach) - 1
        options = tuple(
            (name, value)
            for name, value in self._options_of(product)
            if chosen.get(name.lower()) != value
        )
        if room < 0:
            return
        clicks = options[:room]
        unread = product.asin not in self.visit.read and needs_reading(product, self.visit.goal)
        reads = unread and 2 + len(options) <= room
        values = {**chosen, **{name.lower(): value for name, value in clicks}}
        yield _Way(product, self._reward(product, values.values()), clicks, reads, approach)

    def _options_of(self, product: Product) -> Options:
        if product.asin not in self._options:
            self._options[product.asin] = options_to_choose(product, self.visit.goal)
        return self._options[product.asin]

    def _reward(self, product: Product, values: Collection[str]) -> float:
        key = product.asin, tuple(values)
        if key not in self._rewards:
            chosen = {str(i): value for i, value in enumerate(key[1])}
            price = self.visit.shop.price(product)
            self._rewards[key] = reward.reward(product, self.visit.goal, price, chosen).reward
        return self._rewards[key]
