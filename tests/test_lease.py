"""Leases: one holder at a time, and a dead one's successor."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from stepagent.lease import Lease

ROOT = Path(__file__).parents[1]
HOLDER = """
import os, sys, time
from pathlib import Path
from stepagent.lease import Lease
lease = Lease(Path(sys.argv[1]), float(sys.argv[2]))
assert lease.take()
lease.keep(lambda: os._exit(76))
print("taken", flush=True)
time.sleep(600)
"""


def never():
    raise AssertionError("the lease was lost")


@contextmanager
def renewed(holder):
    """Takes the lease, keeps it while the body runs, and releases it."""
    assert holder.take()
    holder.keep(never)
    yield
    holder.release()


def test_a_holder_that_renews_keeps_others_out(tmp_path):
    with renewed(Lease(tmp_path / "run", 1.5)):
        assert not Lease(tmp_path / "run", 1.5).take()
    start = time.monotonic()
    assert Lease(tmp_path / "run", 60).take()
    assert time.monotonic() - start < 30, "a lease that was released is free at once"


def test_a_watcher_with_less_patience_waits_as_long_as_the_holder_counts_as_alive(tmp_path):
    with renewed(Lease(tmp_path / "run", 3)):
        assert not Lease(tmp_path / "run", 0.1).take()


@pytest.mark.parametrize("sign", ["0123abcd", "", "0123abcd soon"])
def test_a_holder_that_does_not_say_how_long_it_lives_is_watched_as_before(tmp_path, sign):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").write_text(sign)
    assert Lease(tmp_path / "run", 0.1).take()


def test_only_one_succeeds_a_holder_that_is_dead(tmp_path):
    assert Lease(tmp_path / "run", 0.3).take()
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: Lease(tmp_path / "run", 0.3).take(), range(8)))
    assert sum(taken) == 1


def test_a_holder_learns_that_it_was_succeeded(tmp_path):
    lost = threading.Event()
    slow = Lease(tmp_path / "run", 0.5)
    assert slow.take()
    time.sleep(0.6)
    assert Lease(tmp_path / "run", 0.5).take()
    slow.keep(lost.set)
    assert lost.wait(30)


def test_a_holder_that_cannot_reach_the_folder_gives_up_in_time(tmp_path):
    lost = threading.Event()
    lease = Lease(tmp_path / "run", 1.2)
    assert lease.take()
    lease.keep(lost.set)
    (tmp_path / "run").rename(tmp_path / "gone")
    assert lost.wait(30)


@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_a_process_that_dies_or_stands_still_loses_its_lease(how, tmp_path):
    seconds = "3"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run"), seconds],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == b"taken\n"
            os.kill(process.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            assert Lease(tmp_path / "run", float(seconds)).take()
            if how == "suspended":
                os.kill(process.pid, signal.SIGCONT)
                assert process.wait(60) == 76, "it ends as soon as it is awake"
        finally:
            process.kill()


def test_what_else_is_in_the_folder_does_not_matter(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert Lease(tmp_path / "run", 60).take()
