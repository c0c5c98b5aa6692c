"""The images and services under a real Docker engine: `make test-slow` where one runs.

The engine is the one that DOCKER_HOST names, or the machine's own. Images are built on the host's
network, so that pip in the build reaches what the host does; with STEPAGENT_IMAGES_BUILT=1 those
that are there are tried as they are. The image for training, of gigabytes, only where
STEPAGENT_TRAINING_IMAGE=1 asks for it (and STEPAGENT_TORCH_INDEX, for PyTorch without CUDA).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from stepagent.agents import make_agent
from stepagent.envs.remote import RemoteEnv, RemoteError
from stepagent.envs.serve import health
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from tests.docker.test_docker import SERVICES, TRAINING, compose_commands, instructions

ROOT = Path(__file__).parents[2]
BASE = instructions("FROM")[0].split()[0]
PORTS = {name: service["ports"][0].split(":")[-2] for name, service in SERVICES.items()}
LIMITS = {"lean": 225, "scienceworld": 350, "webshop": 425}
"""Megabytes that each image adds to its base, which has about 125 itself."""


def _run(*command, **environ):
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _megabytes(image):
    return int(_run("docker", "image", "inspect", "-f", "{{.Size}}", image)) / 1e6


def _has_engine():
    if not shutil.which("docker"):
        return False
    return not subprocess.run(["docker", "version"], capture_output=True, check=False).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (_has_engine() and compose_commands()), reason="no Docker engine with Compose"
    ),
]


def _build(service, *options):
    build = service["build"]
    target = ["--target", build["target"]] if "target" in build else []
    options = ["--network=host", "-f", build["dockerfile"], "-t", service["image"], *options]
    _run("docker", "build", *options, *target, ".", DOCKER_BUILDKIT="0")


@pytest.fixture(scope="module")
def images():
    """Every service's image, built."""
    services = {service["image"]: service for service in SERVICES.values()}
    if not os.environ.get("STEPAGENT_IMAGES_BUILT"):
        for service in services.values():
            _build(service)
    return set(services)


@pytest.fixture(scope="module")
def compose(images):
    """Runs Compose on all services, which are up; none is left afterwards."""

    def run(*words):
        command = [*compose_commands()[0], "-p", "stepagenttest", "-f", "docker/compose.yaml"]
        return _run(*command, *words)

    try:
        run("up", "-d", "--no-build")
        yield run
    finally:
        run("down", "--volumes", "--timeout", "30")
    assert not _run("docker", "ps", "-aq", "--filter", "name=stepagenttest").split()


def _container(name):
    return _run("docker", "ps", "-aq", "--filter", f"name=stepagenttest.{name}").split()[0]


def _wait_until_healthy(name, seconds=180):
    started = time.monotonic()
    while True:
        state = json.loads(_run("docker", "inspect", "-f", "{{json .State}}", _container(name)))
        if state.get("Health", {}).get("Status") == "healthy":
            return time.monotonic() - started
        assert time.monotonic() - started < seconds, _run("docker", "logs", _container(name))
        time.sleep(0.5)


def test_images_are_lean(images):
    base = _megabytes(BASE)
    for image in images:
        target = image.split(":")[0].removeprefix("stepagent-")
        assert _megabytes(image) - base < LIMITS[target], image


@pytest.mark.parametrize("name", SERVICES)
def test_the_expert_scores_through_every_service(compose, name, tmp_path):
    _wait_until_healthy(name)
    for word in SERVICES[name]["command"]:
        if word.startswith("--env="):
            env_id = word.removeprefix("--env=")
            url = f"http://127.0.0.1:{PORTS[name]}"
            options = EvaluationOptions(split="test", limit=4, env_args={"url": url})
            out = tmp_path / env_id.replace("/", "-")
            summary = evaluate(env_id, make_agent("expert"), out, options)
            assert summary["reward_mean"] == 1.0, env_id
            assert summary["failed"] == 0


def test_containers_are_read_only_and_unprivileged(compose):
    for name in SERVICES:
        container = _container(name)
        assert _run("docker", "exec", container, "id", "-u").strip() == "10001"
        refused = subprocess.run(
            ["docker", "exec", container, "touch", "/venv/x"], capture_output=True, check=False
        )
        assert refused.returncode != 0


def _look_for(env, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        env.step("look")
        time.sleep(0.05)


def test_a_container_that_is_killed_comes_back(compose):
    _wait_until_healthy("alfworld")
    env = RemoteEnv(
        "stepagent/ALFWorld-v0", url=f"http://127.0.0.1:{PORTS['alfworld']}", patience=60.0
    )
    first, _ = env.reset(seed=0)
    env.step("look")
    before = _container("alfworld")
    pid = _run("docker", "inspect", "-f", "{{.State.Pid}}", before).strip()
    _run("kill", "-9", pid)
    with pytest.raises(RemoteError):
        _look_for(env, seconds=30)
    _wait_until_healthy("alfworld")
    assert env.reset(seed=0)[0] == first
    env.close()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_ready_soon(compose, name):
    container = _container(name)
    _run("docker", "stop", container)
    idle, started = os.getloadavg()[0] < 1.0, time.monotonic()
    _run("docker", "start", container)
    while health.main([f"http://127.0.0.1:{PORTS[name]}/readyz"]):
        assert time.monotonic() - started < 120
        time.sleep(0.05)
    seconds = time.monotonic() - started
    print(f"{name}: ready {seconds:.1f} s after its start; load {os.getloadavg()[0]:.1f}")
    if idle:
        assert seconds < 5.0


def _opened(name):
    """How many sessions a service has opened."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORTS[name]}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line.split() for line in lines if line.startswith("stepagent_sessions_opened_total")]
    return sum(float(count) for *_, count in counts)


TRAIN = [
    *("train", "--config=demo", "--method=sft", "--env-args.url=http://scienceworld:8000"),
    *("--expert.limit=8", "--evaluation.limit=4", "--evaluation.agreement=4"),
    "--output=/runs/demo",
]
LOOK = """
import json, os, pathlib
results = pathlib.Path("/runs/demo/eval/sft/results.jsonl").read_text().splitlines()
writable = any(os.access(place, os.W_OK) for place in ("/", "/venv"))
print(json.dumps({"user": os.getuid(), "writable": writable, "episodes": len(results)}))
"""


@pytest.mark.skipif(
    not os.environ.get("STEPAGENT_TRAINING_IMAGE"), reason="STEPAGENT_TRAINING_IMAGE is not set"
)
def test_a_policy_is_trained_on_a_service(compose):
    """As Compose says: read-only, unprivileged, what it writes in volumes."""
    if not os.environ.get("STEPAGENT_IMAGES_BUILT"):
        index = os.environ.get("STEPAGENT_TORCH_INDEX", "")
        _build(TRAINING, "--build-arg", f"TORCH_INDEX={index}")
    _wait_until_healthy("scienceworld")
    before = _opened("scienceworld")
    compose("run", "--rm", "-T", "training", *TRAIN)
    assert _opened("scienceworld") > before
    inside = ["run", "--rm", "-T", "--entrypoint", "python", "training", "-c", LOOK]
    seen = json.loads(compose(*inside))
    assert seen == {"user": 10001, "writable": False, "episodes": 4}


def test_stopping_ends_well(compose):
    compose("stop", "--timeout", "30")
    for name in SERVICES:
        state = json.loads(_run("docker", "inspect", "-f", "{{json .State}}", _container(name)))
        assert (name, state["ExitCode"]) == (name, 0)
