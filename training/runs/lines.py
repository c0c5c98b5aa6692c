"""Results as JSON lines, written item by item, so that a killed run goes on where it was.

Of several processes each makes every n-th item and writes a file of its own, `NAME.R-of-N.jsonl`.
A run that goes on with another number of processes takes over what all of them have written.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from stepagent.files import is_file, open_file, parse_json, read_bytes
from stepagent.training.runs import processes

Item = TypeVar("Item")
Make = Callable[[Sequence[int]], Iterable[Any]]
"""(numbers of items) → their lines in that order; it may work on several at once."""
OnLine = Callable[[int, Any], None]
"""(number of an item, its line)."""


def resumed(
    path: Path,
    count: int,
    make: Callable[[int], Any],
    on_line: OnLine = lambda number, line: None,
) -> list[Any]:
    """`make(0)` … `make(count - 1)`, written to `path` as JSON lines; lines that exist are kept.

    Of several processes each makes a share, in a file of its own, and all return all lines.
    `on_line` sees this process's lines in order, those that exist before another is made.
    """
    return resumed_in_bulk(path, count, lambda numbers: map(make, numbers), on_line)


def resumed_in_bulk(
    path: Path, count: int, make: Make, on_line: OnLine = lambda number, line: None
) -> list[Any]:
    """`resumed`, where `make` gets the numbers of all lines that are missing."""
    lines = []
    for i, line in written(path, count, make):
        lines.append(line)
        on_line(i, line)
    return processes.interleave(processes.gather(lines), count)


def written(path: Path, count: int, make: Make) -> Iterator[tuple[int, Any]]:
    """This process's items with their lines, in order. `make` is called at once, with those that no
    start of the run has written; each is written before it is yielded."""
    mine = processes.mine(count)
    others = _lines(path, leave_out=processes.count())
    if processes.count() > 1:
        path = path.with_suffix(f".{processes.rank()}-of-{processes.count()}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    own = complete_lines(path)[: len(mine)]
    rest = mine[len(own) :]
    made = iter(make([i for i in rest if i not in others]))

    def all_of_them() -> Iterator[tuple[int, Any]]:
        yield from zip(mine, own, strict=False)
        with open_file(path, "a") as file:
            for i in rest:
                line = others[i] if i in others else next(made)
                file.write(json.dumps(line) + "\n")
                file.flush()
                yield i, line
        if any(True for _ in made):
            raise ValueError(f"there are more lines for {path} than items")

    return all_of_them()


def all_lines(path: Path) -> list[Any]:
    """The lines that all processes of any start have written, in the order of the items."""
    return [line for _, line in sorted(_lines(path).items())]


def _lines(path: Path, leave_out: int = 0) -> dict[int, Any]:
    """Lines by the number of their item, but those of starts with `leave_out` processes: their
    files may just be written."""
    lines: dict[int, Any] = {}
    pattern = f"{glob.escape(path.stem)}.*-of-*{path.suffix}"
    for file in (path, *sorted(path.parent.glob(pattern))):
        share = re.fullmatch(r".*\.(\d+)-of-(\d+)", file.stem) if file != path else None
        first, step = map(int, share.groups()) if share else (0, 1)
        if step != leave_out:
            lines |= dict(zip(itertools.count(first, step), _complete(file)[0], strict=False))
    return lines


def complete_lines(path: Path) -> list[Any]:
    """The lines that a killed run left; a truncated last one is removed from the file."""
    if not is_file(path):
        return []
    lines, size = _complete(path)
    with open_file(path, "r+b") as file:
        file.truncate(size)
    return lines


def _complete(path: Path) -> tuple[list[Any], int]:
    """The lines up to the first that is cut or damaged, and their bytes."""
    lines, size = [], 0
    for raw in read_bytes(path).splitlines(keepends=True) if is_file(path) else ():
        try:
            line = parse_json(raw)
        except ValueError:
            break
        if not raw.endswith(b"\n"):
            break
        lines.append(line)
        size += len(raw)
    return lines, size


class Background(Generic[Item]):
    """The items of an iterator, which a thread takes from it from now on, at most `ahead` before
    they are asked for. What the iterator raises is raised here, once; then, as after `close`, there
    are no more."""

    def __init__(self, items: Iterator[Item], ahead: int):
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(items,), daemon=True)
        self._thread.start()

    def _work(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                self._put(item)
                if self._closed.is_set():
                    return
            self._put(None, StopIteration())
        except BaseException as error:
            self._put(None, error)

    def _put(self, item: Any, error: BaseException | None = None) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put((item, error), timeout=0.2)
                return

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error:
            self.close()
            raise error
        return cast(Item, item)

    def close(self) -> None:
        """Stops the thread behind its present item; does not wait long for that."""
        self._closed.set()
        self._thread.join(timeout=1.0)
