"""Where a shop's products come from: WebShop's own files, the 1,000-product files, or our own.

A folder is searched for a catalogue (`items_shuffle*.json` as WebShop downloads it, or
`documents*.jsonl` as it makes them for its index), the attributes and instructions that go with it
(`items_ins_v2*.json`) and human instructions (`items_human_ins*.json`). Files are read as streams.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from stepagent.envs.core import checksum
from stepagent.envs.json_stream import JSONError, JSONStream
from stepagent.envs.webshop import catalogue, generate
from stepagent.envs.webshop.catalogue import Catalogue, product_from
from stepagent.envs.webshop.data import Product
from stepagent.files import cache_folder, write_shared_text

log = logging.getLogger(__name__)
CATALOGUES = ("items_shuffle*.json", "documents*.jsonl")
_LISTED = "it needs a catalogue (items_shuffle*.json or documents*.jsonl), its items_ins_v2*.json "


def bundled() -> Catalogue:
    """The shop that comes with the project (`generate`)."""
    return catalogue.make(
        f"bundled-{generate.CHECKSUM}", (product for product in generate.products())
    )


def from_files(path: str | Path) -> Catalogue:
    """The catalogue in a folder, or of one catalogue file with its companions beside it.

    Raises FileNotFoundError or ValueError that name what is missing, damaged or ambiguous.
    """
    main, attributes, wishes = _files(Path(path))
    key = checksum(*(_digest(file) for file in (main, attributes, wishes) if file))
    skipped: Counter[str] = Counter()

    def products() -> Iterator[Product | None]:
        known = _attributes(attributes)
        wishes_by_product = dict(_entries(wishes))
        for item in _items(main):
            asin = item.get("asin") if isinstance(item, dict) else None
            human = wishes_by_product.pop(asin, ()) if isinstance(asin, str) else ()
            entry = json.loads(known.pop(asin, b"{}")) if isinstance(asin, str) else {}
            yield product_from(item, entry, human if isinstance(human, list) else (), skipped)
        gone = sum(len(left) for left in wishes_by_product.values() if isinstance(left, list))
        if gone:
            skipped["human instructions whose product is not in the catalogue"] += gone

    shop = catalogue.make(key, products(), skipped)
    if shop.skipped:
        left = ", ".join(f"{count} {reason}" for reason, count in shop.skipped.items())
        log.warning("%s: left out %s", main, left)
    return shop


def _files(path: Path) -> tuple[Path, Path | None, Path | None]:
    """(catalogue, attributes, human instructions); the last two may be absent."""
    if path.is_file():
        main, folder = path, path.parent
    elif path.is_dir():
        catalogues = sorted(chain.from_iterable(path.glob(pattern) for pattern in CATALOGUES))
        if not catalogues:
            raise FileNotFoundError(
                f"{path.absolute()} holds no catalogue: {_LISTED}and items_human_ins*.json"
            )
        full = [file for file in catalogues if file.name == "items_shuffle.json"]
        if len(catalogues) > 1 and not full:
            names = ", ".join(file.name for file in catalogues)
            raise ValueError(f"{path.absolute()} holds several catalogues ({names}): name one file")
        main, folder = (full or catalogues)[0], path
    else:
        raise FileNotFoundError(f"no catalogue at {path.absolute()}: {_LISTED}beside it")
    suffix = main.stem.removeprefix("items_shuffle").removeprefix("documents")
    attributes = _companion(folder, "items_ins_v2", suffix)
    wishes = _companion(folder, "items_human_ins", "")
    if attributes is None and wishes is None:
        raise FileNotFoundError(
            f"{folder.absolute()} holds no goals for {main.name}: looked for items_ins_v2{suffix}"
            ".json and items_human_ins.json"
        )
    return main, attributes, wishes


def _companion(folder: Path, name: str, suffix: str) -> Path | None:
    if (exact := folder / f"{name}{suffix}.json").is_file():
        return exact
    files = sorted(folder.glob(f"{name}*.json"))
    return files[0] if len(files) == 1 else None


def _digest(path: Path) -> str:
    """SHA-256 of the file's content; cached for a file of the same size and modification time."""
    state = path.stat()
    place = checksum(str(path.resolve()), str(state.st_size), str(state.st_mtime_ns))
    remembered = cache_folder() / "webshop" / "digests" / place
    if remembered.is_file():
        return remembered.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_shared_text(remembered, digest)
    return digest


def _items(path: Path) -> Iterator[Any]:
    """The products of a catalogue file, one by one."""
    if path.suffix == ".json":
        for item in stream(path):
            if isinstance(item, tuple):
                raise ValueError(f"{path}: a JSON array of products was expected, not an object")
            yield item
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not JSON ({error.msg}): is it truncated?"
                ) from None
            yield record.get("product", record) if isinstance(record, dict) else record


def _attributes(path: Path | None) -> dict[str, bytes]:
    """Product id → its attributes and instruction as JSON: a million of them must fit in memory."""
    fields = ("attributes", "instruction", "instruction_attributes")
    entries = {}
    for asin, entry in _entries(path):
        if isinstance(entry, dict):
            values = {name: entry[name] for name in fields if entry.get(name) is not None}
            entries[asin] = json.dumps(values).encode()
    return entries


def _entries(path: Path | None) -> Iterator[tuple[str, Any]]:
    """The (product id, entry) pairs of a companion file, none if there is no file."""
    for entry in stream(path) if path else ():
        if not isinstance(entry, tuple) or not isinstance(entry[0], str):
            raise ValueError(f"{path}: a JSON object, product id → entry, was expected")
        yield entry


def stream(path: Path) -> Iterator[Any]:
    """The elements of a JSON array, or the (key, value) pairs of an object, read one by one.

    Raises ValueError that names the file if it is truncated or not such JSON.
    """
    with path.open("rb") as file:
        source = JSONStream(file)
        if source.first not in ("[", "{"):
            raise ValueError(f"{path}: a JSON array or object was expected")
        try:
            yield from source.members() if source.first == "{" else source
        except JSONError as error:
            raise ValueError(f"{path}: {error}") from None
