import json
import random
import subprocess
import sys

import pytest

from stepagent import envs
from stepagent.envs import json_stream
from stepagent.envs.containers import members
from stepagent.envs.core import checksum
from stepagent.envs.webshop import catalogue, data, engine, generate, sources
from tests.envs.webshop.shops import goal, product, raw_item, write_shop

ID = "stepagent/WebShop-v0"


def test_upstreams_records_are_read_as_upstream_reads_them(tmp_path):
    write_shop(tmp_path, [raw_item(i) for i in range(4)])
    shop = sources.from_files(tmp_path)
    mug = shop.product(shop.number_of("B000000002"))
    assert mug.options == {"color": ("sea | green", "red")}
    assert mug.price_tag == "$12.5"
    assert mug.query == "mugs"
    assert mug.index_text() == ("plain mug number 2 a mug. dishwasher safe color: sea | green, red")
    assert shop.skipped == {}
    assert len(shop.goals("synthetic")) == 8
    with pytest.raises(KeyError):
        shop.number_of("B000000009")


def test_unusable_products_are_counted_and_left_out(tmp_path):
    items = [
        raw_item(1),
        raw_item(1, name="The same id again"),
        raw_item(2, name=...),
        raw_item(3, asin="B00000000000"),
        raw_item(4, asin="nan"),
        raw_item(5, pricing=..., customization_options=..., small_description=...),
        raw_item(6, pricing="$7.00$9.50"),
        raw_item(7, pricing="call us", customization_options={"size": None}),
        "not a product",
    ]
    wishes = {
        "B000000001": [
            {
                "instruction": "a mug.",
                "instruction_attributes": ["dishwasher safe"],
                "instruction_options": ["red"],
            },
            {"instruction": "no options here"},
        ],
        "B0GONE0000": [{}, {}],
    }
    shop = sources.from_files(write_shop(tmp_path, items, wishes=wishes))
    assert len(shop) == 4
    assert shop.skipped == {
        "products without a title": 1,
        "products without an id of at most 10 characters": 2,
        "products that are no JSON object": 1,
        "products whose id was there before": 1,
        "human instructions that lack a field": 1,
        "human instructions whose product is not in the catalogue": 2,
    }
    bare = shop.product(shop.number_of("B000000005"))
    assert (bare.pricing, bare.price_tag, bare.options) == ((100.0,), "$100.0", {})
    assert shop.product(shop.number_of("B000000006")).price_tag == "$7.0 to $9.5"
    assert shop.product(shop.number_of("B000000007")).pricing == (100.0,)


def test_fields_of_another_type_are_counted_and_left_out(tmp_path):
    items = [
        raw_item(1, options={"c": None}),
        raw_item(2, options={"c": 5}),
        raw_item(3, Reviews=5),
        raw_item(4, options={"c": "red"}),
        raw_item(5),
        raw_item(6, pricing=10**400, Reviews=None, options=5),
        raw_item(7, asin="\ud800"),
        raw_item(8, asin="B\x00"),
    ]
    folder = write_shop(tmp_path, items)
    ins = folder / "items_ins_v2.json"
    ins.write_text(json.dumps({**json.loads(ins.read_text()), "B000000005": _WRONG}))
    shop = sources.from_files(folder)
    assert [product.asin for product in shop] == ["B000000006"]
    assert shop.skipped["products with a field of another type"] == 5
    assert shop.skipped["products whose id cannot be written"] == 2


_WRONG = {"instruction": "a mug", "instruction_attributes": 5}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("items_ins_v2.json", "[1, 2]", "object"),
        ("items_human_ins.json", '[["B000000001", []]]', "object"),
        ("items_human_ins.json", '{"B000000001": [], 5: []}', "object"),
        ("items_shuffle.json", '{"a": 1}', "array"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, name, text, says):
    folder = write_shop(tmp_path, [raw_item(i) for i in range(5)])
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}: a JSON {says}"):
        sources.from_files(folder)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no catalogue at"):
        sources.from_files(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="items_shuffle"):
        sources.from_files(tmp_path)
    folder = write_shop(tmp_path / "shop", [raw_item(i) for i in range(5)])
    (folder / "items_ins_v2.json").unlink()
    (folder / "items_human_ins.json").unlink()
    with pytest.raises(FileNotFoundError, match="items_ins_v2"):
        sources.from_files(folder)
    write_shop(folder, [raw_item(i) for i in range(5)])
    main = folder / "items_shuffle.json"
    text = main.read_text()
    main.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"items_shuffle\.json: cut or damaged"):
        sources.from_files(folder)
    main.write_text(text[:-1])
    with pytest.raises(ValueError, match="cut at its end"):
        sources.from_files(folder)
    main.write_text("no json")
    with pytest.raises(ValueError, match="array or object"):
        sources.from_files(folder)
    main.write_text("[]")
    with pytest.raises(ValueError, match="no product is left"):
        sources.from_files(folder)
    (folder / "documents_9.jsonl").write_text('{"product": {"asin"')
    with pytest.raises(ValueError, match=r"documents_9\.jsonl:1: not JSON"):
        sources.from_files(folder / "documents_9.jsonl")


def test_streamed_json_is_json(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 7)
    for value in ([], [1, "a,]}", {"b": [None, 2.5]}], {"x": {"y": "]"}, "é": [[]]}, {}):
        file = tmp_path / "some.json"
        file.write_text(json.dumps(value, indent=3))
        (member,) = members(file)
        assert list(sources.stream(member)) == (
            list(value.items()) if isinstance(value, dict) else value
        )


def test_goals_without_a_kind_say_what_there_is(tmp_path):
    folder = write_shop(tmp_path, [raw_item(i) for i in range(4)])
    with pytest.raises(ValueError, match="no human goals"):
        envs.make(ID, data=folder)
    assert envs.make(ID, data=folder, goals="synthetic").tasks
    with pytest.raises(ValueError, match="human or synthetic"):
        envs.make(ID, goals="mine")
    with pytest.raises(ValueError, match="text or text_rich"):
        envs.make(ID, observation="html")


def test_an_index_of_another_catalogue_is_refused(tmp_path):
    folder = write_shop(tmp_path, [raw_item(i) for i in range(4)])
    engine.Shop(sources.from_files(folder), 0)
    shop = sources.from_files(folder)
    shop._ids = shop._ids[:3]
    with pytest.raises(ValueError, match="index of another catalogue"):
        engine.Shop(shop, 0)


def test_a_damaged_cached_catalogue_is_made_again(tmp_path):
    folder = write_shop(tmp_path, [raw_item(i) for i in range(4)])
    cached = sources.from_files(folder).folder
    (cached / "products.jsonl").write_text("{}")
    assert sources.from_files(folder).product(0).title == "Plain Mug Number 0"


def test_budgets_follow_the_rule():
    rng = random.Random(0)
    drawn = {data.budget(20.0, rng) for _ in range(200)}
    assert {upper for upper, _ in drawn} == {40.0, 50.0, 60.0}
    assert (50.0, ", and price lower than 50.00 dollars") in drawn
    assert data.budget(971.0, rng) == (990.0, ", and price lower than 990.00 dollars")
    assert data.budget(980.0, rng) == (1_000_000.0, "")
    ranged = product(pricing=(10.0, 20.0))
    assert 10.0 <= data.price_of(ranged, 5) <= 20.0
    assert data.price_of(ranged, 5) == data.price_of(ranged, 5) != data.price_of(ranged, 6)


def test_goals_of_a_product():
    shirt = product(
        wishes=({"instruction": "a shirt.", "attributes": ["soft"], "options": ["red"]},),
        template={"instruction": "Find me shirts", "attributes": ["soft"]},
    )
    assert data.goal_count(shirt, "human") == 1
    assert data.goal_count(shirt, "synthetic") == 4
    human = data.goal(shirt, "human", 0, seed=1)
    assert human.instruction.startswith("a shirt, and price lower than")
    assert human.options == ("red",)
    synthetic = [data.goal(shirt, "synthetic", n, seed=1) for n in range(4)]
    assert synthetic[1].options == {"color": "navy blue", "size": "large"}
    assert " with color: navy blue, and size: large, and price" in synthetic[1].instruction
    assert len({g.price_upper for g in synthetic}) == 1
    assert goal(options={"a": "b"}).option_values() == ["b"]


@pytest.mark.parametrize("count", [3, 24, 2400, 5000])
def test_splits_share_nothing(count):
    parts = data.split_of(count, 233)
    assert sorted(n for part in parts.values() for n in part) == list(range(count))
    assert all(parts.values())
    if count == 5000:
        assert (len(parts["test"]), len(parts["dev"])) == (500, 1000)
    with pytest.raises(ValueError, match="at least 3"):
        data.split_of(2, 233)


def test_the_bundled_shop():
    products = list(generate.products())
    assert len(products) == 2400
    assert len({p.asin for p in products}) == 2400
    assert {p.category for p in products} == {
        "beauty",
        "electronics",
        "fashion",
        "garden",
        "grocery",
    }
    assert products == list(generate.products())
    for one in products:
        (wish,) = one.wishes
        assert set(wish["attributes"]) <= set(one.attributes)
        assert all(any(v in values for values in one.options.values()) for v in wish["options"])
    # near misses: of the same kind, with some but not all of what is asked for
    wish = products[0].wishes[0]["attributes"]
    near = [p for p in products[1:40] if 0 < len(set(wish) & set(p.attributes)) < len(wish)]
    assert len(near) >= 10


def test_the_bundled_splits_share_no_product():
    seen = {}
    for split in ("train", "dev", "test"):
        for task in envs.make(ID, split=split).tasks:
            asin = task.split("/")[1]
            assert seen.setdefault(asin, split) == split
    assert len(seen) == 2400


GOALS = """
from stepagent import envs
from stepagent.envs import json_stream
for kind in ("human", "synthetic"):
    env = envs.make("stepagent/WebShop-v0", split="test", goals=kind)
    for task in env.tasks[:40]:
        env.reset(seed=1, options={"task_id": task})
        print(task, env.instruction, env.shop.price(env.shop.product(task.split("/")[1])))
    for action in ("search[lamp]", "click[next >]", "click[< prev]"):
        print(env.step(action)[0])
"""


def test_the_same_shop_in_every_process():
    outputs = {
        subprocess.run([sys.executable, "-c", GOALS], capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(outputs) == 1
    assert len(outputs.pop()) > 5000


def test_a_product_survives_its_file():
    shop = catalogue.make("one-way", [product(reviews=({"title": "Good"},))])
    assert shop.product(0) == product(reviews=({"title": "Good"},))
    assert shop.id_of(0) == "B0TEST0001"


def test_the_bundled_products_are_those_that_their_checksum_stands_for():
    """Where this fails on purpose: record the products' new checksum, and renew CHECKSUM."""
    products = checksum(*(repr(product) for product in generate.products()))
    assert (products, generate.CHECKSUM) == ("eb30e7d0fb1552b6", "b1673d8640b6e6e2")
