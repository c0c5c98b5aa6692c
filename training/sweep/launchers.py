"""Where a sweep's runs are done: on this machine, by Slurm (submitit), or on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepagent import optional, ray_cluster
from stepagent.training.sweep.job import Job, Outcome, perform
from stepagent.training.sweep.planning import Sweep, SweepError

MOST_JOBS = 1000
"""Jobs under way or queued at once, without a limit of the sweep's own."""
_ENDLESS = 10_000
"""Jobs in which one run may go on, one after another."""


class Launcher(ABC):
    """Does jobs somewhere. What a future raises is in `lost` where the machine was lost, and the
    job may be started again."""

    most = MOST_JOBS
    """Jobs at a time, unless `workers` says how many."""
    lost: tuple[type[BaseException], ...] = ()
    broken: tuple[type[BaseException], ...] = ()
    """Raised by futures where a machine could not even begin (StepAgent is not installed there,
    say). Looked for before `lost`."""
    where = ""
    """Said at the start."""

    @abstractmethod
    def start(self, job: Job) -> Future[Outcome]:
        """Has the job done. Raises SweepError where that is refused."""

    @abstractmethod
    def stop(self) -> None:
        """Ends all, each with a checkpoint to resume from, or the second time at once."""


@contextmanager
def launcher(sweep: Sweep) -> Iterator[Launcher]:
    """The one that a sweep names.

    Raises MissingPackage, NoCluster, and SweepError for parameters or folders that do not work.
    """
    if sweep.launch == "ray":
        with ray_cluster.connected(sweep.ray_address) as ray:
            yield RayLauncher(ray, ray_cluster.resources(sweep.ray))
    elif sweep.launch == "submitit":
        yield SubmititLauncher(Path(sweep.output) / "submitit", sweep.slurm)
    else:
        yield LocalLauncher()


class LocalLauncher(Launcher):
    """Processes of this machine."""

    most = 1

    def __init__(self) -> None:
        self.stopped, self._lock = False, threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._pool = ThreadPoolExecutor(MOST_JOBS)

    def start(self, job: Job) -> Future[Outcome]:
        return self._pool.submit(self._perform, job)

    def _perform(self, job: Job) -> Outcome:
        outcome = perform(job, self.track)
        return Outcome("stopped") if self.stopped and outcome.kind != "done" else outcome

    @contextmanager
    def track(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """While the process runs; one that starts after `stop` is stopped at once."""
        with self._lock:
            self._processes.add(process)
            if self.stopped:
                process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()


class SubmititLauncher(Launcher):
    """Jobs of Slurm, or where that is not installed, of submitit's local executor."""

    def __init__(self, folder: Path, parameters: dict[str, Any]):
        optional.require("submitit", "launch: submitit")
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

        self.broken, self.lost = (FailedJobError,), (UncompletedJobError,)
        self._refused = (FailedJobError, FailedSubmissionError, OSError)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise SweepError(
                f"submitit cannot write its jobs to {folder} ({error.strerror}): choose an output "
                "that can be written, on a file system that all machines share"
            ) from error
        limit: dict[str, Any] = dict.fromkeys(
            ("slurm_max_num_timeout", "local_max_num_timeout"), _ENDLESS
        )
        self._executor = submitit.AutoExecutor(folder=folder / "%j", **limit)
        self.where = "jobs of Slurm"
        if self._executor.cluster == "local":
            self.where = "processes of this machine, which has no Slurm (srun)"
        self._executor.update_parameters(**_parameters(parameters))
        self._jobs: list[Any] = []
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(MOST_JOBS)

    def start(self, job: Job) -> Future[Outcome]:
        try:
            submitted = self._executor.submit(Performance(), job)
        except self._refused as error:
            raise SweepError(f"{job.name} could not be submitted: {error}") from error
        self._jobs.append(submitted)
        return self._pool.submit(self._outcome, submitted)

    def _outcome(self, submitted: Any) -> Outcome:
        while not submitted.done():
            if self._stopped.wait(1.0):
                return Outcome("stopped")
        outcome: Outcome = submitted.result()
        return outcome

    def stop(self) -> None:
        self._stopped.set()
        for submitted in self._jobs:
            if not submitted.done():
                with contextlib.suppress(subprocess.CalledProcessError, OSError):
                    submitted.cancel()


class Performance:
    """`perform` for submitit: at Slurm's signal before a job's time is over, or when it has to make
    room, the run writes a checkpoint and the job is queued again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, job: Job) -> Outcome:
        return perform(job, self._track)

    @contextmanager
    def _track(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        self._process = process
        try:
            yield
        finally:
            self._process = None

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit, from within `__call__`, by a handler of signals."""
        from submitit.helpers import DelayedSubmission

        if self._process:
            self._process.terminate()
            # Popen.wait is what the signal has interrupted: it cannot be called again.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Performance(), job)


def _parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of jobs as submitit names them: those that only Slurm has begin with `slurm_`.

    Raises SweepError for unknown ones, values of a wrong type, and jobs of several processes.
    """
    from submitit import AutoExecutor, SlurmExecutor

    shared, known = AutoExecutor._typed_parameters(), SlurmExecutor._valid_parameters()
    for name, value in parameters.items():
        if name not in shared and name not in known:
            names = ", ".join(sorted({*shared, *known}))
            raise SweepError(f"slurm: unknown key {name!r}. There are: {names}")
        if name in ("nodes", "tasks_per_node", "ntasks_per_node") and value != 1:
            raise SweepError(f"slurm: {name} is {value!r}: a run is one process, so it must be 1")
        if kind := shared.get(name):
            kinds = (int, float) if kind is float else kind
            if not isinstance(value, kinds):
                raise SweepError(f"slurm: {name} cannot be {value!r}: it takes {kind.__name__}")
    named = {n if n in shared else f"slurm_{n}": value for n, value in parameters.items()}
    return {"timeout_min": 24 * 60, "name": "stepagent", **named}


class RayLauncher(Launcher):
    """Tasks of a Ray cluster."""

    def __init__(self, ray: Any, needs: dict[str, Any]):
        self._ray = ray
        errors = ray.exceptions
        self.broken = (errors.RayTaskError,)
        self.lost = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        )
        try:
            self._remote = ray.remote(perform).options(max_retries=0, **needs)
        except (TypeError, ValueError) as error:
            raise SweepError(f"ray: {error}") from error
        nodes = sum(node["Alive"] for node in ray.nodes())
        room = ray_cluster.room(ray, needs)
        self.where = f"tasks of a Ray cluster of {nodes} nodes, which holds {room} at a time"
        self._running: list[Any] = []
        self._stopped = False

    def start(self, job: Job) -> Future[Outcome]:
        reference = self._remote.remote(job)
        self._running.append(reference)
        future: Future[Outcome] = reference.future()
        return future

    def stop(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=self._stopped)
        self._stopped = True
