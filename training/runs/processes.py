"""Several processes of one run (`accelerate launch --config_file …`), kept in step.

The main process owns the run's directory: it writes files and saves policies, and the others wait,
then read what it wrote. Practice, episodes, evaluation and gradients are shared out
(`methods/practice.py`, `methods/rollouts.py`, `runs/scores.py`, `runs/optimise.py`). In a run of
one process everything here is a no-op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_TIMEOUT = timedelta(hours=24)
"""How long a process waits for the others: evaluating a large split takes hours."""


def _state() -> Any:
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without `cpu` on a machine that has no accelerator, each process would be a run by itself.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_TIMEOUT)


def rank() -> int:
    """This process's number, from 0."""
    return int(_state().process_index)


def count() -> int:
    return int(_state().num_processes)


def is_main() -> bool:
    return rank() == 0


def wait() -> None:
    """Returns when all processes have arrived here."""
    _state().wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the body first; the others then find its work done."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def mine(total: int) -> range:
    """Numbers of the items, of so many, that this process does."""
    return range(rank(), total, count())


def share(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """`work` of every item, each done by one of the processes; all get all results, in order.

    Results travel by pickle, between processes of this run only.
    """
    done = [work(items[i]) for i in mine(len(items))]
    return interleave(gather(done), len(items))


def gather(value: Any) -> list[Any]:
    """Every process's value, in order of their numbers."""
    if count() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return values


def interleave(parts: Sequence[Sequence[Result]], total: int) -> list[Result]:
    """The items of all processes, each with those that `mine` numbers, in order.

    >>> interleave([["a", "c", "e"], ["b", "d"]], 5)
    ['a', 'b', 'c', 'd', 'e']
    """
    return [parts[i % len(parts)][i // len(parts)] for i in range(total)]
