"""Lines that a killed run left, whoever wrote them; and iterators that a thread reads ahead."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from stepagent.training.runs import processes
from stepagent.training.runs.lines import Background, all_lines, resumed_in_bulk, written


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process the `rank`-th of `count`, which gathers nothing from the others."""

    def become(rank, count):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "count", lambda: count)

    return become


def _first(count, items):
    """As a process that is killed behind so many lines."""
    return list(itertools.islice(items, count))


def test_another_number_of_processes_takes_over_what_was_written(as_process, tmp_path):
    path, asked = tmp_path / "a.b.jsonl", []

    def make(numbers):
        asked.append(list(numbers))
        return ({"item": i} for i in numbers)

    as_process(0, 2)
    assert _first(2, written(path, 7, make)) == [(0, {"item": 0}), (2, {"item": 2})]
    as_process(1, 2)
    assert _first(1, written(path, 7, make)) == [(1, {"item": 1})]
    as_process(1, 3)
    with (tmp_path / "a.b.1-of-2.jsonl").open("a") as file:
        file.write('{"item": 3')  # killed in the middle of a line
    assert _first(3, written(path, 7, make)) == [(1, {"item": 1}), (4, {"item": 4})]
    as_process(0, 1)
    assert resumed_in_bulk(path, 7, make) == [{"item": i} for i in range(7)]
    assert asked == [[0, 2, 4, 6], [1, 3, 5], [4], [3, 5, 6]]
    assert all_lines(path) == [{"item": i} for i in range(7)]
    assert resumed_in_bulk(path, 7, make) == [{"item": i} for i in range(7)]
    assert asked[-1] == []


def test_too_many_lines_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="more lines"):
        list(written(tmp_path / "a.jsonl", 2, lambda numbers: [0, 1, 2]))


def test_a_thread_reads_ahead_but_not_too_far():
    taken = []

    def items():
        for i in range(9):
            taken.append((i, threading.current_thread()))
            yield i

    background = Background(items(), ahead=3)
    deadline = time.monotonic() + 20
    while len(taken) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 4, "three wait, the fourth is in the thread's hand"
    assert list(background) == list(range(9))
    assert {thread for _, thread in taken}.isdisjoint({threading.main_thread()})


def test_what_the_iterator_raises_comes_behind_its_items():
    def items():
        yield 1
        raise LookupError("no more")

    background = Background(items(), ahead=5)
    assert next(background) == 1
    with pytest.raises(LookupError, match="no more"):
        next(background)
    assert list(background) == []


def test_a_background_at_its_end_does_not_wait_for_more():
    background = Background(iter([1, 2]), ahead=5)
    assert list(background) == [1, 2]
    for _ in range(2):
        assert next(background, None) is None
    background = Background(itertools.count(), ahead=5)
    assert next(background) == 0
    background.close()
    assert next(background, None) is None


def test_a_background_that_is_closed_takes_nothing_more():
    taken = []
    background = Background((taken.append(i) for i in itertools.count()), ahead=1)
    next(background)
    background.close()
    count = len(taken)
    time.sleep(0.1)
    assert len(taken) == count
