import gzip
import json

import pytest

from stepagent.envs.webshop import engine, nouns
from stepagent.envs.webshop.data import Goal
from stepagent.envs.webshop.reward import attributes_met, colour_of, options_met, reward, similar
from tests.envs.webshop.shops import goal, product


def split_nouns(title):
    """Every word counts as a noun: the tests' titles say what is meant."""
    return tuple(title.lower().split())


CHOSEN = {"color": "navy blue", "size": "large"}
FAR = {"query": "mugs", "product_category": "Home › Kitchen"}


@pytest.mark.parametrize(
    ("bought", "goal_changes", "price", "chosen", "expected"),
    [
        # everything met: (2 + 2 + 1) / (2 + 2 + 1)
        ({}, {}, 20.0, CHOSEN, 1.0),
        # too dear: (2 + 2 + 0) / 5
        ({}, {}, 30.01, CHOSEN, 0.8),
        # exactly the limit is within it
        ({}, {}, 30.0, CHOSEN, 1.0),
        # one option missing, none chosen
        ({}, {}, 20.0, {"size": "large"}, 0.8),
        ({}, {}, 20.0, {}, 0.6),
        # the wrong value of an option
        ({}, {}, 20.0, {**CHOSEN, "size": "small"}, 0.8),
        # an attribute that stands neither in the attributes nor in the texts: (1 + 2 + 1) / 5
        ({}, {"attributes": ("long sleeve", "fleece lined")}, 20.0, CHOSEN, 0.8),
        # no options asked for: (2 + 0 + 1) / 3
        ({}, {"options": ()}, 20.0, {}, 1.0),
        # same query, another title, one noun of three shared: r_type 1
        ({"title": "Bolt Cotton Trousers"}, {}, 20.0, CHOSEN, 1.0),
        # nothing but a title score of 1/3 > 0.2: r_type 1
        ({"title": "Bolt Cotton Trousers", **FAR}, {}, 20.0, CHOSEN, 1.0),
        # two categories shared, not the query: r_type 1
        ({"query": "tops", "title": "Cotton Vest"}, {}, 20.0, CHOSEN, 1.0),
        # neither query nor categories, title score 1/5 = 0.2, which is not above 0.2: 0.5
        ({"title": "Cotton Mug", **FAR}, {"name": "a b c d cotton"}, 20.0, CHOSEN, 0.5),
        # title score 1/11 < 0.1: 0.1, although the query is the same
        ({"title": "Cotton"}, {"name": "cotton b c d e f g h i j k"}, 20.0, CHOSEN, 0.1),
        # no noun shared: 0, although query and categories are the same
        ({"title": "Vest"}, {}, 20.0, CHOSEN, 0.0),
        # no noun in the goal's title: title score 0.2; the query matches: 1
        ({}, {"name": ""}, 20.0, CHOSEN, 1.0),
        # no noun in the goal's title and nothing matches: 0.5
        (FAR, {"name": ""}, 20.0, CHOSEN, 0.5),
    ],
)
def test_worked_cases(bought, goal_changes, price, chosen, expected):
    purchase = reward(product(**bought), goal(**goal_changes), price, chosen, split_nouns)
    assert purchase.reward == pytest.approx(expected, abs=1e-12)


def test_parts_and_their_weights():
    purchase = reward(product(), goal(), 40.0, {"size": "large"}, split_nouns)
    assert purchase.r_att == 1.0
    assert purchase.r_option == 0.5
    assert not purchase.r_price
    assert (purchase.w_att, purchase.w_option, purchase.w_price) == (0.4, 0.4, 0.2)
    assert purchase.title_score == 1.0
    bare = reward(product(), goal(options=()), 20.0, {}, split_nouns)
    assert bare.r_option is None
    assert "r_option" not in bare.metrics()
    with pytest.raises(ValueError, match="no attributes"):
        reward(product(), goal(attributes=()), 20.0, {}, split_nouns)


def test_attributes_are_found_in_every_text():
    has = product(title="Quiet Fan", bullets=("With Timer",), description="For the Desk.")
    assert attributes_met(has, ["quiet", "with timer", "for the desk", "long sleeves"]) == 4
    assert attributes_met(has, ["loud", "wooden"]) == 0


def test_options_compare_colours_first():
    assert options_met(["light blue"], ["dark blue"]) == 1  # both are "blue" first
    assert options_met(["blue"], ["teal"]) == 0
    assert options_met(["large"], ["x-large"]) == 1  # the words of one are all in the other
    assert options_met(["7.5"], ["8.5"]) == 0


def test_pairs_are_compared_as_upstream_does():
    # ("color", "red") *is* red; ("color", "dark red") is not a colour name but a text
    assert colour_of(("color", "red")) == "red"
    assert colour_of(("color", "dark red")) == "('color', 'dark red')"
    assert options_met([("color", "red")], ["dark red"]) == 0  # which is "dark" first
    assert options_met([("size", "x-large")], ["x-large"]) == 1
    assert options_met([("color", "l.brown137")], ["l.brown137"]) == 0  # brown against the pair
    assert options_met([("fit type", "men")], ["women"]) == 0


def test_similar_rounds_before_it_compares():
    assert similar("a b", "b a")
    assert not similar("", "")
    assert not similar("machine wash", "hand wash")


@pytest.mark.real_data
def test_recorded_purchases(real):
    if nouns.method() == "stand-in":
        pytest.skip("spaCy's model is not installed (extra webshop): titles are tagged otherwise")
    shop = engine.open_shop(str(real), 233)
    with gzip.open(real / "upstream" / "reward_cases.jsonl.gz", "rt") as file:
        cases = [json.loads(line) for line in file]
    for case in cases:
        goal = Goal.from_record(case["goal"])
        purchase = reward(shop.product(case["asin"]), goal, case["price"], case["options"])
        assert purchase.reward == pytest.approx(case["reward"], abs=1e-9)
        metrics = purchase.metrics()
        for name, value in case["info"].items():
            assert metrics[name] == pytest.approx(value, abs=1e-9), name


def test_the_stand_in_agrees_with_the_worked_title():
    title = "Acme Men's Long Sleeve Cotton Shirt, Pack of 2, easily washable"
    assert nouns.stand_in(title) == ("acme", "men", "long", "sleeve", "cotton", "shirt", "pack")


@pytest.mark.real_data
def test_how_often_the_stand_in_disagrees(real):
    if nouns.method() == "stand-in":
        pytest.skip("spaCy's model is not installed (extra webshop): nothing to compare with")
    shop = engine.open_shop(str(real), 233)
    titles = [product.title for product in shop.catalogue][::5]
    shared = missed = added = 0
    for title in titles:
        spacys, stand_ins = set(nouns.nouns(title)), set(nouns.stand_in(title))
        shared += len(spacys & stand_ins)
        missed += len(spacys - stand_ins)
        added += len(stand_ins - spacys)
    assert shared / (shared + missed) > 0.93
    assert shared / (shared + added) > 0.88
