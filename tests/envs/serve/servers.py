"""Servers for tests: in a thread of this process, or as the command in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import urllib3
import uvicorn

from stepagent.envs.serve.app import create_app
from stepagent.envs.serve.limits import Limits, offers
from stepagent.envs.serve.protocol import LimitedProtocol, Server

ROOT = Path(__file__).parents[3]


class Running:
    """A server in a thread. `with Running(ID) as server: server.url`."""

    def __init__(
        self,
        *env_ids,
        token=None,
        env_args=None,
        client_args=None,
        port=0,
        max_connections=64,
        grace=2,
        **limits,
    ):
        offered = offers(list(env_ids), env_args or {}, client_args)
        self.app = create_app(offered, Limits(**limits), token)
        self.sessions = self.app.app.state.sessions
        config = uvicorn.Config(
            self.app,
            port=port,
            http=partial(LimitedProtocol, max_connections=max_connections),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=grace,
        )
        self.server = Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.token = token

    def __enter__(self):
        self.thread.start()
        wait_until(lambda: self.server.started or not self.thread.is_alive())
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)

    def ask(self, method, path, body=None, **headers):
        """(status, answer) of a plain request."""
        data = json.dumps(body) if isinstance(body, dict | list) else body
        answer = urllib3.request(
            method, self.url + path, body=data, headers=headers, retries=False, timeout=20
        )
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(answer.data)
        return answer.status, answer.data.decode()


def wait_until(true, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to be in time"
        time.sleep(0.01)


class Command:
    """`stepagent serve …` in a process of its own, up to its first line of serving."""

    def __init__(self, *arguments, port=0, environ=None):
        command = [sys.executable, "-m", "envs.serve", *arguments, "--port", str(port)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r"running on http://127.0.0.1:(\d+)", line):
                self.port = int(match.group(1))
                self.url = f"http://127.0.0.1:{self.port}"
                break
        else:
            raise AssertionError("".join(self.lines))
        self.reader = threading.Thread(
            target=lambda: self.lines.extend(self.process.stderr), daemon=True
        )
        self.reader.start()

    def stop(self, number=signal.SIGTERM):
        """Ends it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        self.reader.join(5)
        self.process.stderr.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGKILL)


class Cutter:
    """A proxy that hands one request on to the server, then cuts the client off before the answer.

    `cut()` arms it for the next request that holds `word`.
    """

    def __init__(self, port):
        self.target, self.armed, self.cuts = port, b"", 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, word):
        self.armed = word.encode()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        with contextlib.suppress(OSError), client:
            server = socket.create_connection(("127.0.0.1", self.target))
            with server:
                back = threading.Thread(target=self._back, args=(server, client), daemon=True)
                back.start()
                while data := client.recv(65536):
                    cut = self.armed and self.armed in data
                    if cut:  # first, since the server may answer before the next line
                        self.armed, self.cuts = b"", self.cuts + 1
                        client.shutdown(socket.SHUT_RDWR)
                    server.sendall(data)
                    if cut:
                        return

    @staticmethod
    def _back(server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)

    def close(self):
        self.listener.close()
