"""A soak test with badly behaved clients: `stepagent bench soak --args.minutes 10`.

Sixty-four clients open sessions, play a few steps, and half of the time vanish without closing:
nothing may be left behind. Open sessions, threads, file handles and memory of the server and its
Java are measured when the server is idle, after a first part (so that caches and pools are filled)
and at the end. The baseline of every row is the first measurement.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

from stepagent import envs
from stepagent.envs.remote import RemoteError
from stepagent.eval.benches import Options, Row, settings
from stepagent.eval.benches.serving import Served


def bench(options: Options) -> list[Row]:
    """Settings: env (ids separated by commas), minutes, sessions (clients, each with one), pause
    (seconds between steps), idle (seconds after which the server closes an abandoned session)."""
    args = settings(
        options,
        env="stepagent/ALFWorld-v0,stepagent/ScienceWorld-v0,stepagent/WebShop-v0",
        minutes=10.0,
        sessions=64,
        pause=1.0,
        idle=8.0,
    )
    env_ids, n = args["env"].split(","), int(args["sessions"])
    clients = _Clients(env_ids, n, args["pause"])
    seconds = 60.0 * float(args["minutes"])
    with Served(*env_ids, idle_seconds=args["idle"], max_sessions=4 * n) as server:
        clients.run(server, 0.25 * seconds)
        before = _figures_when_quiet(server, args["idle"])
        clients.run(server, 0.75 * seconds)
        after = _figures_when_quiet(server, args["idle"])
    events = clients.events
    print(dict(events), file=sys.stderr)
    opened, left = after["stepagent_sessions_opened_total"], after["stepagent_sessions"]
    rows = [
        Row("sessions left (baseline: opened)", left, opened, opened / max(left, 1.0), ""),
        Row("failed steps (baseline: steps)", events["failed"], events["steps"], 0.0, ""),
        Row("clients that vanished (baseline: opened)", events["vanished"], opened, 0.0, ""),
    ]
    for name, key, scale, unit in (
        ("threads", "stepagent_threads", 1, ""),
        ("file handles", "process_open_fds", 1, ""),
        ("memory of the server", "process_resident_memory_bytes", 1e6, "MB"),
        ("memory of Java", "stepagent_children_resident_memory_bytes", 1e6, "MB"),
    ):
        rows.append(Row.less_is_better(name, after[key] / scale, before[key] / scale, unit))
    return rows


class _Clients:
    """Clients that each play sessions one after another, and what happened to them."""

    def __init__(self, env_ids: list[str], count: int, pause: float):
        self.env_ids, self.count, self.pause = env_ids, count, pause
        self.events: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, server: Served, seconds: float) -> None:
        """Runs all clients, each in a thread, for so many seconds."""
        deadline = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._play, args=(server, number, deadline), daemon=True)
            for number in range(self.count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 120.0)

    def _play(self, server: Served, number: int, deadline: float) -> None:
        rng, env_id = random.Random(number), self.env_ids[number % len(self.env_ids)]
        while time.monotonic() < deadline:
            try:
                env = envs.make(env_id, url=server.url, patience=30.0)
                env.reset(seed=rng.randrange(1000))
                actions = env.admissible_actions()
                for _ in range(rng.randrange(2, 12)):
                    time.sleep(self.pause * 2 * rng.random())
                    _, _, terminated, truncated, _ = env.step(rng.choice(actions))
                    self._count("steps")
                    if terminated or truncated:
                        break
                if rng.random() < 0.5:
                    env.close()
                    self._count("closed")
                else:
                    self._count("vanished")  # without a word; the server has to find out
            except (RemoteError, RuntimeError) as error:
                self._count("failed")
                print(f"client {number}: {type(error).__name__}: {error}", file=sys.stderr)

    def _count(self, event: str) -> None:
        with self._lock:
            self.events[event] += 1


def _figures_when_quiet(server: Served, idle: float) -> dict[str, float]:
    """The server's figures once the abandoned sessions have expired (or should have)."""
    deadline = time.monotonic() + 6 * idle
    while (figures := server.figures())["stepagent_sessions"] and time.monotonic() < deadline:
        time.sleep(1.0)
    time.sleep(idle)
    return server.figures() if not figures["stepagent_sessions"] else figures
