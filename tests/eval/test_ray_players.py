"""Episodes spread over workers: who plays what, and what becomes of workers that die or refuse.

First with a stand-in for Ray whose workers live in this process and die when they are told to, then
(slow) with Ray itself, on a cluster of two nodes in this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from stepagent import agents, ray_cluster, register
from stepagent.errors import SetupError, UserError
from stepagent.eval.evaluate import EvaluationOptions, evaluate, evaluate_by
from stepagent.eval.ray_players import EpisodeWorker, RayPlayers, RefusedError
from stepagent.eval.run import main
from tests.eval.example_results import read_results, read_summary
from tests.ray_nodes import two_nodes
from tests.toy_env import ID, ScriptedAgent, ToyEnv

ROOT = Path(__file__).parents[2]
NEEDS_DATA = "tests.eval.test_ray_players:Test/NeedsData-v0"


class NeedsData(ToyEnv):
    """Has its data on some machines only."""

    def __init__(self, **kwargs):
        if os.environ.get("TOY_DATA") == "missing":
            raise FileNotFoundError("/data/toy.json does not exist")
        super().__init__(**kwargs)

    def fingerprint(self):
        return {**super().fingerprint(), "toy": os.environ.get("TOY_DATA", "1")}


register("Test/NeedsData-v0", NeedsData)


# A stand-in for Ray -----------------------------------------------------------------------------


class Gone(Exception):
    """Stands for all of Ray's errors that mean that a process is gone."""


class Reference:
    """A call to a worker: what it returned, or the next of what it yields."""

    def __init__(self, actor, value):
        self.actor, self.value = actor, value

    def __next__(self):
        if self.actor.is_dead or self.actor.dies_now():
            return Reference(self.actor, None)
        return Reference(self.actor, next(self.value))


class Method:
    def __init__(self, actor, name):
        self.actor, self.name = actor, name

    def options(self, **_):
        return self

    def remote(self, *arguments):
        ray = self.actor.ray
        if self.name == "give" and ray.gives_arrive is False:
            return None
        return Reference(self.actor, getattr(self.actor.worker, self.name)(*arguments))


class Actor:
    def __init__(self, ray, arguments):
        self.ray, self.worker = ray, EpisodeWorker(*arguments)
        self.number, self.is_dead, self.yielded = len(ray.actors), False, 0

    def dies_now(self):
        self.yielded += 1
        self.is_dead = self.yielded > self.ray.lives.get(self.number, 10**9)
        return self.is_dead

    def __getattr__(self, name):
        return Method(self, name)


class StandIn:
    """`lives`: worker number → trajectories that it brings before it dies."""

    exceptions = SimpleNamespace(
        RayActorError=Gone,
        NodeDiedError=Gone,
        ObjectLostError=Gone,
        OutOfMemoryError=Gone,
        WorkerCrashedError=Gone,
    )

    def __init__(self, lives=None, gives_arrive=True):
        self.lives, self.gives_arrive = lives or {}, gives_arrive
        self.actors = []

    def remote(self, kind):
        assert kind is EpisodeWorker
        return self

    def options(self, **_):
        return SimpleNamespace(remote=self._make)

    def _make(self, *arguments):
        self.actors.append(Actor(self, arguments))
        return self.actors[-1]

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 1.0}} for _ in range(2)]

    def wait(self, references, num_returns=1, timeout=None, fetch_local=True):
        assert references
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        if reference.actor.is_dead:
            raise Gone("The actor died unexpectedly")
        return reference.value

    def kill(self, actor):
        actor.is_dead = True


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(agents, "make_agent", lambda spec, **options: ScriptedAgent())


def spread(ray, out, options=None, env=ID):
    """The evaluation by two workers; its summary and what was said."""
    console = Console(record=True, width=300, file=open("/dev/null", "w"))
    players = RayPlayers(ray, "scripted", {}, {"num_cpus": 1}, None)
    try:
        player = players.player(env, options or EvaluationOptions(), console)
        return evaluate_by(player, out, console), console.export_text()
    finally:
        players.close()


def test_results_are_those_of_one_process(scripted, complete_run, tmp_path):
    ray = StandIn()
    summary, _ = spread(ray, tmp_path)
    assert len(ray.actors) == 2
    assert read_results(tmp_path) == read_results(complete_run[0])
    assert read_summary(tmp_path) == read_summary(complete_run[0])
    assert summary["complete"] is True
    lines = (tmp_path / "results.jsonl").read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 20, "each task once"


def test_what_a_dead_worker_had_is_played_by_others(scripted, complete_run, tmp_path):
    ray = StandIn(lives={0: 3, 1: 5, 2: 0})
    summary, said = spread(ray, tmp_path)
    assert len(ray.actors) == 5
    assert said.count("was lost (The actor died unexpectedly)") == 3
    assert summary["complete"] is True
    assert read_results(tmp_path) == read_results(complete_run[0])
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 20


def test_tasks_that_reach_a_worker_too_late_are_played(scripted, complete_run, tmp_path):
    spread(StandIn(gives_arrive=False), tmp_path)
    assert read_results(tmp_path) == read_results(complete_run[0])
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 20


def test_a_task_that_kills_every_worker_fails_and_the_others_do_not(scripted, tmp_path):
    class Deadly(StandIn):
        """Workers die of one task."""

        def get(self, reference):
            if not isinstance(reference.value, tuple) or not hasattr(reference.value[0], "task_id"):
                return super().get(reference)
            if reference.value[0].task_id == "odd/11":
                reference.actor.is_dead = True
            return super().get(reference)

    options = EvaluationOptions(workers=1)
    summary, _ = spread(Deadly(), tmp_path, options)
    failed = {t.task_id: t.error for t in read_results(tmp_path).values() if t.error}
    assert "odd/11" in failed
    assert set(failed.values()) == {"3 workers were lost while they had this task"}
    assert summary["episodes"] == 20
    assert len(failed) <= 2, "what waited at a worker with it may have been there as often"


def test_it_resumes(scripted, complete_run, tmp_path):
    lines = (complete_run[0] / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:50])
    spread(StandIn(), tmp_path)
    assert read_results(tmp_path) == read_results(complete_run[0])


def test_no_worker_without_the_data(scripted, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_DATA", "missing")
    with pytest.raises(RefusedError, match=r": /data/toy.json does not exist") as error:
        spread(StandIn(), tmp_path, env=NEEDS_DATA)
    assert isinstance(error.value, SetupError)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    "error",
    [
        UserError("the disk is full"),
        SetupError("no such thing"),
        FileNotFoundError(2, "No such file", "x"),
        PermissionError(13, "Permission denied", "x"),
        ValueError("wrong"),
        TypeError("wrong"),
        ImportError("no such module"),
    ],
)
def test_a_refusal_ends_the_command_as_an_error_here_would(error, tmp_path, monkeypatch, capsys):
    def fail(spec, **options):
        raise error

    monkeypatch.setattr(agents, "make_agent", fail)
    monkeypatch.setattr(ray_cluster, "connected", lambda address: nullcontext(StandIn()))
    arguments = ["--env", ID, "--agent", "scripted", "--out", str(tmp_path)]
    here = main(arguments)
    assert str(error) in capsys.readouterr().err
    assert main([*arguments, "--launch", "ray"]) == here
    assert f": {error}\n" in capsys.readouterr().err


def test_a_fault_of_the_program_is_named_by_a_worker(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agents, "make_agent", lambda spec, **options: {}["x"])
    with pytest.raises(RefusedError, match="KeyError: 'x'") as refused:
        spread(StandIn(), tmp_path)
    assert refused.value.exit_code == 1


@pytest.mark.parametrize("data", ["missing", "2"])
def test_a_worker_with_other_data_stays_out(data, scripted, tmp_path, monkeypatch):
    class OneIsDifferent(StandIn):
        def _make(self, *arguments):
            actor = super()._make(*arguments)
            prepare = actor.worker.prepare

            def prepare_there(*where):
                with monkeypatch.context() as there:
                    if actor.number == 1:
                        there.setenv("TOY_DATA", data)
                    return prepare(*where)

            actor.worker.prepare = prepare_there
            return actor

    summary, said = spread(OneIsDifferent(), tmp_path, env=NEEDS_DATA)
    assert summary["complete"] is True
    reason = "/data/toy.json does not exist" if data == "missing" else "toy 1 → 2"
    assert reason in said


def test_workers_that_die_while_they_load_end_it(scripted, tmp_path):
    class Failing(StandIn):
        def get(self, reference):
            raise Gone("The actor died because of an error in its creation task\nNo module named x")

    with pytest.raises(
        RefusedError, match="3 workers were lost while they got ready, the last: No"
    ):
        spread(Failing(), tmp_path)


def test_a_person_plays_here(tmp_path, capsys):
    code = main(["--env", ID, "--agent", "human", "--launch", "ray", "--out", str(tmp_path)])
    assert code == 2
    assert "ray" in capsys.readouterr().err


# Ray itself -------------------------------------------------------------------------------------


def episode_workers(nodes):
    return [
        process
        for node in nodes.processes()
        for process in node.children(recursive=True)
        if "EpisodeWorker" in " ".join(process.cmdline())
    ]


@pytest.mark.slow
def test_two_nodes_play_and_a_killed_worker_loses_nothing(tmp_path):
    arguments = ["--env", ID, "--agent", "random", "--env-args.delay", "0.05"]
    assert main([*arguments, "--out", str(tmp_path / "local")]) == 0
    with two_nodes() as nodes:
        command = [sys.executable, "-m", "stepagent", "eval", *arguments, "--launch", "ray"]
        command += [
            "--ray-address",
            nodes.address,
            "--workers",
            "2",
            "--out",
            str(tmp_path / "ray"),
        ]
        results = tmp_path / "ray" / "results.jsonl"
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while not results.is_file() or results.read_bytes().count(b"\n") < 3:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            workers = episode_workers(nodes)
            assert len({worker.ppid() for worker in workers}) == 2, "one on each node"
            os.kill(workers[0].pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
        assert "was lost" in errors
        assert read_results(tmp_path / "ray") == read_results(tmp_path / "local")
        assert len(results.read_bytes().splitlines()) == 20


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_continues(tmp_path):
    arguments = ["--env", ID, "--agent", "random", "--env-args.delay", "0.1"]
    with two_nodes() as nodes:
        command = [sys.executable, "-m", "stepagent", "eval", *arguments, "--launch", "ray"]
        command += ["--ray-address", nodes.address, "--out", str(tmp_path / "ray")]
        results = tmp_path / "ray" / "results.jsonl"
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while not results.is_file() or results.read_bytes().count(b"\n") < 3:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=400)
        assert process.returncode == 130, errors
        assert "the same command continues" in errors
        _, alive = psutil.wait_procs(episode_workers(nodes), timeout=60)
        assert not alive
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    evaluate(ID, agents.make_agent("random"), tmp_path / "local", _options(delay=0.1))
    assert read_results(tmp_path / "ray") == read_results(tmp_path / "local")


@pytest.mark.slow
def test_a_node_without_the_data_is_named_and_left_out(tmp_path, capsys):
    with two_nodes(second={"TOY_DATA": "missing"}) as nodes:
        arguments = ["--env", NEEDS_DATA, "--agent", "random", "--launch", "ray"]
        arguments += ["--ray-address", nodes.address, "--out", str(tmp_path)]
        assert main(arguments) == 0
    assert "/data/toy.json does not exist" in " ".join(capsys.readouterr().err.split())
    assert read_summary(tmp_path)["complete"] is True


def _options(**env_args):
    return replace(EvaluationOptions(), env_args=env_args)
