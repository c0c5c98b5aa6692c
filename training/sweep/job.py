"""One run of a sweep as a job: what a machine needs to know to do it, and what came of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stepagent.files import open_file, read_text

BUSY, LOST = 75, 76
"""Exit codes of a run's process: another process has the run; another one took it over."""
SUMMARY = "summary.json"
"""The file of a run that is done."""
LAUNCHES = "launches"
"""Folder in a sweep's directory with a file for each launch, whose name no other directory has."""
_LOOKS = 5
"""A network file system may show a new file late."""


@dataclass(frozen=True)
class Job:
    """A run for whichever machine gets it."""

    name: str
    """The run's."""
    directory: str
    """The run's."""
    config: str
    """File with its configuration."""
    output: str
    """The sweep's directory."""
    folder: str
    """Where the sweep was started: relative paths count from here."""
    token: str
    """The file in `LAUNCHES` that is there on a machine that sees the sweep's directory."""
    share_sft: bool
    threads: int
    lost_after: float

    @property
    def log(self) -> Path:
        return Path(self.output) / "logs" / f"{self.name}.log"

    @property
    def is_done(self) -> bool:
        return is_done(Path(self.directory))


def is_done(directory: Path) -> bool:
    """Whether the run of this directory is done."""
    return (directory / SUMMARY).is_file()


@dataclass(frozen=True)
class Outcome:
    """How a job ended on the machine that got it."""

    kind: Literal["done", "failed", "busy", "stopped", "unshared"]
    """`busy`: another process has the run. `unshared`: the machine does not see the folder."""
    host: str = ""
    minutes: float = 0.0
    message: str = ""
    """The last line of the log of a run that failed."""


Track = Callable[["subprocess.Popen[bytes]"], AbstractContextManager[Any]]


def perform(job: Job, track: Track = nullcontext) -> Outcome:
    """Does the job on this machine, in a process of its own, within `track` of that process.

    At KeyboardInterrupt the process is asked to end with a checkpoint, and waited for.
    """
    host, start = socket.gethostname(), time.monotonic()
    if not _sees(job):
        return Outcome("unshared", host)
    environment = dict(os.environ)
    if job.threads:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "stepagent.training.sweep.node"]
    with open_file(job.log, "a") as file:
        process = subprocess.Popen(
            [*command, json.dumps(asdict(job)), str(os.getpid())],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=job.folder if Path(job.folder).is_dir() else None,
        )
        try:
            with track(process):
                code = _ended(process)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    minutes = (time.monotonic() - start) / 60
    if code == 0:
        return Outcome("done", host, minutes)
    if code in (BUSY, LOST):
        return Outcome("busy", host, minutes)
    return Outcome("failed", host, minutes, _last_line(job.log))


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, once it has one. Looks again and again, since KeyboardInterrupt may come
    without a signal, as from Ray, and then does not end a system call."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(1.0)


def _sees(job: Job) -> bool:
    """Whether this machine sees the sweep's directory, and not another of the same name."""
    token = Path(job.output) / LAUNCHES / job.token
    for _ in range(_LOOKS):
        if token.is_file():
            return True
        time.sleep(1.0)
    return False


def _last_line(log: Path) -> str:
    lines = read_text(log, errors="replace").strip().splitlines()
    return (lines or ["no output"])[-1]
