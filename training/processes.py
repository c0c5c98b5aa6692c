"""Several processes of one run (`accelerate launch --config_file …`), kept in step.

The main process owns the run's directory: it plays episodes, writes files and saves policies, and
the others wait, then read what it wrote. Practice and gradients are shared out (`training/loop.py`,
`training/inspection.py`). In a run of one process everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")

_PATIENCE = timedelta(hours=24)
"""How long a process waits for the others: evaluating a large split takes hours."""


def _state() -> Any:
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Unless told that there is no accelerator, accelerate takes each process for a run of its own.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def rank() -> int:
    """This process's number, from 0."""
    return int(_state().process_index)


def count() -> int:
    return int(_state().num_processes)


def is_main() -> bool:
    return rank() == 0


def wait() -> None:
    """Returns when all processes have come here."""
    _state().wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process does the body before the others do it, who then find its work done."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def share(items: Sequence[Item], work: Callable[[Item], Found]) -> list[Found]:
    """`work` of every item, each done by one of the processes; all get all results, in order.

    Results travel between processes by pickle, among processes of this run alone.
    """
    number, processes = rank(), count()
    mine = [work(item) for item in items[number::processes]]
    if processes == 1:
        return mine
    return interleave(gather(mine), len(items))


def gather(value: Any) -> list[Any]:
    """Every process's value, in order of their numbers."""
    if count() == 1:
        return [value]
    import torch.distributed

    found: list[Any] = [None] * count()
    torch.distributed.all_gather_object(found, value)
    return found


def interleave(parts: Sequence[Sequence[Found]], total: int) -> list[Found]:
    """Undoes `items[rank::count]`.

    >>> interleave([["a", "c", "e"], ["b", "d"]], 5)
    ['a', 'b', 'c', 'd', 'e']
    """
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]
