"""Sixty-four honest clients, with every attack on a server's front beside them.

python -m pytest -m slow -s tests/envs/serve/test_soak.py prints what it measures.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from stepagent.envs.remote import RemoteEnv
from tests.envs.serve.servers import ROOT, Command
from tests.toy_env import ID

CLIENTS, SECONDS = 64, 20.0


@contextlib.contextmanager
def _beside(what, server):
    """Runs a part of `attacks` meanwhile; gives its process."""
    command = [sys.executable, "-m", "tests.envs.serve.attacks", what, str(server.port)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def _soak(attacked):
    """(episodes, failures, health checks, the slowest one's seconds, the server's log). Failures
    are those of clients and of health checks."""
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
            for thread in threads:
                thread.join()
            checks, slowest, wrong = json.loads(prober.communicate()[0])
        server.stop(signal.SIGKILL)  # its log is all that is left to read
        return episodes, failures + wrong, checks, slowest, "".join(server.lines)


@pytest.mark.slow
def test_honest_clients_do_not_notice_attacks():
    runs = {}
    for attacked in (False, True):
        episodes, failures, checks, slowest, log = _soak(attacked)
        name = "attacked" if attacked else "in peace"
        print(f"{name}: {len(episodes)} episodes, {len(failures)} failures; {checks} health checks,"
              f" the slowest took {slowest:.3f} s")  # fmt: skip
        assert not failures, failures[:5]
        assert set(episodes) == set(range(CLIENTS)), "every client plays to the end"
        runs[attacked] = slowest, log
    assert '"code": "head"' in runs[True][1] or "431" in runs[True][1], "attacks reach the server"
    assert "431" not in runs[False][1]
    assert runs[True][0] < max(0.2, 3 * runs[False][0]), "0.2 s on a quiet machine"
