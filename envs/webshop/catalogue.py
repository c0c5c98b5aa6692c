"""A shop's catalogue on disk: products as JSON lines, found by id, shared by all processes.

Building one streams the source files, so that WebShop's 1.18 million products are never in memory
at once; what is left out is counted by reason. Opening one maps two small arrays. The folder's name
contains a checksum of the source, so it cannot be confused with another catalogue.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stepagent.envs.webshop.data import GOALS, NO_PRICE, Product, goal_count
from stepagent.files import build_once, cache_folder, read_text

VERSION = 2
MAX_ASIN = 10
MAX_PRODUCT = 1 << 20
"""Bytes that a product may have as JSON (the largest known has 50,000)."""
MAX_GOALS = {"product": 10_000, "shop": 20_000_000}
"""Goals of a kind. Synthetic ones are all combinations of a product's options: some hundreds in
WebShop's small download, eleven per product on average."""
NO_ATTRIBUTES = ("DUMMY_ATTR",)
"""Upstream's stand-in for the attributes of a product that has none."""
_ID_BYTES = 4 * MAX_ASIN
_REMEMBERED = 4096
"""Products that stay parsed in memory."""


class Catalogue:
    """An open catalogue. Products are numbered in the order of their ids.

    Attributes
    ----------
    checksum: of the source it was made from.
    skipped: reason → how many products or goals were left out.
    replaced: reason → how many products lack something that is made up for.
    """

    def __init__(self, folder: Path):
        meta = json.loads(read_text(folder / "meta.json"))
        if meta.get("version") != VERSION:
            raise ValueError(f"{folder}: catalogue version {meta.get('version')!r}, not {VERSION}")
        self.folder, self.checksum = folder, str(meta["checksum"])
        self.skipped: dict[str, int] = meta["skipped"]
        self.replaced: dict[str, int] = meta["replaced"]
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._places = np.load(folder / "places.npy", mmap_mode="r")
        self._file = os.open(folder / "products.jsonl", os.O_RDONLY)
        if os.fstat(self._file).st_size != meta["bytes"] or len(self._ids) != meta["products"]:
            raise ValueError(f"{folder}: the catalogue's files do not belong together")
        self._product = lru_cache(maxsize=_REMEMBERED)(self._read)

    def __len__(self) -> int:
        return len(self._ids)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def number_of(self, asin: str) -> int:
        """The product's number. Raises KeyError for an unknown id."""
        key = asin.encode("utf-8", "replace")[:_ID_BYTES]
        at = int(np.searchsorted(self._ids, np.bytes_(key)))
        if at == len(self._ids) or self._ids[at] != key:
            raise KeyError(asin)
        return at

    def product(self, number: int) -> Product:
        """The product of that number."""
        return self._product(number)

    def _read(self, number: int) -> Product:
        start, size = self._places[number]
        return _from_record(json.loads(os.pread(self._file, int(size), int(start))))

    def id_of(self, number: int) -> str:
        """The id of the product of that number."""
        return bytes(self._ids[number]).decode()

    def __iter__(self) -> Iterator[Product]:
        """All products by number, without caching them."""
        return (self._read(number) for number in range(len(self)))

    def goals(self, kind: str) -> np.ndarray:
        """(product number, goal number) of every goal of a kind; shape (goals, 2)."""
        return np.load(self.folder / f"goals-{kind}.npy", mmap_mode="r")


def make(
    key: str,
    products: Iterable[Product | None],
    skipped: Mapping[str, int] | None = None,
    replaced: Mapping[str, int] | None = None,
) -> Catalogue:
    """The catalogue of that key (a checksum of its source), built from the products if it is new.

    `products` is read only to build it; `skipped` and `replaced` (see `Catalogue`) are read after
    that, and may be filled meanwhile.
    Raises ValueError if no product is left.
    """
    folder = cache_folder() / "webshop" / f"{key}.v{VERSION}"
    build_once(
        folder,
        lambda partial: _write(
            partial,
            products,
            {
                "checksum": key,
                "skipped": {} if skipped is None else skipped,
                "replaced": {} if replaced is None else replaced,
            },
        ),
    )
    return Catalogue(folder)


def _further(kind: str) -> str:
    of_product, of_shop = MAX_GOALS.values()
    return f"products' further {kind} goals, beyond {of_product:,} each or {of_shop:,} in all"


def _write(folder: Path, products: Iterable[Product | None], source: Mapping[str, Any]) -> None:
    ids: list[bytes] = []
    seen: set[bytes] = set()
    places, own, totals = array("q"), Counter[str](), Counter[str]()
    counts = {kind: array("i") for kind in GOALS}
    at = 0
    with (folder / "products.jsonl").open("wb") as file:
        for product in products:
            if product is None:
                continue
            name = product.asin.encode()
            if name in seen:
                own["products whose id was there before"] += 1
                continue
            line = json.dumps(_to_record(product), ensure_ascii=False).encode("utf-8", "replace")
            if len(line) > MAX_PRODUCT:
                own["products of more than 1 MB"] += 1
                continue
            seen.add(name)
            file.write(line + b"\n")
            ids.append(name)
            places.extend((at, len(line)))
            at += len(line) + 1
            for kind in GOALS:
                count = goal_count(product, kind)
                usable = min(count, MAX_GOALS["product"], MAX_GOALS["shop"] - totals[kind])
                counts[kind].append(usable)
                totals[kind] += usable
                if count > usable:
                    own[_further(kind)] += 1
    if not ids:
        reasons = (f"{n} {reason}" for reason, n in [*source["skipped"].items(), *own.items()])
        left = ", ".join(reasons) or "the source is empty"
        raise ValueError(f"no product is left for the shop: {left}")
    names = np.array(ids, dtype=f"S{_ID_BYTES}")
    order = np.argsort(names, kind="stable")
    np.save(folder / "ids.npy", names[order])
    np.save(folder / "places.npy", np.frombuffer(places, np.int64).reshape(-1, 2)[order])
    for kind in GOALS:
        goals_per_product = np.frombuffer(counts[kind], np.int32)[order]
        firsts = np.repeat(np.cumsum(goals_per_product) - goals_per_product, goals_per_product)
        rows = np.repeat(np.arange(len(order)), goals_per_product)
        pairs = np.stack([rows, np.arange(len(rows)) - firsts], axis=1).astype(np.int32)
        np.save(folder / f"goals-{kind}.npy", pairs)
    meta = {
        **source,
        "version": VERSION,
        "products": len(ids),
        "bytes": at,
        "skipped": {**source["skipped"], **own},
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


_FIELDS = tuple(Product.__dataclass_fields__)
_LISTS = ("bullets", "pricing", "attributes", "reviews", "wishes")


def _to_record(product: Product) -> dict[str, Any]:
    return {name: value for name in _FIELDS if (value := getattr(product, name)) not in ((), None)}


def _from_record(record: dict[str, Any]) -> Product:
    for name in _LISTS:
        if name in record:
            record[name] = tuple(record[name])
    record["options"] = {name: tuple(values) for name, values in record["options"].items()}
    return Product(**record)


# Upstream's records ---------------------------------------------------------------------------

_DOLLARS = re.compile(r"[^\d.]")


def product_from(
    item: Any,
    attributes: Mapping[str, Any] | None,
    wishes: Iterable[Any],
    skipped: Counter[str],
    replaced: Counter[str],
) -> Product | None:
    """A product from WebShop's raw record or its loaded form; None (and counted) if unusable.

    Parameters
    ----------
    item: the record; a loaded one has `Title`, a raw one only `name`.
    attributes: the product's entry in `items_ins_v2*.json`.
    wishes: its entries in `items_human_ins.json`.
    skipped, replaced: reason → count, added to.
    """
    if not isinstance(item, Mapping):
        skipped["products that are no JSON object"] += 1
        return None
    asin, title = item.get("asin"), item.get("Title", item.get("name"))
    if not isinstance(asin, str) or not asin or asin == "nan" or len(asin) > MAX_ASIN:
        skipped["products without an id of at most 10 characters"] += 1
        return None
    if not asin.isprintable():  # such as half a character, which cannot be written to a file
        skipped["products whose id cannot be written"] += 1
        return None
    if not isinstance(title, str):  # an empty one is kept, as upstream does
        skipped["products without a title"] += 1
        return None
    try:
        product = _product(asin, title, item, attributes or {}, tuple(_wishes(wishes, skipped)))
    except _WrongType:
        skipped["products with a field of another type"] += 1
        return None
    if not _prices(item.get("pricing")):
        replaced["products without a price, as in upstream at $100"] += 1
    return product


class _WrongType(TypeError):
    """A field of a record has a value of the wrong type."""


def _product(
    asin: str,
    title: str,
    item: Mapping[str, Any],
    known: Mapping[str, Any],
    wishes: tuple[Mapping[str, Any], ...],
) -> Product:
    """The product of a record and its attributes. Raises _WrongType."""
    pricing = _pricing(item.get("pricing"))
    tag = f"${pricing[0]}" if len(pricing) == 1 else f"${pricing[0]} to ${pricing[1]}"
    bullets = item.get("small_description") or item.get("BulletPoints") or []
    template = None
    if known.get("instruction") and known.get("instruction_attributes"):
        template = {
            "instruction": str(known["instruction"]),
            "attributes": _texts(known["instruction_attributes"]),
        }
    own = known.get("attributes", item.get("Attributes"))
    return Product(
        asin=asin,
        title=title,
        description=str(item.get("full_description") or item.get("Description") or ""),
        bullets=tuple(_texts(bullets if isinstance(bullets, list) else [bullets])),
        price_tag=tag,
        pricing=pricing,
        options=_options(item),
        attributes=tuple(_texts(own)) if isinstance(own, list) else NO_ATTRIBUTES,
        category=str(item.get("category") or ""),
        query=str(item.get("query") or "").lower().strip(),
        product_category=str(item.get("product_category") or ""),
        rating=str(item.get("Rating") or "N.A."),
        reviews=tuple(r for r in _list(item.get("Reviews") or []) if isinstance(r, Mapping)),
        wishes=wishes,
        template=template,
    )


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise _WrongType(f"a list was expected, not {type(values).__name__}")
    return values


def _texts(values: Any) -> list[str]:
    return [str(value) for value in _list(values) if value is not None]


def _pricing(value: Any) -> tuple[float, ...]:
    """One or two prices; no price means $100."""
    return _prices(value) or (NO_PRICE,)


def _prices(value: Any) -> tuple[float, ...]:
    """One or two prices, or none; what cannot be parsed is none."""
    parts = value.split("$")[1:] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        parts = [] if parts is None else [parts]
    prices = []
    for part in parts:
        try:
            prices.append(float(_DOLLARS.sub("", part) if isinstance(part, str) else part))
        except (TypeError, ValueError, OverflowError):
            continue
    return tuple(prices[:2])


def _options(item: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Option name → values, in lower case, `/` written as ` | `."""
    if isinstance(item.get("options"), Mapping):  # already loaded
        return {str(k): tuple(_texts(v)) for k, v in item["options"].items()}
    raw, options = item.get("customization_options"), {}
    for name, contents in raw.items() if isinstance(raw, Mapping) else ():
        if isinstance(contents, list):
            values = [c["value"] for c in contents if isinstance(c, Mapping) and c.get("value")]
            options[str(name).lower()] = tuple(
                str(value).strip().replace("/", " | ").lower() for value in values
            )
    return options


def _wishes(wishes: Iterable[Any], skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    for wish in wishes:
        try:
            yield {
                "instruction": str(wish["instruction"]),
                "attributes": _texts(wish["instruction_attributes"]),
                "options": _texts(wish["instruction_options"]),
            }
        except (KeyError, TypeError):
            skipped["human instructions that lack a field"] += 1
