"""Hours of rude clients, in minutes: `stepagent bench soak --args.minutes 10`.

Sixty-four clients open sessions, play a few steps, and at every other time vanish without closing:
nothing that they leave may stay. Measured when all is quiet, after a first part (so that caches and
pools are filled) and at the end: open sessions, threads, file handles and memory of the server and
its Java. The baseline of every row is the first measurement.
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
    """Settings: env (ids with commas between), minutes, sessions (clients, each with one), pause
    (seconds between steps), idle (seconds after which the server closes an abandoned session)."""
    wanted = settings(
        options,
        env="stepagent/ALFWorld-v0,stepagent/ScienceWorld-v0,stepagent/WebShop-v0",
        minutes=10.0,
        sessions=64,
        pause=1.0,
        idle=8.0,
    )
    env_ids, clients = wanted["env"].split(","), int(wanted["sessions"])
    seconds = 60.0 * float(wanted["minutes"])
    happened: Counter[str] = Counter()
    with Served(*env_ids, idle_seconds=wanted["idle"], max_sessions=4 * clients) as server:
        _let_loose(server, env_ids, clients, 0.25 * seconds, wanted["pause"], happened)
        before = _quiet(server, wanted["idle"])
        _let_loose(server, env_ids, clients, 0.75 * seconds, wanted["pause"], happened)
        after = _quiet(server, wanted["idle"])
    print(dict(happened), file=sys.stderr)
    opened, left = after["stepagent_sessions_opened_total"], after["stepagent_sessions"]
    rows = [
        Row("sessions left (baseline: opened)", left, opened, opened / max(left, 1.0), ""),
        Row("failed steps (baseline: steps)", happened["failed"], happened["steps"], 0.0, ""),
        Row("clients that vanished (baseline: opened)", happened["vanished"], opened, 0.0, ""),
    ]
    for name, key, scale, unit in (
        ("threads", "stepagent_threads", 1, ""),
        ("file handles", "process_open_fds", 1, ""),
        ("memory of the server", "process_resident_memory_bytes", 1e6, "MB"),
        ("memory of Java", "stepagent_children_resident_memory_bytes", 1e6, "MB"),
    ):
        rows.append(Row.less_is_better(name, after[key] / scale, before[key] / scale, unit))
    return rows


def _let_loose(
    server: Served,
    env_ids: list[str],
    clients: int,
    seconds: float,
    pause: float,
    happened: Counter[str],
) -> None:
    """The clients, each in a thread, until the time is over."""
    deadline, lock = time.monotonic() + seconds, threading.Lock()

    def note(**what: int) -> None:
        with lock:
            happened.update(what)

    def live(number: int) -> None:
        rng, env_id = random.Random(number), env_ids[number % len(env_ids)]
        while time.monotonic() < deadline:
            try:
                env = envs.make(env_id, url=server.url, patience=30.0)
                env.reset(seed=rng.randrange(1000))
                actions = env.admissible_actions()
                for _ in range(rng.randrange(2, 12)):
                    time.sleep(pause * 2 * rng.random())
                    _, _, terminated, truncated, _ = env.step(rng.choice(actions))
                    note(steps=1)
                    if terminated or truncated:
                        break
                if rng.random() < 0.5:
                    env.close()
                    note(closed=1)
                else:
                    note(vanished=1)  # says nothing; the server has to find out
            except (RemoteError, RuntimeError) as error:
                note(failed=1)
                print(f"client {number}: {type(error).__name__}: {error}", file=sys.stderr)

    threads = [threading.Thread(target=live, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120.0)


def _quiet(server: Served, idle: float) -> dict[str, float]:
    """The server's figures once the abandoned sessions have died (or should have)."""
    deadline = time.monotonic() + 6 * idle
    while (figures := server.figures())["stepagent_sessions"] and time.monotonic() < deadline:
        time.sleep(1.0)
    time.sleep(idle)
    return server.figures() if not figures["stepagent_sessions"] else figures
