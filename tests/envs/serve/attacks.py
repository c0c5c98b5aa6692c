"""Attacks on what a server reads before it knows the client, in a process of its own.

    python -m tests.envs.serve.attacks attack PORT PID
    python -m tests.envs.serve.attacks health PORT PID

The first makes all of them until it is ended. The second asks for /healthz until its standard input
ends, then prints a JSON object: the seconds of each request, the seconds of processor time that the
server used meanwhile, and what went wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator

import psutil

HALF_OPEN, SLOW_BODIES, ENDLESS = 300, 150, 4
_BODY = b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n"


def _connections(port: int, count: int, start: bytes) -> Iterator[socket.socket]:
    """So many connections in turn, without end; one that the server has closed is made anew."""
    opened: list[socket.socket | None] = [None] * count
    for number in itertools.cycle(range(count)):
        connection = opened[number]
        try:
            if connection is None:
                connection = socket.create_connection(("127.0.0.1", port), timeout=10)
                connection.sendall(start)
                connection.setblocking(False)
                opened[number] = connection
            with contextlib.suppress(BlockingIOError):
                if not connection.recv(65536):
                    raise ConnectionResetError
            yield connection
        except OSError:
            if connection is not None:
                connection.close()
            opened[number] = None


def _attack(port: int, count: int, start: bytes, chunk: bytes, pause: float) -> None:
    while True:
        for connection in _connections(port, count, start):
            if chunk:
                with contextlib.suppress(OSError):
                    connection.send(chunk)
            time.sleep(pause)


def attack(port: int, _: int) -> None:
    attacks = [
        (ENDLESS, b"GET /healthz HTTP/1.1\r\n", b"x: y\r\n" * 200, 0.002),
        (ENDLESS, b"GET /", b"a" * 1000, 0.002),
        (HALF_OPEN, b"", b"", 0.002),
        (HALF_OPEN // 2, b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ", b"", 0.002),
        (SLOW_BODIES, _BODY, b" ", 0.002),
    ]
    for one in attacks:
        threading.Thread(target=_attack, args=(port, *one), daemon=True).start()
    threading.Event().wait()


def health(port: int, pid: int) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    server = psutil.Process(pid)
    seconds, cpu, wrong = [], [], []
    while not ended.wait(0.02):
        used, started = sum(server.cpu_times()[:2]), time.monotonic()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                answer = connection.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                wrong.append(repr(answer[:100]))
        except OSError as error:
            wrong.append(repr(error))
        seconds.append(time.monotonic() - started)
        cpu.append(sum(server.cpu_times()[:2]) - used)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "wrong": wrong}))


if __name__ == "__main__":
    {"attack": attack, "health": health}[sys.argv[1]](*map(int, sys.argv[2:]))
