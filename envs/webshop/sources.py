"""Where a shop's products come from: WebShop's own files, the 1,000-product files, or our own.

A folder (or its `data`, or a zip or tar of it) is searched for a catalogue (`items_shuffle*.json`
as WebShop downloads it, or `documents*.jsonl` as it makes them for its index), the attributes and
instructions that go with it (`items_ins_v2*.json`) and people's instructions (`items_human_ins*`).
Where the small and the full download are together, the full one counts. Files are read as streams,
compressed or not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from stepagent.envs.containers import COMPRESSED, Member, SourceError, members
from stepagent.envs.core import checksum
from stepagent.envs.json_stream import JSONError, JSONStream, NotUTF8
from stepagent.envs.records import MAX_RECORD, text_records
from stepagent.envs.webshop import catalogue, generate
from stepagent.envs.webshop.catalogue import NO_ATTRIBUTES, Catalogue, product_from
from stepagent.envs.webshop.data import Product
from stepagent.files import cache_folder, open_file, read_cached, write_cached

log = logging.getLogger(__name__)
CATALOGUES = ("items_shuffle*.json", "documents*.jsonl")
_LISTED = "it needs a catalogue (items_shuffle*.json or documents*.jsonl), its items_ins_v2*.json "


def bundled() -> Catalogue:
    """The shop that comes with the project (`generate`)."""
    return catalogue.make(
        f"bundled-{generate.CHECKSUM}", (product for product in generate.products())
    )


def from_files(path: str | Path) -> Catalogue:
    """The catalogue in a folder or archive, or of one catalogue file with its companions beside it.

    Raises FileNotFoundError or ValueError that name what is missing, damaged or ambiguous, and
    where attributes and instructions are of other products.
    """
    main, attributes, wishes = _files(Path(path))
    files = [file for file in (main, attributes, wishes) if file]
    key = checksum(*(_digest(file.path) + file.inside for file in files))
    skipped: Counter[str] = Counter()
    replaced: Counter[str] = Counter()

    def products() -> Iterator[Product | None]:
        known = _attributes(attributes)
        usable = matched = 0
        wishes_by_product = dict(_entries(wishes))
        for item in _items(main):
            asin = item.get("asin") if isinstance(item, dict) else None
            human = wishes_by_product.pop(asin, ()) if isinstance(asin, str) else ()
            entry = json.loads(known.pop(asin, b"{}")) if isinstance(asin, str) else {}
            product = product_from(
                item, entry, human if isinstance(human, list) else (), skipped, replaced
            )
            if product is not None:
                usable, matched = usable + 1, matched + bool(entry)
                if product.attributes == NO_ATTRIBUTES:
                    replaced["products without attributes, as in upstream with a dummy"] += 1
            yield product
        gone = sum(len(left) for left in wishes_by_product.values() if isinstance(left, list))
        if gone:
            skipped["human instructions whose product is not in the catalogue"] += gone
        if attributes and usable and not matched:
            raise SourceError(
                f"{attributes} has attributes of none of the {usable} products of {main}: it is of "
                "another catalogue"
            )
        if known:
            skipped["attributes whose product is not in the catalogue"] += len(known)

    shop = catalogue.make(key, products(), skipped, replaced)
    if shop.skipped:
        left = ", ".join(f"{count} {reason}" for reason, count in shop.skipped.items())
        log.warning("%s: left out %s", main, left)
    return shop


def _files(path: Path) -> tuple[Member, Member | None, Member | None]:
    """(catalogue, attributes, human instructions); the last two may be absent."""
    if not path.exists():
        raise FileNotFoundError(f"no catalogue at {path.absolute()}: {_LISTED}beside it")
    named = None
    listed = _listed(path)
    if path.is_file() and not any(member.inside for member in listed):
        (named,) = listed
        listed = _listed(path.parent)
    folders: dict[str, dict[str, Member]] = {}
    for member in listed:
        folder, name = os.path.split(member.name)
        folders.setdefault(folder, {})[_plain_name(name)] = member
    for files in (folders[folder] for folder in sorted(folders, key=lambda f: (f.count("/"), f))):
        if named or any(_is_catalogue(name) for name in files):
            return _chosen(path, files, named)
    raise FileNotFoundError(
        f"{path.absolute()} holds no catalogue: {_LISTED}and items_human_ins*.json"
    )


def _listed(path: Path) -> list[Member]:
    """The files of an archive; of a folder those in it and in its `data`, archives as files."""
    if path.is_file():
        return list(members(path))
    files = sorted(p for f in (path, path / "data") for p in f.glob("*") if _is_json(p))
    return [
        replace(member, name=file.relative_to(path).as_posix())
        for file in files
        for member in members(file)
        if not member.inside
    ]


def _is_json(path: Path) -> bool:
    name = _plain_name(path.name)
    return name.endswith((".json", ".jsonl")) and not path.is_dir() and not name.startswith(".")


def _plain_name(name: str) -> str:
    """A file's name without the ending of its compression."""
    ending = next((ending for ending in COMPRESSED if name.endswith(ending)), "")
    return name.removesuffix(ending)


def _is_catalogue(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in CATALOGUES)


def _chosen(
    path: Path, files: Mapping[str, Member], named: Member | None
) -> tuple[Member, Member | None, Member | None]:
    """The catalogue (`named`, if there is one) among the files of a folder, and its companions."""
    catalogues = [name for name in sorted(files) if _is_catalogue(name)]
    if named is not None:
        catalogues = [_plain_name(named.path.name)]
    elif "items_shuffle.json" in catalogues:
        catalogues = ["items_shuffle.json"]
    if len(catalogues) > 1:
        raise ValueError(
            f"{path.absolute()} holds several catalogues ({', '.join(catalogues)}): name one file"
        )
    main = named or files[catalogues[0]]
    stem = catalogues[0].rpartition(".")[0]
    suffix = stem.removeprefix("items_shuffle").removeprefix("documents")
    attributes = _companion(files, "items_ins_v2", suffix)
    wishes = _companion(files, "items_human_ins", "")
    if attributes is None and wishes is None:
        raise FileNotFoundError(
            f"{path.absolute()} holds no goals for {os.path.basename(main.name)}: looked for "
            f"items_ins_v2{suffix}.json and items_human_ins.json"
        )
    return main, attributes, wishes


def _companion(files: Mapping[str, Member], name: str, suffix: str) -> Member | None:
    if exact := files.get(f"{name}{suffix}.json"):
        return exact
    fitting = [files[file] for file in sorted(files) if fnmatchcase(file, f"{name}*.json")]
    return fitting[0] if len(fitting) == 1 else None


def _digest(path: Path) -> str:
    """SHA-256 of the file's content; cached for a file of the same size and modification time."""
    state = path.stat()
    place = checksum(str(path.resolve()), str(state.st_size), str(state.st_mtime_ns))
    remembered = cache_folder() / "webshop" / "digests" / place
    if digest := read_cached(remembered):
        return digest
    with open_file(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_cached(remembered, digest)
    return digest


def _items(file: Member) -> Iterator[Any]:
    """The products of a catalogue file, one by one."""
    if not _plain_name(file.name).endswith(".jsonl"):
        for item in stream(file):
            if isinstance(item, tuple):
                raise SourceError(f"{file}: a JSON array of products was expected, not an object")
            yield item
        return
    with _text(file) as content:
        for record in text_records(str(file), content):
            if record.problem:
                line = record.place.removeprefix("line ")
                raise SourceError(
                    f"{file}:{line}: {record.problem}: is it truncated? Fetch or make it again"
                )
            value = record.value
            yield value.get("product", value) if isinstance(value, dict) else value


def _attributes(file: Member | None) -> dict[str, bytes]:
    """Product id → its attributes and instruction as JSON: a million of them must fit in memory."""
    fields = ("attributes", "instruction", "instruction_attributes")
    entries = {}
    for asin, entry in _entries(file):
        if isinstance(entry, dict):
            values = {name: entry[name] for name in fields if entry.get(name) is not None}
            entries[asin] = json.dumps(values).encode()
    return entries


def _entries(file: Member | None) -> Iterator[tuple[str, Any]]:
    """The (product id, entry) pairs of a companion file, none if there is no file."""
    for entry in stream(file) if file else ():
        if not isinstance(entry, tuple) or not isinstance(entry[0], str):
            raise SourceError(f"{file}: a JSON object, product id → entry, was expected")
        yield entry


@contextmanager
def _text(file: Member) -> Iterator[IO[bytes]]:
    with file.opened() as (kind, content):
        if kind != "text":
            raise file.refused(kind)
        yield content


def stream(file: Member) -> Iterator[Any]:
    """The elements of a JSON array, or the (key, value) pairs of an object, read one by one.

    Raises SourceError that names the file if it is truncated or not such JSON.
    """
    with _text(file) as content:
        source = JSONStream(content, strict=True, limit=MAX_RECORD)
        if source.first not in ("[", "{"):
            raise SourceError(f"{file}: a JSON array or object was expected")
        try:
            yield from source.members() if source.first == "{" else source
        except NotUTF8 as error:
            raise SourceError(
                f"{file}, item {error.count + 1}: {error.reason} is not UTF-8: re-encode the file "
                f"(iconv -f latin1 -t utf-8 {file.path})"
            ) from None
        except JSONError as error:
            raise SourceError(f"{file}: {error}") from None
