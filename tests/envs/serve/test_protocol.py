"""What a connection sends before the application sees it has limits, and honest clients go on."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest

from stepagent.envs.serve import protocol
from tests.envs.serve.servers import Running, wait_until
from tests.toy_env import ID


@pytest.fixture
def server():
    with Running(ID) as running:
        yield running


def _connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _answer(connection):
    """(status, error) of what the server sends until it closes; (0, None) for nothing."""
    received = b""
    with contextlib.suppress(OSError):
        while chunk := connection.recv(65536):
            received += chunk
    if not received:
        return 0, None
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def _send(connection, data):
    with contextlib.suppress(OSError):  # the server may close first
        connection.sendall(data)


def _health_seconds(server, while_true):
    slowest = 0.0
    while while_true():
        started = time.monotonic()
        assert server.ask("GET", "/healthz")[0] == 200
        slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.01)
    return slowest


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"x: " + b"a" * 100_000,
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
        b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 12_000 + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
    ids=["a long URL", "a long header", "many headers", "many, complete", "long, complete"],
)
def test_a_head_beyond_64_kb_is_refused(server, data):
    with _connect(server) as connection:
        _send(connection, data)
        assert _answer(connection) in ((431, "head"), (0, None)), "0: it was reset while sending"
    with _connect(server) as connection:
        for i in range(0, len(data), 9000):
            _send(connection, data[i : i + 9000])
            time.sleep(0.001)
        assert _answer(connection)[0] in (431, 0)
    assert server.ask("GET", "/healthz")[0] == 200


def test_a_head_of_60_kb_is_read(server):
    for size in (60_000, 30_000):
        assert server.ask("GET", "/healthz", x="a" * size)[0] == 200


def test_the_body_does_not_count(server):
    status, answer = server.ask("POST", "/v1/batch", b'{"calls": [' + b" " * 300_000 + b"]}")
    assert (status, answer) == (200, {"answers": []})


def test_slow_heads_and_bodies_are_cut(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "BODY_SECONDS", 0.5)
    starts = [
        b"",
        b"GET /healthz HTTP/1.1\r\nx: ",
        b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\nGET /he",  # the second one of a connection
    ]
    with Running(ID) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(_connect(server)) for _ in starts]
        for connection, start in zip(connections, starts, strict=True):
            _send(connection, start)
        time.sleep(0.1)
        assert server.ask("GET", "/healthz")[0] == 200
        assert [_answer(c)[:2] for c in connections[:3]] == [(408, "slow")] * 3
        received = b""
        while chunk := connections[3].recv(65536):
            received += chunk
        assert received.count(b"HTTP/1.1") == 2
        assert b"HTTP/1.1 408" in received


def _healthy(connection: socket.socket) -> bool:
    """Reads an answer of /healthz, which may come in parts."""
    answer = b""
    while not answer.endswith(b"}"):
        if not (part := connection.recv(65536)):
            return False
        answer += part
    return answer.startswith(b"HTTP/1.1 200")


def test_half_open_connections_lock_nobody_out(caplog):
    with Running(ID, max_connections=20) as server, contextlib.ExitStack() as stack:
        alive = stack.enter_context(_connect(server))
        _send(alive, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert _healthy(alive)
        half_open = [stack.enter_context(_connect(server)) for _ in range(60)]
        done = threading.Event()
        threading.Timer(0.5, done.set).start()
        assert _health_seconds(server, lambda: not done.is_set()) < 0.2
        assert len(server.server.server_state.connections) <= 21
        _send(alive, b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        assert _healthy(alive), "one that was used stays longest"
        closed = sum(_is_closed(connection) for connection in half_open)
        assert closed >= 40
    assert "too many connections" in caplog.text


def test_bodies_that_never_end_lock_nobody_out(caplog):
    body = b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
    with Running(ID, max_connections=20) as server, contextlib.ExitStack() as stack:
        for _ in range(40):
            _send(stack.enter_context(_connect(server)), body)
        time.sleep(0.2)
        for _ in range(3):
            assert server.ask("GET", "/healthz")[0] == 200
    assert "Exception" not in caplog.text, "a client that left is no fault of the server"


@contextlib.contextmanager
def _unread(server):
    """A connection that sends requests and takes no answer."""
    state = server.server.server_state
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        own = connection.getsockname()
        wait_until(lambda: any(c.client == own for c in state.connections))
        (there,) = (c for c in state.connections if c.client == own)
        buffers = there.transport.get_extra_info("socket")
        buffers.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        _send(connection, b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\n" * 10)
        wait_until(lambda: there.flow.write_paused)
        yield connection


def test_answers_that_nobody_takes_lock_nobody_out():
    with Running(ID, max_connections=3) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(_unread(server))
        assert server.ask("GET", "/healthz")[0] == 200


def test_answers_that_nobody_takes_end_the_connection(monkeypatch, caplog):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.3)
    with Running(ID) as server, _unread(server):
        wait_until(lambda: not server.server.server_state.connections)
    (line,) = (record.fields for record in caplog.records if "fields" in vars(record))
    assert "did not take its answer" in line["why"]


def test_nobody_who_is_waited_for_delays_a_shutdown():
    starts = [b"", b"GET /he", b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"]
    with contextlib.ExitStack() as stack:
        with Running(ID, grace=30) as server:
            for start in starts:
                _send(stack.enter_context(_connect(server)), start)
            stack.enter_context(_unread(server))
            started = time.monotonic()
        assert time.monotonic() - started < 10
        assert not server.thread.is_alive()


def test_a_flood_of_connections_is_accepted_though_the_loop_is_busy():
    with Running(ID, max_connections=1000) as server, contextlib.ExitStack() as stack:
        loop = server.server.servers[0].get_loop()

        def work():
            time.sleep(0.005)
            loop.call_soon(work)

        loop.call_soon_threadsafe(work)
        for _ in range(400):
            stack.enter_context(_connect(server))
        started = time.monotonic()
        assert server.ask("GET", "/healthz")[0] == 200
        assert time.monotonic() - started < 1.0, "2 s where each turn accepts one"


def _is_closed(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_endless_heads_and_slow_bodies_do_not_slow_the_others(server):
    stop = threading.Event()

    def attack(start, chunk):
        while not stop.is_set():
            with contextlib.suppress(OSError), _connect(server) as connection:
                connection.sendall(start)
                while not stop.is_set():
                    connection.sendall(chunk)
                    time.sleep(0.001)

    body = b"POST /v1/batch HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n"
    attacks = [(b"GET /healthz HTTP/1.1\r\n", b"x: y\r\n" * 100), (b"GET /", b"a" * 1000)] * 3
    attacks += [(body, b" ")] * 10
    threads = [threading.Thread(target=attack, args=a, daemon=True) for a in attacks]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 1.5
    times = _health_seconds(server, lambda: time.monotonic() < end)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert times < 1.0, "0.2 s on a quiet machine"
