"""The shop and a visit to it: what a search finds and what a click does.

A `Shop` is shared by all environments of a process that use the same one; a `Visit` is one
episode's state. The rules are upstream's (`web_agent_text_env`), action for action:

- An action is `name[argument]`, the argument in lower case. `search` works on every page, `click`
  on what the page shows; anything else, and `click[search]`, leaves the page as it is.
- A search, paging, and `< Prev` of an item page forget the product and the chosen options; `< Prev`
  of a sub-page keeps them. `Back to Search` also forgets which products were opened.
- Left out: upstream's keyword back doors (`<r>`, `<a>`, `<c>`, `<q>`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache

from stepagent.envs.search import Index
from stepagent.envs.webshop import data, pages, reward, sources
from stepagent.envs.webshop.catalogue import Catalogue
from stepagent.envs.webshop.data import Goal, Product
from stepagent.envs.webshop.pages import FEATURES, Page

_MAX_KEYWORDS = 2000
"""Characters of a query that are used."""


class Shop:
    """A catalogue with its search index and prices.

    Parameters
    ----------
    catalogue: the products.
    seed: of prices and budgets.
    """

    def __init__(self, catalogue: Catalogue, seed: int):
        self.catalogue, self.seed = catalogue, seed
        self.index = Index.build(
            lambda: (product.index_text() for product in catalogue),
            f"webshop-{catalogue.checksum}",
        )
        if len(self.index) != len(catalogue):
            raise ValueError(
                f"{self.index.folder} is the index of another catalogue: it has {len(self.index)} "
                f"documents, the catalogue {len(catalogue)} products. Delete that folder"
            )
        self._hits = lru_cache(maxsize=8192)(self._search)

    def __len__(self) -> int:
        return len(self.catalogue)

    def product(self, asin: str) -> Product:
        """Raises KeyError for an unknown id."""
        return self.catalogue.product(self.catalogue.number_of(asin))

    def price(self, product: Product) -> float:
        """The product's price in this shop, in dollars."""
        return data.price_of(product, self.seed)

    def search(self, keywords: str) -> tuple[int, ...]:
        """Numbers of the best 50 products, best first."""
        return self._hits(keywords[:_MAX_KEYWORDS])

    def _search(self, keywords: str) -> tuple[int, ...]:
        return tuple(number for number, _ in self.index.search(keywords, pages.MAX_HITS))


@lru_cache(maxsize=8)
def open_shop(source: str | None, seed: int) -> Shop:
    """The shop of a folder or catalogue file (None: the bundled one); one per process.

    Raises FileNotFoundError or ValueError that say what is wrong with the files.
    """
    return Shop(sources.bundled() if source is None else sources.from_files(source), seed)


class Visit:
    """One shopper's way through the shop.

    Parameters
    ----------
    shop, goal: where the visit takes place, and its goal.
    mode: "text" or "text_rich".
    show_attributes: whether item pages have the button Attributes.
    search: keywords → product numbers; None: the shop's own search.

    Attributes
    ----------
    page: the current page.
    product, options: the current choice, if any.
    hits, number: products of the last search, and which page of them was shown last, from 1.
    read: ids of the products whose features were shown.
    bought: the reward and its parts after a purchase.
    """

    def __init__(
        self,
        shop: Shop,
        goal: Goal,
        mode: str = "text",
        show_attributes: bool = False,
        search: Callable[[str], tuple[int, ...]] | None = None,
    ):
        self.shop, self.goal, self.mode = shop, goal, mode
        self._show_attributes, self._search = show_attributes, search or shop.search
        self.bought: reward.Reward | None = None
        self.read: set[str] = set()
        self.page: Page
        self._to_index()

    def observation(self) -> str:
        """The page in this visit's mode."""
        if self.mode == "text":
            return pages.plain(self.page)
        address = f"{self._keywords.replace(' ', '+')}/{json.dumps(self.options)}"
        return pages.rich(self.page, address, self._opened)

    def act(self, action: str) -> bool:
        """Carries out the action; False if it is not understood or not possible here."""
        name, argument = read_action(action)
        if not name or self.bought is not None:
            return False
        argument = argument.lower()
        if name == "search":
            self._keywords, self.hits = argument, self._search(argument)
            self._to_results(1)
            return True
        if name != "click" or argument not in self.page.clickables or argument == "search":
            return False
        if self.page.clickables[argument] == pages.LINK:
            self._open(argument)
        elif self.page.clickables[argument] == pages.OPTION:
            self._choose(argument)
        else:
            self._press(argument)
        return True

    def actions(self) -> list[str]:
        """What can be clicked here, as actions (searching is always possible, too)."""
        return [f"click[{text}]" for text in self.page.clickables if text != "search"]

    def _press(self, button: str) -> None:
        if button == pages.BUY.lower():
            self._buy()
        elif button == pages.BACK.lower():
            self._to_index()
        elif button == pages.NEXT.lower():
            self._to_results(self.number + 1)
        elif button == pages.PREV.lower():
            if self.page.name == "results":
                self._to_results(self.number - 1)
            elif self.page.name == "item":
                self._to_results(self.number)
            else:
                self._to_item()
        else:
            assert self.product is not None
            name = next(name for name in pages.SUB_PAGES if name.lower() == button)
            self.page = pages.sub_page(self.goal.instruction, self.product, name)
            if name == FEATURES:
                self.read.add(self.product.asin)

    def _to_index(self) -> None:
        self._keywords, self.hits, self.number = "", (), 1
        self.product: Product | None = None
        self.options: dict[str, str] = {}
        self._opened: set[str] = set()
        self.page = pages.index_page(self.goal.instruction)

    def _to_results(self, number: int) -> None:
        self.product, self.options, self.number = None, {}, number
        first = (number - 1) * pages.PAGE_SIZE
        shown = self.hits[first : first + pages.PAGE_SIZE]
        self._shown = [self.shop.catalogue.product(hit) for hit in shown]
        self.page = pages.results_page(self.goal.instruction, self._shown, number, len(self.hits))

    def _open(self, link: str) -> None:
        self.product = next(p for p in self._shown if p.asin.lower() == link)
        self._opened.add(self.product.asin)
        self._to_item()

    def _to_item(self) -> None:
        assert self.product is not None
        self.page = pages.item_page(self.goal.instruction, self.product, self._show_attributes)

    def _choose(self, value: str) -> None:
        assert self.product is not None
        # Of several options with that value, upstream takes the last.
        names = [name for name, values in self.product.options.items() if value in values]
        self.options[names[-1].lower()] = value
        self._to_item()

    def _buy(self) -> None:
        assert self.product is not None
        self.bought = reward.reward(
            self.product, self.goal, self.shop.price(self.product), self.options
        )
        self.page = pages.done_page(self.product.asin, self.options, self.bought.reward)


def wrong_form(action: str) -> str:
    """What to say of an action that has none of the two forms; "" where it has.

    >>> wrong_form("click[Sold out]")
    ''
    """
    name, _ = read_action(action)
    if name in ("search", "click"):
        return ""
    what = f"{name[:40]}[…]" if name else "That"
    return f"{what} is no action: write search[keywords] or click[value], in lower case.\n\n"


def read_action(action: str) -> tuple[str, str]:
    """(name, argument) of the first line, from its last brackets; two empty texts if none.

    Matches what upstream's `(.+)[(.+)]` does, in linear time: the last `]`, and before it the last
    `[` that leaves something in front and between.

    >>> read_action("click[a[b] c] d"), read_action("search[]")
    (('click[a', 'b] c'), ('', ''))
    """
    line = action.split("\n", 1)[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end]) if start > 0 else ("", "")
