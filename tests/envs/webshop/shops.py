"""A product, a goal, and shops in WebShop's own files."""

import json

from stepagent.envs.webshop.data import Goal, Product


def product(**changes):
    """A product to try rules on."""
    fields = {
        "asin": "B0TEST0001",
        "title": "Acme Cotton Shirt",
        "description": "A shirt for warm days.",
        "bullets": ("Machine wash", "Two pockets"),
        "price_tag": "$20.0",
        "pricing": (20.0,),
        "options": {"color": ("navy blue", "red"), "size": ("small", "large")},
        "attributes": ("long sleeve",),
        "category": "fashion",
        "query": "shirts",
        "product_category": "Clothing › Men › Shirts",
    }
    return Product(**{**fields, **changes})


def goal(**changes):
    """A goal that `product()` meets with navy blue (a blue, like light blue) and large."""
    fields = {
        "asin": "B0TEST0001",
        "instruction": "i need a shirt",
        "attributes": ("long sleeve", "machine wash"),
        "options": ("light blue", "large"),
        "price_upper": 30.0,
        "name": "Acme Cotton Shirt",
        "query": "shirts",
        "category": "fashion",
        "product_category": "Clothing › Men › Shirts",
    }
    return Goal(**{**fields, **changes})


def raw_item(number, **changes):
    """A record as WebShop's `items_shuffle*.json` has it."""
    record = {
        "asin": f"B00000{number:04d}",
        "name": f"Plain Mug Number {number}",
        "full_description": "A mug.",
        "small_description": ["Dishwasher safe", "Holds 12 ounces"],
        "pricing": "$12.50",
        "customization_options": {"Color": [{"value": "Sea/Green"}, {"value": "Red"}]},
        "category": "garden",
        "query": "Mugs",
        "product_category": "Home › Kitchen › Mugs",
        "images": ["x"],
    }
    record.update(changes)
    return {name: value for name, value in record.items() if value is not ...}


def write_shop(folder, items, attributes=None, wishes=None):
    """Writes WebShop's files; by default every item has attributes and a synthetic instruction."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {
        item["asin"]: {
            "attributes": ["dishwasher safe"],
            "instruction": "Find me a mug",
            "instruction_attributes": ["dishwasher safe"],
        }
        for item in items
        if isinstance(item, dict) and isinstance(item.get("asin"), str)
    }
    (folder / "items_shuffle.json").write_text(json.dumps(items))
    (folder / "items_ins_v2.json").write_text(json.dumps(attributes or known))
    (folder / "items_human_ins.json").write_text(json.dumps(wishes or {}))
    return folder
