"""The process of a run of a sweep: `python -m stepagent.training.sweep.node JOB PARENT`.

It holds the run's lease for as long as it lives, so that no other machine works on the run, and one
may as soon as this process does not. It begins with the SFT of another run where there is one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from stepagent import command_line
from stepagent.files import Lock, Locked
from stepagent.lease import Lease
from stepagent.training import run
from stepagent.training.config import Config
from stepagent.training.sweep.inheritance import inherit_sft
from stepagent.training.sweep.job import BUSY, LOST, Job

LOCK_SECONDS = 300.0
"""How long a file system may take to free the lock of a machine that is dead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: that of `stepagent train`, or `BUSY`."""
    description, parent = sys.argv[1:] if argv is None else argv
    if hasattr(signal, "SIGUSR2"):
        # Slurm sends it to all processes of a job; the parent, which knows it, asks for the end.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _follow(int(parent))
    job = Job(**json.loads(description))
    directory = Path(job.directory)
    lease = Lease(Path(job.output) / "leases" / directory.name, job.lost_after)
    if not lease.take():
        return BUSY
    lease.keep(_end)
    try:
        if job.is_done:
            return 0
        _wait_for_lock(directory)
        if job.share_sft:
            config = command_line.parse(Config, ["--config", job.config], prog="stepagent sweep")
            inherit_sft(config, Path(job.output))
        return run.main(["--config", job.config])
    finally:
        lease.release()


def _follow(parent: int) -> None:
    """Interrupts this process when its parent is dead: nobody would stop it any more."""
    # Not SIGTERM, which the parent may have sent before it died: twice means at once.
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM if is_ignored else signal.SIGINT)

    threading.Thread(target=watch, daemon=True, name="parent").start()


def _end() -> None:
    """Ends at once, without another letter into the run's directory: it may be another's now."""
    print("this machine was out of touch for too long: the run goes on elsewhere", flush=True)
    os._exit(LOST)


def _wait_for_lock(directory: Path) -> None:
    """Waits for the run's own lock, which a dead machine may still have."""
    end = time.monotonic() + LOCK_SECONDS
    while directory.is_dir() and time.monotonic() < end:
        try:
            Lock(directory / ".lock").release()
            return
        except Locked:  # where it stays locked, the run says so
            time.sleep(2.0)


if __name__ == "__main__":
    sys.exit(main())
