"""WebShop's reward for a purchase, as pure functions (Yao et al., 2022, section 2.2 and appendix).

    r = r_type · (attributes met + options met + [price within budget]) / (|A| + |O| + 1)

How upstream's code computes the parts, reproduced here with its consequences:

- An attribute of the goal is met if it resembles any attribute of the product (`similar`), or
  occurs in the lower-cased title, bullets (joined) or description.
- An option of the goal is met if it resembles any chosen value, after both were reduced to the
  first colour name (in the order of `COLOURS`) that they contain. Goals whose options are
  name → value (synthetic ones) give (name, value) pairs: a pair is reduced only if its
  name or value *is* a colour name, and is compared as the text of the pair, so that it resembles
  the value alone, and the option's name too.
- The titles' nouns decide r_type together with query and category; see `type_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from stepagent.envs.webshop.data import Goal, Product
from stepagent.envs.webshop.nouns import nouns as default_nouns

_COLOURS = """
alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown
burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac
copper coral cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite
grape graphite grass gray green grey heather indigo ivory ivy khaki lavender lemon leopard light
lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard natural navy
nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell
silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut
wheat white wine yellow
"""
COLOURS: tuple[str, ...] = tuple(_COLOURS.split())
"""The colours that upstream's normaliser knows, in its order."""
_LATIN = dict.fromkeys(range(128, 256))
Nouns = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Reward:
    """A purchase's score and its parts, named as in upstream.

    `r_option` is None if the goal has no options; `w_*` are the parts' shares of the sum.
    """

    reward: float
    r_type: float
    query_match: bool
    category_match: bool
    title_score: float
    r_att: float
    w_att: float
    r_option: float | None
    w_option: float
    r_price: bool
    w_price: float

    def metrics(self) -> dict[str, float]:
        """The parts as numbers; r_option is left out if there is none."""
        parts = {name: value for name, value in asdict(self).items() if value is not None}
        del parts["reward"]
        return {name: float(value) for name, value in parts.items()}


def reward(
    product: Product,
    goal: Goal,
    price: float,
    options: Mapping[str, str],
    nouns: Nouns = default_nouns,
) -> Reward:
    """The reward of buying a product for a goal.

    Parameters
    ----------
    product: what was bought.
    goal: what was to be bought.
    price: what it cost, in dollars.
    options: option name → chosen value (lower case, as the page shows it).
    nouns: gives the nouns of a title in lower case, repetitions included.

    Raises ValueError for a goal without attributes (upstream divides by their number).
    """
    if not goal.attributes:
        raise ValueError(f"the goal for {goal.asin} has no attributes: it cannot be scored")
    r_type, query_match, category_match, title = type_score(product, goal, nouns)
    attributes = attributes_met(product, goal.attributes)
    met = options_met(goal.option_texts(), tuple(options.values()))
    r_price = price <= goal.price_upper
    n_attributes, n_options = len(goal.attributes), len(goal.options)
    parts = n_attributes + n_options + 1
    return Reward(
        reward=(attributes + met + r_price) / parts * r_type,
        r_type=r_type,
        query_match=query_match,
        category_match=category_match,
        title_score=title,
        r_att=attributes / n_attributes,
        w_att=n_attributes / parts,
        r_option=met / n_options if n_options else None,
        w_option=n_options / parts,
        r_price=r_price,
        w_price=1 / parts,
    )


def type_score(
    product: Product, goal: Goal, nouns: Nouns = default_nouns
) -> tuple[float, bool, bool, float]:
    """(r_type, same query, at least two categories shared, title score).

    The title score is the number of different nouns that both titles have, over the number of
    nouns of the goal's title; 0.2 if that has none. r_type is 1; 0.5 if neither query nor
    categories match and the title score is at most 0.2; and whatever matched, 0.1 if the title
    score is below 0.1 and 0 if it is 0.
    """
    query_match = product.query == goal.query
    category_match = len(_categories(product) & _categories(goal)) >= 2
    goal_nouns = nouns(goal.name)
    title = (
        len(set(nouns(product.title)) & set(goal_nouns)) / len(goal_nouns) if goal_nouns else 0.2
    )
    r_type = 1.0 if query_match or category_match or title > 0.2 else 0.5
    if title < 0.1:
        r_type = 0.1
    if title == 0.0:
        r_type = 0.0
    return r_type, query_match, category_match, title


def _categories(of: Product | Goal) -> set[str]:
    return {name.strip() for name in of.product_category.split("›")}


def attributes_met(product: Product, attributes: Sequence[str]) -> int:
    """How many of the attributes the product has, by its attributes or its texts."""
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return sum(
        any(similar(own, attribute) for own in product.attributes)
        or any(attribute in text for text in texts)
        for attribute in attributes
    )


def options_met(options: Sequence[str | tuple[str, str]], chosen: Sequence[str]) -> int:
    """How many of the options resemble a chosen value."""
    values = [colour_of(value) for value in chosen]
    return sum(any(similar(value, colour_of(option)) for value in values) for option in options)


def colour_of(option: str | tuple[str, str]) -> str:
    """The first colour name in the option (of a pair: that *is* its name or value), else itself.

    >>> colour_of("dark navy blue"), colour_of("large"), colour_of(("color", "navy blue"))
    ('blue', 'large', "('color', 'navy blue')")
    """
    for colour in COLOURS:
        if colour in option:
            return colour
    return str(option)


@lru_cache(maxsize=262_144)
def similar(one: str, other: str) -> bool:
    """Whether thefuzz's `token_set_ratio` (rounded to a whole number) exceeds 85."""
    from rapidfuzz import fuzz, utils

    first = utils.default_process(one.translate(_LATIN))
    second = utils.default_process(other.translate(_LATIN))
    return round(fuzz.token_set_ratio(first, second)) > 85
