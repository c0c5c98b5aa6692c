"""Sixty-four honest clients, with every attack on a server's front beside them.

python -m pytest -m slow -s tests/envs/serve/test_soak.py prints what it measures.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from statistics import quantiles

import pytest

from stepagent.envs.remote import RemoteEnv
from tests.envs.serve.servers import ROOT, Command
from tests.toy_env import ID

CLIENTS, SECONDS = 64, 30.0  # longer than the time for a head


@contextlib.contextmanager
def _beside(what, server):
    """Runs a part of `attacks` meanwhile; gives its process."""
    command = [sys.executable, "-m", "tests.envs.serve.attacks", what, str(server.port)]
    command.append(str(server.process.pid))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _play(url, number, end, episodes, failures):
    while time.monotonic() < end:
        try:
            env = RemoteEnv(ID, url=url)
            env.reset(seed=number)
            for _, action in env.expert_plan():
                terminated, _, info = env.step(action)[2:]
                time.sleep(0.1)
            assert (info["score"], terminated) == (1.0, True)
            env.close()
            episodes.append(number)
        except Exception as error:
            failures.append(f"client {number}: {type(error).__name__}: {error}")


@dataclass
class _Run:
    """What a soak showed. Failures are those of clients and of health checks."""

    episodes: list[int]
    failures: list[str]
    checks: list[float]
    """Seconds of each health check."""
    work: list[float]
    """Seconds of processor time that the server used meanwhile, so far as they are within those of
    the check: what it would have taken on a machine of its own."""
    stopped: tuple[int, float]
    """The server's exit code, and how many seconds after SIGTERM it was gone."""
    log: list[dict]


def _soak(attacked):
    episodes, failures = [], []
    with Command("--env", ID) as server, _beside("health", server) as prober:
        with _beside("attack", server) if attacked else contextlib.nullcontext():
            end = time.monotonic() + SECONDS
            threads = [
                threading.Thread(target=_play, args=(server.url, i, end, episodes, failures))
                for i in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
                time.sleep(0.05)  # a stampede of clients would drown what attacks do
            for thread in threads:
                thread.join()
            output, errors = prober.communicate()
            assert prober.returncode == 0, (prober.returncode, errors)
            health = json.loads(output)
            started = time.monotonic()
            stopped = server.stop(), time.monotonic() - started  # the attacks go on
        log = [json.loads(line) for line in server.lines if line.startswith("{")]
        failures += health["wrong"]
        work = [min(pair) for pair in zip(health["seconds"], health["cpu"], strict=True)]
        return _Run(episodes, failures, health["seconds"], work, stopped, log)


def _within(run, percent):
    """Seconds within which so many of the health checks were answered."""
    return quantiles(run.checks, n=100)[percent - 1]


@pytest.mark.slow
def test_honest_clients_do_not_notice_attacks():
    runs = {}
    idle = os.getloadavg()[0] < 1.0  # elsewhere the scheduler holds a check now and then
    for attacked in (False, True):
        run = runs[attacked] = _soak(attacked)
        print(
            f"{'attacked' if attacked else 'in peace'}: {len(run.episodes)} episodes,"
            f" {len(run.failures)} failures; {len(run.checks)} health checks: half within"
            f" {_within(run, 50):.3f} s, 99 % within {_within(run, 99):.3f} s, the slowest"
            f" {max(run.checks):.3f} s ({max(run.work):.3f} s of processor time);"
            f" stopped in {run.stopped[1]:.1f} s; load {os.getloadavg()[0]:.1f}"
        )
        assert not run.failures, run.failures[:5]
        assert set(run.episodes) == set(range(CLIENTS)), "every client plays to the end"
        assert run.stopped[0] == 0
        assert run.stopped[1] < 10.0, "neither clients nor attacks hold the server"
    refused = [sum(line.get("status") == 431 for line in runs[a].log) for a in (False, True)]
    assert refused[0] == 0
    assert refused[1] > 0, "attacks reach the server"
    assert not [line for line in runs[True].log if "traceback" in line]
    assert max(runs[True].work) < 0.2
    assert _within(runs[True], 99) < max(0.2, 3 * _within(runs[False], 99))
    if idle:
        assert max(runs[True].checks) < 0.2
