"""Candidate ranks from the official pickle: `stepagent mind2web-ranks IN.pkl OUT.json`.

What it does: reads the published file of scores and ranks (`scores_all_data.pkl`, about 245 MB),
keeps, for every step, the ids of its best candidates in order, and writes them as JSON that the
environment's argument `ranks` reads. A pickle is a program; here it is read by an unpickler that
resolves no global at all, so that nothing in the file can name, import or call any code. Only plain
dicts, lists, texts and numbers are accepted. Numbers pickled by numpy are decoded from their bytes,
without numpy's own code. Any other name in the file ends the conversion with an error that says it.
The official file needs some gigabytes of memory.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from stepagent.command_line import Command
from stepagent.errors import check_range
from stepagent.files import read_bytes, write_text

MAX_PICKLE = 2_000_000_000
"""Bytes of a pickle that are read."""


@dataclass
class Config:
    """Converts the official candidate ranks from a pickle to JSON, without executing it.

    Nothing in the file can name or call code: it is read as plain data, or rejected.
    """

    pickle: Path
    """The file scores_all_data.pkl, or another in the same format."""
    out: Path
    """JSON file to write: for every step its best candidates, the best one first."""
    top_k: int = 50
    """Candidates to keep for each step."""


class _Type:
    """Stands in for numpy's dtype: keeps the code of the number's format, does nothing."""

    def __init__(self, code: object = "", *_: object):
        self.code = str(code)

    def __setstate__(self, state: object) -> None:
        pass


_FORMATS = {"f4": "<f", "f8": "<d", "i2": "<h", "i4": "<i", "i8": "<q"}


def _scalar(kind: object, raw: object) -> float:
    """Stands in for numpy's scalar: the number that the bytes are."""
    code = _FORMATS.get(getattr(kind, "code", "").lstrip("<=|"))
    if code is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(code):
        raise pickle.UnpicklingError("a number of an unknown format")
    return struct.unpack(code, raw)[0]


def _bytes(text: object, _: object = "latin-1") -> bytes:
    """Stands in for the way in which old pickles encode bytes: as text."""
    return str(text).encode("latin-1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class PlainUnpickler(pickle.Unpickler):
    """Reads plain data from a pickle. No global is ever looked up; see the module's docstring."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, and plain data names no code: rejected"
            )
        return stand_in

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside the file: rejected")


def load(raw: bytes) -> Any:
    """The plain data in a pickle. Raises ValueError for anything else."""
    try:
        return PlainUnpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a hostile file can raise nearly anything on its way
        reason = str(error) or type(error).__name__
        raise ValueError(f"not a pickle of plain data: {reason}") from None


def best(ranks: Mapping[Any, Any], top_k: int) -> dict[str, list[str]]:
    """Step → ids of its best candidates, from step → (node id → rank, 0 being the best).

    Raises ValueError if the ranks have another format.
    """
    best_nodes = {}
    for name, by_node in ranks.items():
        if not isinstance(by_node, dict) or not all(
            isinstance(rank, int | float) for rank in by_node.values()
        ):
            raise ValueError(f"the ranks of {str(name)[:80]!r} are not a dict of node id → rank")
        order = sorted(by_node, key=lambda node: (by_node[node], str(node)))
        best_nodes[str(name)] = [str(node) for node in order[:top_k]]
    return best_nodes


def convert(source: Path, out: Path, top_k: int = 50) -> int:
    """Writes the ranks of a pickle as JSON; returns the number of steps. Raises ValueError."""
    if not source.is_file():
        raise ValueError(f"{source.absolute()} does not exist")
    if source.stat().st_size > MAX_PICKLE:
        raise ValueError(f"{source} is larger than the {MAX_PICKLE:,} bytes that are read")
    try:
        data = load(read_bytes(source))
        if not isinstance(data, dict) or not isinstance(data.get("ranks"), dict):
            raise ValueError("it holds no dict 'ranks'")
        ranks = best(data["ranks"], top_k)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    write_text(out, json.dumps(ranks))
    return len(ranks)


def run(config: Config) -> int:
    check_range(1, top_k=config.top_k)
    steps = convert(config.pickle, config.out, config.top_k)
    print(f"{config.out}: ranks of {steps} steps, at most {config.top_k} candidates each")
    return 0


main = Command("mind2web-ranks", Config, run, positional=("pickle", "out"))


if __name__ == "__main__":
    sys.exit(main())
