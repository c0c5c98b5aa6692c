"""The order of a sweep's runs, and what becomes of those that fail, are lost or are elsewhere.

The machines are a launcher of the test's own, which says how each job ends.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import pytest
from rich.console import Console

from stepagent.errors import UserError
from stepagent.training.sweep import execution, job
from stepagent.training.sweep.execution import Queue, Unshared, _Entry
from stepagent.training.sweep.job import Job, Outcome
from stepagent.training.sweep.launchers import Launcher
from stepagent.training.sweep.planning import Sweep, SweepError


class MachineLost(Exception):
    pass


class Broken(Exception):
    pass


class Scripted(Launcher):
    """Ends each job at once as its script says: outcomes or exceptions, in order; "never" leaves
    it running. A job without a script is done."""

    most = 2
    lost = (MachineLost,)
    broken = (Broken,)

    def __init__(self, **scripts):
        self.scripts = {name: deque(script) for name, script in scripts.items()}
        self.started: list[str] = []
        self.stops = 0

    def start(self, job):
        self.started.append(job.name)
        future: Future[Outcome] = Future()
        script = self.scripts.get(job.name)
        end = script.popleft() if script else "done"
        if isinstance(end, BaseException):
            future.set_exception(end)
        elif end != "never":
            if end == "done":
                _finish(job)
            future.set_result(Outcome(end, "node7", 1.5, "the last line" * (end == "failed")))
        return future

    def stop(self):
        self.stops += 1


def _finish(one: Job) -> None:
    path = Path(one.directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").write_text("{}")
    (path / "stages.json").write_text('{"done": ["sft"]}')


@pytest.fixture
def entries(tmp_path):
    def make(*names, sft=""):
        return [
            _Entry(
                Job(
                    name=name,
                    directory=str(tmp_path / "runs" / name),
                    config="",
                    output=str(tmp_path),
                    folder=str(tmp_path),
                    token="token",
                    share_sft=True,
                    threads=0,
                    lost_after=0.01,
                ),
                sft,
            )
            for name in names
        ]

    (tmp_path / "logs").mkdir()
    return make


@pytest.fixture
def do(monkeypatch):
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.01)
    console = Console(record=True, width=400, file=open("/dev/null", "w"))

    def run(launch, entries, **options):
        queue = Queue(Sweep("x", launch="ray", **options), launch, console, float("inf"))
        return queue.run(entries), console.export_text()

    return run


def test_runs_start_in_order_and_say_where_they_were(do, entries):
    launch = Scripted()
    done, text = do(launch, entries("a", "b", "c"))
    assert done == {"a": True, "b": True, "c": True}
    assert launch.started == ["a", "b", "c"]
    assert "a …" in text
    assert "c: 1.5 min on node7" in text


def test_a_run_that_fails_is_said_with_its_machine_and_last_line(do, entries, tmp_path):
    done, text = do(Scripted(b=["failed"]), entries("a", "b", "c"))
    assert done == {"a": True, "b": False, "c": True}
    assert f"b failed on node7 after 1.5 min ({tmp_path / 'logs/b.log'}): the last line" in text
    assert (tmp_path / "logs/b.failed").read_text() == "the last line"


def test_a_lost_machines_run_is_taken_up_again(do, entries):
    launch = Scripted(a=[MachineLost("node 3 died"), "done"])
    done, text = do(launch, entries("a", "b"))
    assert done == {"a": True, "b": True}
    assert launch.started.count("a") == 2
    assert "a: its machine was lost (node 3 died)" in text


def test_a_run_that_loses_every_machine_is_given_up(do, entries):
    launch = Scripted(a=[MachineLost("died")] * 9)
    done, text = do(launch, entries("a", "b"))
    assert done == {"a": False, "b": True}
    assert launch.started.count("a") == execution.MOST_LOSSES + 1
    assert "its machine was lost 4 times" in text


def test_a_run_that_another_process_has_is_tried_again_later(do, entries):
    launch = Scripted(a=["busy", "busy", "done"])
    done, text = do(launch, entries("a", "b"))
    assert done == {"a": True, "b": True}
    assert launch.started == ["a", "b", "a", "a"]
    assert text.count("a is under way elsewhere") == 1


def test_runs_wait_for_the_one_that_makes_their_sft(do, entries):
    """b and c would train the same SFT as a, so they wait; d has another one."""
    launch = Scripted(a=["never"])
    shared, other = entries("a", "b", "c", sft="one"), entries("d", sft="two")
    seen: list[list[str]] = []

    def start(one):
        future = Scripted.start(launch, one)
        seen.append(list(launch.started))
        if one.name == "d":  # the SFT of a is made while d runs, and a ends after it
            directory = Path(shared[0].job.directory)
            directory.mkdir(parents=True)
            (directory / "stages.json").write_text(json.dumps({"done": ["sft"]}))
            futures["a"].set_result(Outcome("done", "node1", 9.0))
        futures[one.name] = future
        return future

    futures: dict[str, Future[Outcome]] = {}
    launch.start = start
    done, _ = do(launch, [*shared, *other])
    assert seen[1] == ["a", "d"], "while a makes its SFT, only d may start"
    assert launch.started == ["a", "d", "b", "c"]
    assert set(done) == {"a", "b", "c", "d"}


def test_a_run_that_matches_another_waits_for_it_and_not_for_the_others(do, entries):
    first, other, matched = entries("a", "b", "c")
    matched.matches, known = first.job, []
    matched.prepare = lambda: known.append(first.job.is_done) or "its own"
    launch = Scripted()
    done, _ = do(launch, [matched, first, other], workers=1)
    assert launch.started == ["a", "c", "b"]
    assert done == {"a": True, "b": True, "c": True}
    assert known == [True], "its tokens are asked for once, when they are known"
    assert matched.sft == "its own"


def test_a_run_that_matches_one_that_fails_is_not_done(do, entries):
    first, matched = entries("a", "b")
    matched.matches, matched.prepare = first.job, lambda: ""
    launch = Scripted(a=["failed"])
    done, text = do(launch, [first, matched])
    assert (done, launch.started) == ({"a": False, "b": False}, ["a"])
    assert "b is not started: a, which it matches, is not done" in text


def test_a_run_that_matches_one_of_an_earlier_version_is_not_done(do, entries):
    """Its tokens are missing: the others go on."""
    first, matched, other = entries("a", "b", "c")

    def refuse():
        raise SweepError("an earlier version made it")

    matched.matches, matched.prepare = first.job, refuse
    done, text = do(Scripted(), [first, matched, other])
    assert done == {"a": True, "b": False, "c": True}
    assert "b is not started: an earlier version made it" in text


@pytest.mark.parametrize("is_late", [True, False])
def test_a_run_waits_while_the_summary_of_the_one_that_it_matches_does_not_show(
    do, entries, monkeypatch, is_late
):
    """As on a network file system."""
    monkeypatch.setattr(execution, "SHOWS_SECONDS", 30.0 if is_late else 0.05)
    first, matched = entries("a", "b")
    matched.matches, matched.prepare = first.job, lambda: ""
    launch = Scripted()

    def start(one):
        future: Future[Outcome] = Future()
        future.set_result(Outcome("done", "node1", 1.0))
        launch.started.append(one.name)
        if one.name == "a" and is_late:
            threading.Timer(0.1, _finish, [one]).start()
        return future

    launch.start = start
    done, _ = do(launch, [first, matched])
    assert done["b"] == is_late


def test_a_run_that_is_tried_again_keeps_its_place(do, entries):
    launch = Scripted(a=[MachineLost("died"), "done"])
    do(launch, entries("a", "b", "c"), workers=1)
    assert launch.started == ["a", "a", "b", "c"]


def test_it_is_said_how_many_runs_are_done_and_how_long_the_others_take(do, entries, monkeypatch):
    every, now = entries("a", "b", "c", "d", "e"), [1000.0]
    monkeypatch.setattr(execution.time, "monotonic", lambda: now[0])
    _finish(every[1].job)
    launch = Scripted(c=["failed"])

    def start(one):
        now[0] += 120.0
        return Scripted.start(launch, one)

    launch.start = start
    _, text = do(launch, every, workers=1)
    assert "1 of 5 runs are done already" in text
    assert "a: 1.5 min on node7 (2 of 5, about 6 min left)" in text
    assert "e: 1.5 min on node7 (4 of 5)" in text, "the one that failed is not among them"


def test_the_next_makes_the_sft_where_the_first_fails(do, entries):
    launch = Scripted(a=["failed"])
    launch.most = 3
    done, _ = do(launch, entries("a", "b", sft="one"))
    assert done == {"a": False, "b": True}


def test_a_machine_that_does_not_share_the_folder_ends_the_sweep(do, entries, tmp_path):
    launch = Scripted(a=["unshared"])
    with pytest.raises(Unshared, match=rf"node7 does not see {tmp_path} as this machine does"):
        do(launch, entries("a", "b"))
    assert launch.stops == 1


def test_a_machine_without_stepagent_ends_the_sweep(do, entries):
    with pytest.raises(SweepError, match="a could not be done: No module named 'stepagent'"):
        do(Scripted(a=[Broken("No module named 'stepagent'")]), entries("a"))


def test_ctrl_c_stops_all(do, entries):
    launch = Scripted(a=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        do(launch, entries("a", "b", "c"))
    assert launch.stops == 1


def test_more_at_a_time_where_workers_say_so(do, entries):
    launch = Scripted(a=["never"], b=["never"], c=[KeyboardInterrupt()])
    futures: list[Future[Outcome]] = []

    def start(one):
        futures.append(Scripted.start(launch, one))
        return futures[-1]

    def stop():
        for future in futures:
            if not future.done():
                future.set_result(Outcome("stopped"))

    launch.start, launch.stop = start, stop
    with pytest.raises(KeyboardInterrupt):
        do(launch, entries("a", "b", "c", "d"), workers=3)
    assert launch.started == ["a", "b", "c"]


# On the machine that gets a job -----------------------------------------------------------------


def test_a_folder_that_is_not_the_sweeps_is_noticed(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_LOOKS", 1)
    (one,) = entries("a")
    assert job.perform(one.job).kind == "unshared"
    (tmp_path / "launches").mkdir()
    (tmp_path / "launches" / "another").touch()
    assert job.perform(one.job).kind == "unshared"


def test_an_error_of_a_sweep_is_the_users():
    assert issubclass(Unshared, UserError)
    assert Unshared.exit_code == 2
