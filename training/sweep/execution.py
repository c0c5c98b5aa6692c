"""The runs of a sweep: in which order, how many at a time, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import yaml
from rich.console import Console

from stepagent import command_line
from stepagent.errors import SetupError
from stepagent.files import is_file, parse_json, read_text, write_text
from stepagent.training.config import Config
from stepagent.training.sweep.inheritance import has_sft, sft_of
from stepagent.training.sweep.job import LAUNCHES, SUMMARY, Job, Outcome, is_done
from stepagent.training.sweep.launchers import Launcher, launcher
from stepagent.training.sweep.planning import Sweep, SweepError, SweepRun, all_runs, merged
from stepagent.training.sweep.results import FAILED

POLL_SECONDS = 2.0
"""Between two looks at whether a run is past its SFT, or may be tried again."""
SHOWS_SECONDS = 120.0
"""Within which a network file system shows the summary of a run that another machine has done."""
MOST_LOSSES = 3
"""How often a run is started again after the loss of its machine: it may be what kills them."""
_LONGEST_PAUSE = 600.0
"""Seconds between two attempts to start a run that another process has."""


class Unshared(SetupError):
    """A machine does not see the sweep's directory."""


def configuration(run: SweepRun, output: Path) -> Config:
    """The run's configuration, checked as the command line is: exits with code 2 where wrong.

    Not thread-safe: jsonargparse changes into the file's directory while it reads it.
    """
    directory = str(run.directory(output))
    path = _write_options(run, output, directory, matched_tokens(run, output))
    return command_line.parse(Config, ["--config", str(path)], prog="stepagent sweep")


def with_matched_tokens(run: SweepRun, config: Config, output: Path) -> Config:
    """The configuration of a run that matches another, now that the other is done. Parses no file,
    which would change the working directory, so that runs may be under way meanwhile."""
    tokens = matched_tokens(run, output)
    _write_options(run, output, config.output, tokens)
    return replace(config, sft=replace(config.sft, tokens=tokens))


def _write_options(run: SweepRun, output: Path, directory: str, tokens: int) -> Path:
    """The file with the run's options, with `sft.tokens` where that is not 0."""
    path = config_file(run, output)
    options = {**run.options, "output": directory}
    if tokens:
        options = merged(options, {"sft": {"tokens": tokens}})
    text = yaml.safe_dump(options, sort_keys=False)
    if not is_file(path) or read_text(path) != text:  # the same command elsewhere may write it
        write_text(path, text)
    return path


def matched_tokens(run: SweepRun, output: Path) -> int:
    """The tokens that the run it matches was trained on: 0 where it matches none, 1 as long as that
    is not done.

    Raises SweepError where that recorded none, and this run is not done.
    """
    if not run.matches:
        return 0
    path = run.matches.directory(output) / SUMMARY
    if not is_file(path):
        return 1
    budget = parse_json(read_text(path)).get("budget")
    if not budget:
        if is_done(run.directory(output)):
            return 1
        raise SweepError(
            f"{run.name} cannot match {path.parent}, which does not say on how many tokens it was "
            "trained: an earlier version made it; delete that folder to train it again"
        )
    return round(budget["tokens"])


def config_file(run: SweepRun, output: Path) -> Path:
    return output / "configs" / f"{run.name}.yaml"


def checked(run: SweepRun, output: Path) -> Config:
    """The run's configuration. Raises SweepError where its options cannot work."""
    from stepagent.training.run import check

    config = configuration(run, output)
    try:
        check(config)
    except ValueError as error:
        raise SweepError(f"{run.name}: {error}") from None
    return config


@dataclass
class _Entry:
    """A run in the queue."""

    job: Job
    sft: str
    """The name of its SFT, where the sweep shares that; "" otherwise."""
    matches: Job | None = None
    """The run on as many tokens of which it trains."""
    prepare: Callable[[], str] | None = None
    """For one that matches another: writes its options, now that the other is done, and returns the
    name of its SFT. Raises SweepError where the other does not say its tokens."""
    losses: int = 0
    attempts: int = 0
    """How often another process had it."""
    not_before: float = 0.0

    @property
    def lacks_sft(self) -> bool:
        return bool(self.sft) and not has_sft(Path(self.job.directory))


class Queue:
    """The runs of a sweep, as many at a time as there is room for.

    Runs that share their SFT wait for the one that makes it, and a run that matches another waits
    for that, without taking any room.
    """

    def __init__(self, sweep: Sweep, launch: Launcher, console: Console, deadline: float):
        self._launch, self._console, self._deadline = launch, console, deadline
        self._most = sweep.workers or launch.most
        self._names_hosts = sweep.launch != "local"
        self._waiting: list[_Entry] = []
        self._running: dict[Future[Outcome], _Entry] = {}
        self._done: dict[str, bool] = {}
        """Run that has ended → whether it is done"""
        self._start_time = time.monotonic()
        self._end_times: dict[str, float] = {}
        """Run that was done here → when it ended"""

    def run(self, entries: Sequence[_Entry]) -> dict[str, bool]:
        """Does all; returns which are done. Raises SweepError, Unshared and KeyboardInterrupt, the
        runs having ended."""
        self._done = {entry.job.name: True for entry in entries if entry.job.is_done}
        self._waiting = [entry for entry in entries if entry.job.name not in self._done]
        if self._done and self._waiting:
            self._console.print(f"{len(self._done)} of {len(entries)} runs are done already")
        try:
            while self._waiting or self._running:
                self._fill()
                if not self._running:
                    time.sleep(POLL_SECONDS if self._waiting else 0)
                    continue
                ended, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    self._settle(future, self._running.pop(future))
        except KeyboardInterrupt:
            self._launch.stop()
            self._console.print("The runs write their checkpoints; once more to stop at once.")
            self._wait_for_end()
            raise
        except BaseException:
            self._launch.stop()
            self._wait_for_end()
            raise
        return self._done

    def _wait_for_end(self) -> None:
        try:
            wait(self._running)
        except KeyboardInterrupt:
            self._launch.stop()

    def _fill(self) -> None:
        """Starts what may start, in order."""
        for entry in list(self._waiting):
            if len(self._running) >= self._most:
                return
            job, now = entry.job, time.monotonic()
            if job.is_done or now > self._deadline:
                self._end(entry)
            elif problem := self._prepare(entry):
                self._console.print(f"{job.name} is not started: {problem}", markup=False)
                self._end(entry)
            elif now >= entry.not_before and self._has_what_it_needs(entry):
                self._waiting.remove(entry)
                self._start(entry)

    def _end(self, entry: _Entry) -> None:
        """Takes a run that is not started from the queue."""
        self._waiting.remove(entry)
        self._done[entry.job.name] = entry.job.is_done

    def _prepare(self, entry: _Entry) -> str:
        """Has a run that matches another write its options once that is done. Returns why it can
        never be started; "" where it can."""
        matches = entry.matches
        if not matches or not entry.prepare:
            return ""
        if matches.is_done:
            try:
                entry.sft, entry.prepare = entry.prepare(), None
            except SweepError as error:
                return str(error)
            return ""
        coming = [other.job.name for other in (*self._waiting, *self._running.values())]
        ended = self._end_times.get(matches.name, -float("inf"))
        if matches.name in coming or time.monotonic() < ended + SHOWS_SECONDS:
            return ""
        return f"{matches.name}, which it matches, is not done"

    def _has_what_it_needs(self, entry: _Entry) -> bool:
        return not entry.prepare and not self._is_being_made(entry)

    def _is_being_made(self, entry: _Entry) -> bool:
        """Whether a run is making the SFT that this one needs."""
        if not entry.sft or Path(entry.job.directory).is_dir():
            return False
        return any(e.sft == entry.sft and e.lacks_sft for e in self._running.values())

    def _start(self, entry: _Entry) -> None:
        _failure(entry.job).unlink(missing_ok=True)
        if not entry.attempts:
            self._console.print(f"{entry.job.name} …", markup=False)
        self._running[self._launch.start(entry.job)] = entry

    def _settle(self, future: Future[Outcome], entry: _Entry) -> None:
        """Says what became of a run, and puts one aside that has to be started again."""
        job = entry.job
        try:
            outcome = future.result()
        except self._launch.broken as error:
            raise SweepError(f"{job.name} could not be done: {error}") from error
        except self._launch.lost as error:
            entry.losses += 1
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if entry.losses <= MOST_LOSSES:
                self._console.print(f"{job.name}: its machine was lost ({reason})", markup=False)
                self._waiting.insert(0, entry)
                return
            outcome = Outcome("failed", message=f"its machine was lost {entry.losses} times")
        if outcome.kind == "unshared":
            raise Unshared(
                f"{outcome.host} does not see {job.output} as this machine does: `output` must be "
                "on a file system that all machines share, under the same path"
            )
        if outcome.kind == "busy":
            if not entry.attempts:
                self._console.print(f"{job.name} is under way elsewhere", markup=False)
            pause = min(_LONGEST_PAUSE, job.lost_after * 2**entry.attempts)
            entry.attempts, entry.not_before = entry.attempts + 1, time.monotonic() + pause
            self._waiting.insert(0, entry)
            return
        self._done[job.name] = job.is_done if outcome.kind == "stopped" else outcome.kind == "done"
        if outcome.kind == "done":
            self._end_times[job.name] = time.monotonic()
        self._say(job, outcome)

    def _say(self, job: Job, outcome: Outcome) -> None:
        on = f" on {outcome.host}" if self._names_hosts and outcome.host else ""
        if outcome.kind == "done":
            text = f"{job.name}: {outcome.minutes:.1f} min{on} ({self._progress()})"
            self._console.print(text, markup=False)
        elif outcome.kind == "failed":
            write_text(_failure(job), outcome.message)
            after = f"{on} after {outcome.minutes:.1f} min ({job.log})"
            self._console.print(f"{job.name} failed{after}: {outcome.message}", markup=False)

    def _progress(self) -> str:
        """How many runs are done, and how long the others take if they go on at the same rate."""
        rest = len(self._waiting) + len(self._running)
        text = f"{sum(self._done.values())} of {len(self._done) + rest}"
        if not rest:
            return text
        now = time.monotonic()
        left = rest * (now - self._start_time) / len(self._end_times)
        minutes = min(left, max(0.0, self._deadline - now)) / 60
        about = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
        return f"{text}, about {about} left"


def _failure(job: Job) -> Path:
    return job.log.with_name(job.name + FAILED)


def run_all(sweep: Sweep, console: Console) -> list[str]:
    """Executes all runs; returns the names of those that failed or were not started."""
    deadline = time.monotonic() + sweep.hours * 3600 if sweep.hours else float("inf")
    if sweep.launch != "local":
        sweep = replace(sweep, output=str(Path(sweep.output).absolute()))
    todo, output = all_runs(sweep), Path(sweep.output)
    # errors in any of them are reported before the first one starts
    configs = {run.name: checked(run, output) for run in todo}
    with launcher(sweep) as launch, _token(output) as token:
        if launch.where:
            console.print(f"The runs are {launch.where}.", markup=False)
        jobs = {run.digest: job_of(run, configs[run.name], sweep, token) for run in todo}
        entries = [_entry(run, configs[run.name], jobs, sweep) for run in todo]
        results = Queue(sweep, launch, console, deadline).run(entries)
    return [run.name for run in todo if not results[run.name]]


def _entry(run: SweepRun, config: Config, jobs: Mapping[str, Job], sweep: Sweep) -> _Entry:
    """A run in the queue; `jobs` are those of all runs by their digest."""

    def shared(config: Config) -> str:
        return sft_of(config) if sweep.share_sft else ""

    def prepare() -> str:
        return shared(with_matched_tokens(run, config, Path(sweep.output)))

    if run.matches:
        return _Entry(jobs[run.digest], "", jobs[run.matches.digest], prepare)
    return _Entry(jobs[run.digest], shared(config))


@contextmanager
def _token(output: Path) -> Iterator[str]:
    """A file by whose name machines know the directory, while the body runs."""
    file = output / LAUNCHES / uuid4().hex
    write_text(file, "")
    try:
        yield file.name
    finally:
        file.unlink(missing_ok=True)


def job_of(run: SweepRun, config: Config, sweep: Sweep, token: str) -> Job:
    """A run as a job; for `token` see there."""
    output = Path(sweep.output)
    return Job(
        name=run.name,
        directory=config.output,
        config=str(config_file(run, output)),
        output=sweep.output,
        folder=str(Path.cwd()),
        token=token,
        share_sft=sweep.share_sft,
        threads=sweep.threads,
        lost_after=sweep.lost_after,
    )
