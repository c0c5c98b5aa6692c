"""The shop's pages, and how they read as text: exactly as upstream shows them.

Upstream renders HTML and parses it again at every step; here a page is a list of visible strings,
each with its kind, and the two observation modes are two ways of joining them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from stepagent.envs.webshop.data import Product

PAGE_SIZE = 10
MAX_HITS = 50
SEARCH, BACK, NEXT, PREV, BUY = "Search", "Back to Search", "Next >", "< Prev", "Buy Now"
FEATURES = "Features"
SUB_PAGES = ("Description", FEATURES, "Reviews", "Attributes")
MODES = ("text", "text_rich")

TEXT, BUTTON, LINK, OPTION = "text", "button", "link", "option"
Node = tuple[str, str]
"""(kind, string) of a visible item."""


@dataclass(frozen=True)
class Page:
    """Visible strings, and what can be clicked: clickable text (lower case) → kind, in order."""

    name: str
    """index, results, item, sub or done."""
    nodes: tuple[Node, ...]
    clickables: Mapping[str, str] = field(default_factory=dict)


def _page(name: str, nodes: Sequence[Node]) -> Page:
    shown = tuple((kind, seen) for kind, text in nodes if (seen := _visible(text)))
    buttons = {text.lower(): kind for kind, text in shown if kind == BUTTON}
    links = {text.lower(): kind for kind, text in shown if kind == LINK}
    options = {text: kind for kind, text in shown if kind == OPTION}
    # A button keeps its meaning if an option has the same name.
    return Page(name, shown, {**buttons, **links, **options, **buttons})


def _visible(text: str) -> str:
    """The string as HTML renders it: runs of blanks are one, and none at a line break."""
    if text.strip(" \n\t\f\r"):
        return text
    return "" if "\n" in text or not text else " "


def _head(instruction: str) -> list[Node]:
    return [(TEXT, "Instruction:"), (TEXT, instruction), (BUTTON, BACK)]


def index_page(instruction: str) -> Page:
    """The page with the search bar."""
    texts = [(TEXT, "WebShop"), (TEXT, "Instruction: "), (TEXT, instruction)]
    return _page("index", [*texts, (BUTTON, SEARCH)])


def results_page(instruction: str, hits: Sequence[Product], number: int, total: int) -> Page:
    """One page of search results. `number` counts from 1; `total` is the number of all hits."""
    nodes = [*_head(instruction), (TEXT, f"Page {number} (Total results: {total})")]
    if number > 1:
        nodes.append((BUTTON, PREV))
    nodes.append((BUTTON, NEXT))
    for product in hits:
        nodes += [(LINK, product.asin), (TEXT, product.title), (TEXT, product.price_tag)]
    return _page("results", nodes)


def item_page(instruction: str, product: Product, show_attributes: bool) -> Page:
    """A product: its options, title, price and what can be read about it."""
    nodes = [*_head(instruction), (BUTTON, PREV)]
    for name, values in product.options.items():
        nodes.append((TEXT, name))
        nodes += [(OPTION, value) for value in values]
    nodes += [
        (TEXT, product.title),
        (TEXT, f"Price: {product.price_tag}"),
        (TEXT, f"Rating: {product.rating}"),
    ]
    nodes += [(BUTTON, name) for name in SUB_PAGES[:3]]
    if show_attributes:
        nodes.append((BUTTON, SUB_PAGES[3]))
    nodes.append((BUTTON, BUY))
    return _page("item", nodes)


def sub_page(instruction: str, product: Product, name: str) -> Page:
    """Description, features, reviews or attributes of a product."""
    nodes = [*_head(instruction), (BUTTON, PREV)]
    return _page("sub", [*nodes, *((TEXT, text) for text in _BODIES[name](product))])


def _reviews(product: Product) -> list[str]:
    texts = []
    for review in product.reviews:
        score = review.get("score", review.get("stars", ""))
        body = review.get("body", review.get("review", ""))
        texts += [f'"{review.get("title", "")}"', str(score), str(body)]
    return texts


def _attributes(product: Product) -> list[str]:
    about = [product.category, product.query, product.product_category]
    return [f" {name}" for name in product.attributes] + about


_BODIES: dict[str, Callable[[Product], list[str]]] = {
    "Description": lambda product: [product.description],
    "Features": lambda product: [f" {bullet}" for bullet in product.bullets],
    "Reviews": _reviews,
    "Attributes": _attributes,
}


def done_page(asin: str, options: Mapping[str, str], reward: float) -> Page:
    """The page after a purchase (upstream hides most of it from people, but not from agents)."""
    chosen = json.dumps(dict(options), sort_keys=True)
    for sign, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027")):
        chosen = chosen.replace(sign, escape)
    texts = ["Thank you for shopping with us!", "Your code: ", "None"]
    texts += [" (Paste it in your MTurk interface.)", "Purchased", "asin", asin]
    texts += ["options", chosen, "attrs", "None", "category", "None", "query", "None"]
    texts += ["product category", "None", "Target", "asin", "options", "attrs", "price upper"]
    texts += ["instuction text", "category", "product category", "query", "Goal ", "None"]
    texts += ["Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details ", "None"]
    return Page("done", tuple((TEXT, text) for text in texts))


def plain(page: Page) -> str:
    """The mode `text`: the visible strings between separators. It does not show choices."""
    return " [SEP] ".join(text.strip() for _, text in page.nodes)


def rich(page: Page, chosen: str, seen: Collection[str]) -> str:
    """The mode `text_rich`: a line for each visible string, buttons marked, choices shown.

    Parameters
    ----------
    chosen: upstream's address of the page, in which it looks for `"value"` of a chosen option.
    seen: ids of the products opened since the search page was left.
    """
    lines, clicked = [], []
    for kind, text in page.nodes:
        if kind == BUTTON:
            text = f"[button] {text} [button_]"
        elif kind == LINK:
            name = "clicked button" if text in seen else "button"
            text = f"\n[{name}] {text} [{name}_]"
        elif kind == OPTION:
            name = "button"
            if f'"{text}"' in chosen:
                name = "clicked button"
                clicked.append(f"You have clicked {text}.\n")
            text = f"  [{name}] {text} [{name}_]"
        lines.append(text + "\n")
    return "".join([*reversed(clicked), *lines])
