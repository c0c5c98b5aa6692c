"""Tables of experiments: `stepagent sweep --config reproduction`.

A sweep is one YAML file: named parts of training configurations (methods, environments, models) and
experiments that combine them with seeds and varied options. Every combination is a run of
`training.run` in a directory of its own, named by what it is; one that two experiments share is
made once. The same command again goes on: runs that are done are skipped, those begun continue. SFT
is trained once for all methods that start from the same one. It ends in `report.md` with tables
like the paper's table 2 and 3 and plots like its figure 4, the paper's own figures beside ours, and
`results.json` with all numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from stepagent import command_line
from stepagent.command_line import Command
from stepagent.envs.core import checksum
from stepagent.errors import UserError
from stepagent.training.config import Config


@dataclass
class Experiment:
    """One table or plot: all combinations of its lists."""

    name: str
    """Such as table2; names its section of the report."""
    methods: list[str]
    """Names under `methods` (or of methods as they are)."""
    environments: list[str]
    """Names under `environments`."""
    models: list[str]
    """Names under `models`."""
    kind: str = "methods"
    """How it is reported: `methods` (as table 2), `rewards` (table 3), `iterations` or `practice`
    (figure 4)."""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Option of training.run → its values, such as reflection.practice: [1, 2, 3, 4, 5]."""
    seeds: list[int] = field(default_factory=list)
    """Instead of the sweep's own."""


@dataclass
class Sweep:
    """Runs a table of experiments one after another or in parallel, and reports them."""

    output: str
    """Directory of all runs and the report."""
    experiments: list[dict[str, Any]]
    """Each a mapping: name, methods, environments, models, and at will kind, vary, seeds."""
    common: dict[str, Any] = field(default_factory=dict)
    """Options of training.run that all runs share."""
    methods: dict[str, Any] = field(default_factory=dict)
    """Name → its options; `method` among them where the name is not the method's."""
    environments: dict[str, Any] = field(default_factory=dict)
    """Name → env, env_args and what else goes with it."""
    models: dict[str, Any] = field(default_factory=dict)
    """Name → policy and what else goes with it."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of every combination."""
    workers: int = 1
    """Runs at a time. Each takes the processor's cores it finds."""
    threads: int = 0
    """Threads a run may use (OMP_NUM_THREADS); 0: as many as it likes."""
    share_sft: bool = True
    """Train SFT once for all methods that start from the same one."""
    hours: float = 0.0
    """Start no new run after so many hours (the same command goes on later); 0: no limit."""
    report_only: bool = False
    """Train nothing; report what there is."""


@dataclass(frozen=True)
class Run:
    """One combination of an experiment."""

    method: str
    environment: str
    model: str
    seed: int
    varied: tuple[tuple[str, Any], ...]
    options: dict[str, Any] = field(compare=False)
    """Of training.run, without `output`"""

    @property
    def digest(self) -> str:
        """Of its options; what stands at its default counts as not written."""
        from stepagent.training import rundir  # which loads torch

        return checksum(json.dumps(rundir.without_defaults(self.options), sort_keys=True))[:8]

    @property
    def name(self) -> str:
        """Readable, and different where any option differs."""
        told = "".join(f"-{key.rsplit('.', 1)[-1]}={value}" for key, value in self.varied)
        return f"{self.environment}-{self.model}-{self.method}{told}-seed{self.seed}-{self.digest}"

    def directory(self, output: Path) -> Path:
        """Where it is made: where an equal one of another table or name was, if there is one."""
        found = (p for p in (output / "runs").glob(f"*-{self.digest}") if p.is_dir())
        return next(found, output / "runs" / self.name)


class SweepError(UserError, ValueError):
    """A sweep that makes no sense; the message names what is wrong and what there is."""


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Mappings laid over one another, deeply; later ones win.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else copy.deepcopy(value)
    return found


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and 1 as {'a': {'b': 1}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def experiments(sweep: Sweep) -> list[Experiment]:
    """Raises SweepError for a key that does not exist or one that is missing."""
    known = [f.name for f in dataclasses.fields(Experiment)]
    found = []
    for row in sweep.experiments:
        for key in row:
            if key not in known:
                raise SweepError(
                    f"experiment {row.get('name')!r}: {command_line.unknown_key(key, known)}"
                )
        try:
            found.append(Experiment(**row))
        except TypeError as error:
            raise SweepError(f"experiment {row.get('name')!r}: {error}") from None
        if found[-1].kind not in KINDS:
            raise SweepError(
                f"experiment {found[-1].name!r}: kind is {found[-1].kind!r}, which must be one of "
                f"{', '.join(KINDS)}"
            )
    return found


KINDS = ("methods", "rewards", "iterations", "practice")


def runs(sweep: Sweep, experiment: Experiment) -> Iterator[Run]:
    """All combinations of an experiment. Raises SweepError for unknown names."""
    from stepagent.training.run import METHODS

    varied = [[(key, value) for value in values] for key, values in experiment.vary.items()]
    for environment, model, seed, method, options in itertools.product(
        experiment.environments,
        experiment.models,
        experiment.seeds or sweep.seeds,
        experiment.methods,
        itertools.product(*varied),
    ):
        own = sweep.methods.get(method, {})
        if "method" not in own and method not in METHODS:
            raise SweepError(
                f"no method {method!r}: choose {', '.join([*sweep.methods, *METHODS])}"
            )
        parts = [sweep.common]
        for kind, name in (("environments", environment), ("models", model)):
            there = getattr(sweep, kind)
            if name not in there:
                raise SweepError(f"no {name!r} under {kind}: there are {', '.join(there)}")
            parts.append(there[name])
        chosen = [nested(key, value) for key, value in options]
        whole = merged({"method": method}, *parts, own, *chosen, {"seed": seed})
        yield Run(method, environment, model, seed, tuple(options), whole)


def all_runs(sweep: Sweep) -> list[Run]:
    """Every run once, SFT before the methods that start from it."""
    found: dict[str, Run] = {}
    for experiment in experiments(sweep):
        for run in runs(sweep, experiment):
            found.setdefault(run.digest, run)
    return sorted(found.values(), key=lambda run: run.options["method"] != "sft")


# Running ------------------------------------------------------------------------------------------


def configuration(run: Run, output: Path) -> Config:
    """The run's configuration, checked as the command line is: exits with code 2 where wrong.

    Not for two threads at once: jsonargparse is in the file's directory while it reads it.
    """
    path = _file(run, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**run.options, "output": str(run.directory(output))}
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return command_line.parse(Config, ["--config", str(path)], prog="stepagent sweep")


def _file(run: Run, output: Path) -> Path:
    return output / "configs" / f"{run.name}.yaml"


def checked(run: Run, output: Path) -> Config:
    """The run's configuration. Raises SweepError where its options cannot work."""
    from stepagent.training.run import check

    config = configuration(run, output)
    try:
        check(config)
    except ValueError as error:
        raise SweepError(f"{run.name}: {error}") from None
    return config


_BEFORE = {"env", "env_args", "seed", "prompt", "policy", "expert", "sft", "evaluation"}
"""Options that SFT depends on."""


def inherit_sft(config: Config, output: Path) -> None:
    """Starts a run from the SFT of another one in this sweep with the same options, if any.

    Copied are the expert's trajectories, the base of a model from scratch, the policy after SFT and
    its scores: all that the run itself would have made, bit for bit.
    """
    target = Path(config.output)
    if target.exists() or not config.sft.epochs:
        return
    from stepagent.training import rundir

    wanted = command_line.dump(config)
    for path in sorted((output / "runs").glob("*/stages.json")):
        source = path.parent
        if source.suffix == ".partial" or not (source / "config.yaml").is_file():
            continue  # another run's, that is only just being set up
        differing = rundir.differing((source / "config.yaml").read_text(), wanted)
        if {key.split(".")[0] for key in differing} & _BEFORE:
            continue
        if not (source / "policies/sft").is_dir():
            continue
        state = json.loads(path.read_text())
        if "sft" not in state["done"]:
            continue
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("expert", "base", "policies/sft", "eval/sft"):
            if (source / name).is_dir():
                shutil.copytree(source / name, partial / name)
        figures = {"sft": state["figures"].get("sft", {})}
        begun = {"done": ["sft"], "figures": figures, "seconds": 0.0}
        (partial / "stages.json").write_text(json.dumps(begun))
        os.rename(partial, target)
        return


class Running:
    """The processes of a sweep's runs, which end with it."""

    def __init__(self) -> None:
        self.stopped, self._lock = False, threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

    @contextmanager
    def of(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """While the process runs; one that begins when all are to stop is stopped at once."""
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
        """Ends all, which go on from their checkpoints another time; none begins any more."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()


def execute(run: Run, config: Config, sweep: Sweep, console: Console, running: Running) -> bool:
    """One run in a process of its own; True where its summary is there afterwards."""
    output = Path(sweep.output)
    summary = Path(config.output) / "summary.json"
    if summary.is_file():
        return True
    if running.stopped:
        return False
    if sweep.share_sft:
        inherit_sft(config, output)
    begun = time.monotonic()
    console.print(f"{run.name} …", markup=False)
    environment = dict(os.environ)
    if sweep.threads:
        environment["OMP_NUM_THREADS"] = str(sweep.threads)
    log = output / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "stepagent.training.run", "--config", str(_file(run, output))],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        with running.of(process):
            code = process.wait()
    minutes = (time.monotonic() - begun) / 60
    if running.stopped:
        return summary.is_file()
    if code:
        last = (log.read_text().strip().splitlines() or ["nothing was said"])[-1]
        console.print(f"{run.name} failed after {minutes:.1f} min ({log}): {last}", markup=False)
    else:
        console.print(f"{run.name}: {minutes:.1f} min", markup=False)
    return code == 0


def run_all(sweep: Sweep, console: Console) -> list[str]:
    """Makes all runs; returns the names of those that failed or were not begun."""
    todo, deadline = all_runs(sweep), time.monotonic() + sweep.hours * 3600
    running = Running()
    # what is wrong in any of them is said before the first
    configs = {run.name: checked(run, Path(sweep.output)) for run in todo}

    def one(run: Run) -> bool:
        if sweep.hours and time.monotonic() > deadline:
            return Path(configs[run.name].output, "summary.json").is_file()
        return execute(run, configs[run.name], sweep, console, running)

    first = [run for run in todo if run.options["method"] == "sft"]
    results: dict[str, bool] = {}
    for batch in (first, [run for run in todo if run.options["method"] != "sft"]):
        with ThreadPoolExecutor(sweep.workers) as pool:
            try:
                results.update(zip([r.name for r in batch], pool.map(one, batch), strict=True))
            except KeyboardInterrupt:
                running.stop()
                raise
    return [name for name, done in results.items() if not done]


def _sweep(sweep: Sweep) -> int:
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's kill, as a Ctrl-C
    from stepagent.training import report

    try:
        Path(sweep.output).mkdir(parents=True, exist_ok=True)
        missing = [] if sweep.report_only else run_all(sweep, console)
        path = report.write(sweep)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    console.print(f"The report is {path}", markup=False)
    if missing:
        console.print(f"{len(missing)} runs are missing: {', '.join(missing)}", markup=False)
    return 1 if missing else 0


main = Command("sweep", Sweep, _sweep, resumes=True, configs="stepagent.training")


if __name__ == "__main__":
    sys.exit(main())
