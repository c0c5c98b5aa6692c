"""Sweeps through submitit and Ray.

Slurm's commands are stand-ins that run jobs on this machine; submitit's local executor and Ray (two
nodes in this machine) are real. What trains is slow.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import yaml
from rich.console import Console

from stepagent.training.sweep import execution
from stepagent.training.sweep.execution import Queue, Unshared, _Entry
from stepagent.training.sweep.job import Job, perform
from stepagent.training.sweep.launchers import SubmititLauncher, launcher
from stepagent.training.sweep.planning import Sweep, SweepError
from tests.ray_nodes import two_nodes
from tests.training.sweep.test_sweep import _read, _sweep

ROOT = Path(__file__).parents[3]
SBATCH = """
import os, subprocess, sys
from pathlib import Path
state = Path(os.environ["FAKE_SLURM"])
number = str(100 + len(list(state.glob("*.sh"))))
batch = state / f"{number}.sh"
batch.write_text(Path(sys.argv[1]).read_text())
process = subprocess.Popen(
    ["bash", str(batch)],
    start_new_session=True,
    env={**os.environ, "SLURM_JOB_ID": number},
    stdout=(state / f"{number}.log").open("w"),
    stderr=subprocess.STDOUT,
)
(state / f"{number}.pid").write_text(str(process.pid))
print(f"Submitted batch job {number}")
"""
SRUN = """
import os, sys
command = sys.argv[sys.argv.index(sys.executable) :]
os.execv(command[0], command)
"""
SACCT = """
import os
from pathlib import Path
print("JobID|State|NodeList")
for file in Path(os.environ["FAKE_SLURM"]).glob("*.pid"):
    stat = Path("/proc", file.read_text(), "stat")
    alive = stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    print(f"{file.stem}|{'RUNNING' if alive else 'NODE_FAIL'}|node1")
"""
SCANCEL = """
import os, signal, sys
from pathlib import Path
pid = (Path(os.environ["FAKE_SLURM"]) / f"{sys.argv[1]}.pid").read_text()
os.killpg(int(pid), signal.SIGTERM)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with the batch files of jobs, and Slurm's commands in the path."""
    pytest.importorskip(
        "submitit", reason="submitit is not installed: pip install 'stepagent[cluster]'"
    )
    commands, state = tmp_path / "commands", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (commands / name).write_text(f"#!{sys.executable}\n{text}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def console():
    return Console(record=True, width=400, file=open("/dev/null", "w"))


def entry(tmp_path):
    """A job that any machine which sees the folder ends at once, since its run is done."""
    directory = tmp_path / "out" / "runs" / "one"
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text("{}")
    job = Job("one", str(directory), "", str(tmp_path / "out"), str(ROOT), "t", False, 0, 5.0)
    return _Entry(job, "")


def test_an_interruption_that_is_no_signal_ends_a_job(tmp_path, monkeypatch):
    """Ray cancels tasks so."""
    job = entry(tmp_path).job
    (tmp_path / "out" / "launches").mkdir()
    (tmp_path / "out" / "launches" / "t").touch()
    trainer = tmp_path / "trainer"
    trainer.write_text("#!/bin/sh\nexec sleep 60\n")
    trainer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(trainer))
    started: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def track(process):
        started.append(process)
        threading.Timer(1.0, _thread.interrupt_main).start()
        yield

    with pytest.raises(KeyboardInterrupt):
        perform(job, track)
    assert [process.returncode for process in started] == [-signal.SIGTERM]


# Slurm ------------------------------------------------------------------------------------------


def test_slurm_gets_the_parameters_and_does_the_job(slurm, tmp_path):
    one = entry(tmp_path)
    (tmp_path / "out" / "launches").mkdir()
    (tmp_path / "out" / "launches" / "t").touch()
    parameters = {"partition": "gpu", "gpus_per_node": 1, "mem_gb": 64, "timeout_min": 600}
    parameters |= {"account": "lab", "additional_parameters": {"reservation": "mine"}}
    launch = SubmititLauncher(tmp_path / "out" / "submitit", parameters)
    assert launch.where == "jobs of Slurm"
    outcome = launch.start(one.job).result(timeout=240)
    assert outcome.kind == "done"
    (batch,) = slurm.glob("*.sh")
    text = batch.read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "mem=64GB", "time=600", "account=lab"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --reservation=mine\n" in text
    assert "#SBATCH --job-name=stepagent\n" in text


def test_a_node_of_slurm_that_does_not_see_the_folder(slurm, tmp_path):
    one = entry(tmp_path)
    (Path(one.job.directory) / "summary.json").unlink()
    launch = SubmititLauncher(tmp_path / "out" / "submitit", {})
    queue = Queue(Sweep("x", launch="submitit"), launch, console(), float("inf"))
    with pytest.raises(Unshared, match=r"does not see .*/out as this machine does"):
        queue.run([one])


def test_slurm_refuses_a_job(slurm, tmp_path):
    (tmp_path / "commands" / "sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    launch = SubmititLauncher(tmp_path / "out" / "submitit", {"partition": "nonsense"})
    with pytest.raises(SweepError, match="one could not be submitted: invalid partition"):
        launch.start(entry(tmp_path).job)


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"partitoin": "gpu"}, "slurm: unknown key 'partitoin'. There are: .*partition"),
        ({"gpus_per_node": "one"}, "slurm: gpus_per_node cannot be 'one': it takes int"),
        ({"nodes": 2}, "slurm: nodes is 2: a run is one process"),
        ({"tasks_per_node": 4}, "slurm: tasks_per_node is 4: a run is one process"),
    ],
)
def test_parameters_that_cannot_work(slurm, message, tmp_path):
    pytest.importorskip(
        "submitit", reason="submitit is not installed: pip install 'stepagent[cluster]'"
    )
    sweep = Sweep(str(tmp_path), launch="submitit", slurm=slurm)
    with pytest.raises(SweepError, match=message), launcher(sweep):
        pass


def test_a_folder_that_submitit_cannot_write(tmp_path):
    pytest.importorskip(
        "submitit", reason="submitit is not installed: pip install 'stepagent[cluster]'"
    )
    (tmp_path / "file").touch()
    sweep = Sweep(str(tmp_path / "file"), launch="submitit")
    refused = pytest.raises(
        SweepError, match=r"submitit cannot write its jobs to .*Not a directory"
    )
    with refused, launcher(sweep):
        pass


# Whole sweeps -----------------------------------------------------------------------------------


def settings(tmp_path, name, **changes):
    """A sweep of four runs, of which those of a seed share their SFT, long enough to be stopped."""
    (tmp_path / name).mkdir()
    path = _sweep(tmp_path / name, **changes)
    options = yaml.safe_load(path.read_text())
    options["common"]["sft"]["epochs"] = 400
    path.write_text(yaml.safe_dump(options))
    return path


def same_policies(one: Path, other: Path) -> bool:
    """Whether the runs of two sweeps ended with the same weights."""
    from safetensors.torch import load_file

    files = sorted(path.relative_to(one) for path in one.glob("sweep/runs/*/final/*.safetensors"))
    assert len(files) == len(list(other.glob("sweep/runs/*/final/*.safetensors"))) > 0
    for file in files:
        first, second = load_file(one / file), load_file(other / file)
        if any((first[key] != second[key]).any() for key in first):
            return False
    return True


def stages(folder: Path) -> dict[str, set[str]]:
    """Method → the stages that its runs trained."""
    trained: dict[str, set[str]] = {}
    for file in folder.glob("sweep/runs/*/metrics.jsonl"):
        method = re.search(r"-(sft|implicit)-", file.parent.name)[1]
        trained.setdefault(method, set()).update(
            re.findall(r'"stage": "([\w-]+)"', file.read_text())
        )
    return trained


def until_training(folder: Path, runs: int, process: subprocess.Popen[str] | None = None) -> None:
    """Waits until so many runs have made some updates."""
    while (
        sum(f.read_text().count("\n") > 5 for f in folder.glob("sweep/runs/*/metrics.jsonl")) < runs
    ):
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def trainers(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "stepagent.training.sweep.node" in (words := process.info["cmdline"] or [])
        and any(str(folder) in word for word in words)
    ]


@pytest.mark.slow
def test_submitit_gives_the_runs_of_one_machine_even_if_one_is_preempted(tmp_path, monkeypatch):
    pytest.importorskip(
        "submitit", reason="submitit is not installed: pip install 'stepagent[cluster]'"
    )
    monkeypatch.setattr("submitit.slurm.slurm.shutil.which", lambda name: None)
    sweep = _read(settings(tmp_path, "local", seeds=[0]))
    assert execution.run_all(sweep, console()) == []
    sweep = replace(_read(settings(tmp_path, "jobs", seeds=[0])), launch="submitit")
    launched: list[SubmititLauncher] = []
    init = SubmititLauncher.__init__

    def remember(self, *arguments):
        init(self, *arguments)
        launched.append(self)

    def preempt():
        until_training(tmp_path / "jobs", 1)
        (process,) = trainers(tmp_path / "jobs")
        psutil.Process(process.ppid()).send_signal(signal.SIGUSR2)

    monkeypatch.setattr(SubmititLauncher, "__init__", remember)
    thread = threading.Thread(target=preempt)
    thread.start()
    said = console()
    assert execution.run_all(sweep, said) == []
    thread.join()
    assert "processes of this machine, which has no Slurm" in said.export_text()
    log = next((tmp_path / "jobs/sweep/logs").glob("*-sft-*.log")).read_text()
    assert "stopping at the end of this update" in log
    assert stages(tmp_path / "jobs") == {"sft": {"sft"}, "implicit": {"iteration-1"}}
    assert same_policies(tmp_path / "local", tmp_path / "jobs")


@pytest.mark.slow
def test_a_run_of_slurm_whose_node_dies_goes_on(slurm, tmp_path):
    """Job and trainer are killed; sacct says NODE_FAIL."""
    pytest.importorskip(
        "submitit", reason="submitit is not installed: pip install 'stepagent[cluster]'"
    )
    from submitit.slurm.slurm import SlurmJob

    SlurmJob.watcher._delay_s = 1
    sweep = _read(settings(tmp_path, "jobs", seeds=[0]))
    sweep = replace(sweep, launch="submitit", lost_after=5.0)
    killed: list[int] = []

    def fail():
        until_training(tmp_path / "jobs", 1)
        running = trainers(tmp_path / "jobs")
        for file in slurm.glob("*.pid"):
            os.killpg(int(file.read_text()), signal.SIGKILL)  # at once: no job reports a dead run
        _, alive = psutil.wait_procs(running, timeout=120)
        killed.append(len(running) - len(alive))

    thread = threading.Thread(target=fail)
    thread.start()
    said = console()
    assert execution.run_all(sweep, said) == []
    thread.join()
    assert killed == [1]
    assert "its machine was lost" in said.export_text()
    assert len(list(slurm.glob("*.sh"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("launch", ["submitit", "ray"])
def test_ctrl_c_cancels_the_jobs_with_checkpoints(launch, tmp_path):
    pytest.importorskip(
        launch, reason=f"{launch} is not installed: pip install 'stepagent[cluster]'"
    )
    path = settings(tmp_path, "jobs")
    options = yaml.safe_load(path.read_text())
    options["common"] |= {"checkpoint_seconds": 3600}
    options["common"]["sft"]["epochs"] = 20_000
    path.write_text(yaml.safe_dump(options))
    arguments = [sys.executable, "-m", "stepagent", "sweep", "--config", str(path)]
    arguments += ["--launch", launch, "--ray-address", "local", "--ray.num-cpus", "0.5"]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until_training(tmp_path / "jobs", 2, process)
        running = trainers(tmp_path / "jobs")
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=400)
        assert process.returncode == 130, said + errors
    assert "The runs write their checkpoints" in said
    _, alive = psutil.wait_procs(running, timeout=120)
    assert not alive
    checkpoints = (tmp_path / "jobs/sweep/runs").glob("*/checkpoints/sft/*/trainer_state.json")
    assert len(list(checkpoints)) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ray_gives_the_runs_of_one_machine_even_if_a_node_dies(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepagent[cluster]'")
    assert execution.run_all(_read(settings(tmp_path, "local")), console()) == []
    path = settings(tmp_path, "ray", launch="ray", lost_after=5.0)
    arguments = [sys.executable, "-m", "stepagent", "sweep", "--config", str(path)]
    with two_nodes() as nodes:
        arguments += ["--ray-address", nodes.address]
        with subprocess.Popen(
            arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            until_training(tmp_path / "ray", 2, process)
            on_second = nodes.processes()[-1].children(recursive=True)
            (dying,) = [one for one in trainers(tmp_path / "ray") if one in on_second]
            task = dying.parent()
            dying.suspend()
            nodes.cluster.remove_node(nodes.second, allow_graceful=False)
            for part in (task, dying):  # in this order: a dead machine does not report a dead run
                with contextlib.suppress(psutil.NoSuchProcess):
                    part.kill()
            said, errors = process.communicate(timeout=550)
            assert process.returncode == 0, said + errors
    assert "its machine was lost" in said
    assert stages(tmp_path / "ray") == {"sft": {"sft"}, "implicit": {"iteration-1"}}
    assert same_policies(tmp_path / "local", tmp_path / "ray")
