"""The runs of a sweep, each in a process and a directory of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console

from stepagent import command_line
from stepagent.files import parse_json, read_object, write_text
from stepagent.training.config import Config
from stepagent.training.runs.directory import ORIGIN
from stepagent.training.runs.options import differing
from stepagent.training.sweep.planning import Sweep, SweepError, SweepRun, all_runs, merged
from stepagent.training.sweep.results import FAILED


def configuration(run: SweepRun, output: Path) -> Config:
    """The run's configuration, checked as the command line is: exits with code 2 where wrong.

    Not thread-safe: jsonargparse changes into the file's directory while it reads it.
    """
    path = config_file(run, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**run.options, "output": str(run.directory(output))}
    if run.matches:
        options = merged(options, {"sft": {"tokens": matched_tokens(run, output)}})
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return command_line.parse(Config, ["--config", str(path)], prog="stepagent sweep")


def matched_tokens(run: SweepRun, output: Path) -> int:
    """The tokens that the run it matches was trained on; 1 as long as that is not done.

    Raises SweepError where it recorded none.
    """
    assert run.matches
    path = run.matches.directory(output) / "summary.json"
    if not path.is_file():
        return 1
    budget = parse_json(path.read_text()).get("budget")
    if not budget:
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


_SFT_OPTIONS = {"env", "env_args", "seed", "prompt", "policy", "expert", "sft", "evaluation"}
"""Options that SFT depends on."""


def inherit_sft(config: Config, output: Path) -> None:
    """Starts a run from the SFT of another one in this sweep with the same options, if any.

    Copied are the expert's trajectories, the base of a model from scratch, the policy after SFT and
    its scores: bit for bit what the run itself would have produced.
    """
    target = Path(config.output)
    if target.exists() or not config.sft.epochs:
        return
    options = command_line.dump(config)
    for path in sorted((output / "runs").glob("*/stages.json")):
        source = path.parent
        if source.suffix == ".partial" or not (source / "config.yaml").is_file():
            continue  # a run that is still being set up
        changes = differing((source / "config.yaml").read_text(), options)
        if {key.split(".")[0] for key in changes} & _SFT_OPTIONS:
            continue
        if not (source / "policies/sft").is_dir():
            continue
        state = read_object(path)
        if "sft" not in state.get("done", ()):
            continue
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("expert", "expert-dev", "base", "policies/sft", "eval/sft"):
            if (source / name).is_dir():
                shutil.copytree(source / name, partial / name)
        if (source / ORIGIN).is_file():
            shutil.copy(source / ORIGIN, partial / ORIGIN)
        (partial / "config.yaml").write_text(options)
        after_sft = {"done": ["sft"], "seconds": 0.0} | {
            key: {"sft": state[key]["sft"]}
            for key in ("figures", "budget")
            if "sft" in state.get(key, {})
        }
        (partial / "stages.json").write_text(json.dumps(after_sft))
        os.rename(partial, target)
        return


class RunningProcesses:
    """The processes of a sweep's runs, all ended by `stop`."""

    def __init__(self) -> None:
        self.stopped, self._lock = False, threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()

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
        """Ends all, each with a checkpoint to resume from, or the second time at once; none starts
        any more."""
        with self._lock:
            self.stopped = True
            for process in self._processes:
                process.terminate()


def execute(
    run: SweepRun, config: Config, sweep: Sweep, console: Console, running: RunningProcesses
) -> bool:
    """One run in a process of its own; True where it is done afterwards."""
    output = Path(sweep.output)
    summary = Path(config.output) / "summary.json"
    if summary.is_file():
        return True
    if running.stopped:
        return False
    if sweep.share_sft:
        inherit_sft(config, output)
    started = time.monotonic()
    console.print(f"{run.name} …", markup=False)
    environment = dict(os.environ)
    if sweep.threads:
        environment["OMP_NUM_THREADS"] = str(sweep.threads)
    log = output / "logs" / f"{run.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    failed = log.with_name(run.name + FAILED)
    failed.unlink(missing_ok=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "stepagent.training.run",
                "--config",
                str(config_file(run, output)),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        with running.track(process):
            code = process.wait()
    minutes = (time.monotonic() - started) / 60
    if running.stopped:
        return summary.is_file()
    if code:
        last = (log.read_text().strip().splitlines() or ["no output"])[-1]
        write_text(failed, last)
        console.print(f"{run.name} failed after {minutes:.1f} min ({log}): {last}", markup=False)
    else:
        console.print(f"{run.name}: {minutes:.1f} min", markup=False)
    return code == 0


def run_all(sweep: Sweep, console: Console) -> list[str]:
    """Executes all runs; returns the names of those that failed or were not started."""
    todo, deadline = all_runs(sweep), time.monotonic() + sweep.hours * 3600
    output = Path(sweep.output)
    running = RunningProcesses()
    # errors in any of them are reported before the first one starts
    configs = {run.name: checked(run, output) for run in todo}

    def one(run: SweepRun) -> bool:
        if sweep.hours and time.monotonic() > deadline:
            return Path(configs[run.name].output, "summary.json").is_file()
        return execute(run, configs[run.name], sweep, console, running)

    results: dict[str, bool] = {}
    for _, of_phase in itertools.groupby(todo, key=lambda run: run.phase):
        batch = []
        for run in of_phase:
            if run.matches and not (run.matches.directory(output) / "summary.json").is_file():
                console.print(f"{run.name} waits for {run.matches.name}", markup=False)
                results[run.name] = False
                continue
            if run.matches:
                configs[run.name] = checked(run, output)  # now it is known how many tokens
            batch.append(run)
        with ThreadPoolExecutor(sweep.workers) as pool:
            try:
                results.update(zip([r.name for r in batch], pool.map(one, batch), strict=True))
            except KeyboardInterrupt:
                running.stop()
                console.print("The runs write their checkpoints; once more to stop at once.")
                try:
                    pool.shutdown()
                except KeyboardInterrupt:
                    running.stop()
                raise
    return [name for name, done in results.items() if not done]
