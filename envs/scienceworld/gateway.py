"""A small client of the Py4J gateway protocol: one connection is one thread of the Java process.

Py4J's own Python side keeps a pool of connections, so a call may land on any Java thread, and it
logs stack traces (partly through the root logger) when the process goes away. A simulator needs
the opposite: one Java thread for all its calls (see `patches`), a time-out, a clear exception.

Protocol: a command is lines of text, an argument a type letter and its value, `e` ends it. The
answer is one line: `!y` (or `!x` for an exception), a type letter and the value.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepagent.errors import SetupError, UserError


class IncompleteInstallation(SetupError, RuntimeError):
    """A part of an installed package that the simulator needs is missing."""


class SimulatorError(UserError, RuntimeError):
    """The simulator's Java process failed (died, hung, could not start): infrastructure, not play.

    The current episode is lost; `reset()` starts a new process.
    """


class JavaError(SimulatorError):
    """The Java side answered a call with an exception. The process itself is fine."""


@dataclass(frozen=True)
class Reference:
    """An object that lives in the Java process."""

    id: str


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    parts = (part.replace("\\r", "\r").replace("\\n", "\n") for part in text.split("\\\\"))
    return "\\".join(parts)


def _argument(value: Any) -> str:
    if value is None:
        return "n"
    if isinstance(value, bool):
        return f"b{str(value).lower()}"
    if isinstance(value, int):
        return f"i{value}" if -(2**31) <= value < 2**31 else f"L{value}"
    if isinstance(value, str):
        return f"s{_escape(value)}"
    if isinstance(value, Reference):
        return f"r{value.id}"
    raise TypeError(f"cannot send a {type(value).__name__} to Java")


def _result(kind: str, value: str) -> Any:
    if kind in "vn":
        return None
    if kind == "s":
        return _unescape(value)
    if kind in "iL":
        return int(value)
    if kind == "d":
        return float(value)
    if kind == "b":
        return value == "true"
    return Reference(value)  # object, list, array, map, set


class Connection:
    """One socket to the gateway. Calls from several Python threads take turns.

    Parameters
    ----------
    port, token: where the gateway listens, and the secret it printed when it started.
    timeout: seconds that a call may take.

    Raises SimulatorError where the process cannot be reached.
    """

    def __init__(self, port: int, token: str, timeout: float):
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self.timed_out = False
        self.timeout = timeout
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise SimulatorError(f"no connection to the Java process: {error}") from error
        self._send(f"A\n{token}\n")

    def _send(self, command: str) -> Any:
        with self._lock:
            if os.getpid() != self._pid:
                raise SimulatorError("this simulator was made before a fork: call reset() first")
            try:
                self._socket.sendall(command.encode("utf-8", "replace"))
                answer = self._read_line()
            except TimeoutError as error:
                self.timed_out = True
                self.close()
                raise SimulatorError(f"no answer within {self.timeout:g} s") from error
            except (OSError, ValueError) as error:  # ValueError: closed in the meantime
                self.close()
                raise SimulatorError(f"the connection to Java broke: {error}") from error
            except (
                BaseException
            ):  # Ctrl-C during a call: its answer would be read as the next one's
                self.close()
                raise
        if not answer.endswith(b"\n"):
            self.close()
            raise SimulatorError("the Java process ended in the middle of a call")
        text = answer.decode("utf-8", "replace")[:-1]
        if text.startswith("!y"):
            return _result(text[2:3], text[3:])
        raise JavaError(self._explain(text[2:3], text[3:]))

    def _read_line(self) -> bytes:
        """The answer to a command, which is one line; shorter where the other side ended.

        No buffered file: its lock, held by a thread that reads while another one forks, would never
        be free in the child, where closing the file waits for it.
        """
        chunks = [self._socket.recv(65536)]
        while chunks[-1] and not chunks[-1].endswith(b"\n"):
            chunks.append(self._socket.recv(65536))
        return b"".join(chunks)

    def _explain(self, kind: str, value: str) -> str:
        """The message of a Java exception."""
        if kind not in "or":
            return _unescape(value) or "an error without a message"
        words = str(self.call(Reference(value), "toString"))
        self.release(Reference(value))
        return words

    def call(self, target: Reference | str, method: str, *args: Any) -> Any:
        """Calls a method of an object, or a static one where `target` is the name of a class.

        Raises JavaError for an exception of the method, SimulatorError where there was no answer.
        """
        owner = target.id if isinstance(target, Reference) else f"z:{target}"
        return self._send("\n".join(["c", owner, method, *map(_argument, args), "e", ""]))

    def new(self, name: str, *args: Any) -> Reference:
        """Creates an object of the named class."""
        instance = self._send("\n".join(["i", name, *map(_argument, args), "e", ""]))
        assert isinstance(instance, Reference)
        return instance

    def new_array(self, items: Sequence[Reference | int | None]) -> Reference:
        """Creates an `Object[]` of these items (numbers become `Long`)."""
        array = self._send(f"a\nc\nsjava.lang.Object\ni{len(items)}\ne\n")
        assert isinstance(array, Reference)
        for index, item in enumerate(items):
            if item is not None:
                self.set_item(array, index, item)
        return array

    def set_item(self, array: Reference, index: int, item: Reference | int) -> None:
        """Puts an item (a number becomes a `Long`) into an `Object[]`."""
        value = f"r{item.id}" if isinstance(item, Reference) else f"L{item}"
        self._send(f"a\ns\n{array.id}\ni{index}\n{value}\ne\n")

    def release(self, *references: Reference) -> None:
        """Lets the Java process collect these objects."""
        for reference in references:
            self._send(f"m\nd\n{reference.id}\ne\n")

    def close(self) -> None:
        """Ends the connection, and with it its Java thread. Never raises, never waits."""
        try:
            if os.getpid() == self._pid:  # a forked child only drops its copy of the socket
                self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            with contextlib.suppress(OSError):
                self._socket.close()
