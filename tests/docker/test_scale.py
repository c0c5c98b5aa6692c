"""The examples for one node of eight GPUs and for Kubernetes, as far as they can be tried without.

Their commands are parsed, and what they name exists. Kubernetes' own schemas are asked where the
package kubernetes-validate is installed.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepagent import command_line
from stepagent.envs.serve.__main__ import main as serve
from stepagent.training.config import Config
from stepagent.training.run import CONFIGS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "node.compose.yaml").read_text())
SERVICES = COMPOSE["services"]
ENVIRONMENTS = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
FILES = sorted((ROOT / "docker" / "kubernetes").glob("*.yaml"))
OBJECTS = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
VLLM_OPTIONS = {
    "--port",
    "--enable-scale-out",
    "--enable-lora",
    "--max-lora-rank",
    "--max-model-len",
}
"""Compared by hand with vLLM 0.32.0 (`vllm serve --help=all`)."""
KNOWN = {
    ("v1", "Service"),
    ("v1", "PersistentVolumeClaim"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
}


def trained(words: list[str]) -> Config:
    """The configuration that a trainer's command makes; it fails for options that do not exist."""
    module = words.index("-m")
    assert words[module + 1] == "stepagent.training.run"
    defaults = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in words[module + 2 :]]
    return command_line.parse(Config, defaults, prog="test", configs=CONFIGS)


def accelerate_config(words: list[str]) -> Path:
    """The file in this checkout that lies in the image where the command looks for it."""
    name = next(word for word in words if word.startswith("--config_file=")).partition("=")[2]
    packages, _, path = name.partition("/stepagent/")
    python = re.search(r"FROM python:(3\.\d+)", (ROOT / "docker/training.Dockerfile").read_text())
    assert packages == f"/venv/lib/python{python[1]}/site-packages"
    return ROOT / path


def is_training_of_adapters(words: list[str], engine: list[str], gpus: int) -> Config:
    """Checks a trainer's command against those of its engines."""
    processes = yaml.safe_load(accelerate_config(words).read_text())
    assert processes["distributed_type"] == "MULTI_GPU"
    assert f"--num_processes={gpus}" in words
    config = trained(words)
    options = {word.partition("=")[0] for word in engine[1:]}
    assert options <= VLLM_OPTIONS
    assert "--enable-lora" in options
    assert f"--max-lora-rank={config.policy.lora.r}" in engine
    assert config.policy.model == re.sub(r"\$\{\w+:-(.*)\}", r"\1", engine[0])
    assert config.output.startswith("/runs/")
    assert not config.sampler.shared, "adapters go into the run's directory"
    return config


# Compose ----------------------------------------------------------------------------------------


def test_every_gpu_of_the_node_is_used_once():
    gpus = [
        number
        for name, service in SERVICES.items()
        if name != "scienceworld"
        for device in service["deploy"]["resources"]["reservations"]["devices"]
        for number in device["device_ids"]
    ]
    assert sorted(gpus) == [str(number) for number in range(8)]


def test_the_trainer_on_the_node_knows_its_engines_and_its_environments():
    trainer, engines = SERVICES["trainer"], [n for n in SERVICES if n.startswith("engine-")]
    assert trainer["image"] == f"stepagent-training:{version('stepagent')}"
    assert trainer["entrypoint"] == ["accelerate", "launch"]
    config = is_training_of_adapters(trainer["command"], SERVICES[engines[0]]["command"], gpus=4)
    assert config.sampler.urls == [f"http://{name}:8000" for name in engines]
    base = SERVICES["scienceworld"]["extends"]
    served = ENVIRONMENTS["services"][base["service"]]["command"]
    assert (ROOT / "docker" / base["file"]).is_file()
    assert f"--env={config.env}" in served
    assert config.env_args == {"url": "http://scienceworld:8000"}
    assert f"--max-sessions={4 * config.evaluation.workers}" in served
    healthy = {"condition": "service_healthy"}
    assert trainer["depends_on"] == dict.fromkeys([*engines, "scienceworld"], healthy)


def test_engines_read_the_runs_directory_under_the_trainers_path():
    volumes = {name: service.get("volumes", []) for name, service in SERVICES.items()}
    assert "training-runs:/runs" in volumes["trainer"]
    inherited = ENVIRONMENTS["services"]["scienceworld"]["volumes"]
    for name, service in SERVICES.items():
        if name.startswith("engine-"):
            assert "training-runs:/runs:ro" in volumes[name]
            assert service["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
            assert service["restart"] == "unless-stopped"
    mounted = [volume for own in [*volumes.values(), inherited] for volume in own]
    assert {volume.split(":")[0] for volume in mounted} == set(COMPOSE["volumes"])


def test_compose_accepts_the_node():
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"]).returncode:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "-f", "docker/node.compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Kubernetes -------------------------------------------------------------------------------------


def named(kind: str, name: str) -> dict[str, Any]:
    return next(o for o in OBJECTS if o["kind"] == kind and o["metadata"]["name"] == name)


def workloads() -> list[dict[str, Any]]:
    return [o for o in OBJECTS if o["kind"] in ("StatefulSet", "Job")]


def faults(objects: list[dict[str, Any]]) -> list[str]:
    """What in these objects does not fit together."""
    wrong = []
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    for thing in objects:
        name = thing["metadata"]["name"]
        if (thing["apiVersion"], thing["kind"]) not in KNOWN:
            wrong.append(f"{name}: no {thing['kind']} in {thing['apiVersion']}")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
            wrong.append(f"{name}: not a DNS label")
        if thing["kind"] not in ("StatefulSet", "Job"):
            continue
        spec = thing["spec"]
        labels, pod = spec["template"]["metadata"]["labels"], spec["template"]["spec"]
        if thing["kind"] == "StatefulSet":
            service = next(
                (
                    o
                    for o in objects
                    if o["kind"] == "Service" and o["metadata"]["name"] == spec["serviceName"]
                ),
                None,
            )
            if service is None:
                wrong.append(f"{name}: no service {spec['serviceName']}")
            elif service["spec"]["selector"] != labels:
                wrong.append(f"{name}: its service selects other pods")
            if spec["selector"]["matchLabels"] != labels:
                wrong.append(f"{name}: selects other pods")
        elif pod.get("restartPolicy") not in ("OnFailure", "Never"):
            wrong.append(f"{name}: a job's pods cannot restart always")
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and ("PersistentVolumeClaim", claim) not in names:
                wrong.append(f"{name}: no claim {claim}")
        for container in pod["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            if mounted != set(volumes):
                wrong.append(f"{name}: mounts {mounted ^ set(volumes)}")
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container and container[probe]["httpGet"]["port"] not in ports:
                    wrong.append(f"{name}: {probe} asks a port that it does not have")
    return wrong


def test_the_objects_fit_together():
    assert faults(OBJECTS) == []


def test_what_does_not_fit_is_noticed():
    broken = copy.deepcopy(OBJECTS)
    engine = next(
        o for o in broken if (o["kind"], o["metadata"]["name"]) == ("StatefulSet", "engine")
    )
    engine["spec"]["template"]["metadata"]["labels"] = {"app": "other"}
    engine["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = "run"
    engine["spec"]["template"]["spec"]["containers"][0]["volumeMounts"].pop()
    job = next(o for o in broken if o["kind"] == "Job")
    job["spec"]["template"]["spec"].pop("restartPolicy")
    assert len(faults(broken)) == 5


def test_the_job_knows_its_engines_and_its_environments():
    job = named("Job", "training")["spec"]["template"]["spec"]["containers"][0]
    engine = named("StatefulSet", "engine")["spec"]
    vllm = engine["template"]["spec"]["containers"][0]
    assert (job["command"], vllm["command"]) == (["accelerate", "launch"], ["vllm", "serve"])
    gpus = job["resources"]["limits"]["nvidia.com/gpu"]
    config = is_training_of_adapters(job["args"], vllm["args"], gpus)
    assert config.sampler.urls == [
        f"http://engine-{i}.engine:8000" for i in range(engine["replicas"])
    ]
    servers = named("StatefulSet", "scienceworld")["spec"]
    server = servers["template"]["spec"]["containers"][0]
    places = [f"http://scienceworld-{i}.scienceworld:8000" for i in range(servers["replicas"])]
    assert config.env_args == {"url": ",".join(places)}
    assert f"--env={config.env}" in server["args"]
    sessions = gpus * config.evaluation.workers // servers["replicas"]
    assert f"--max-sessions={sessions}" in server["args"]
    mounts = {m["name"]: m for m in vllm["volumeMounts"]}
    assert mounts["runs"] == {"name": "runs", "mountPath": "/runs", "readOnly": True}
    assert {"name": "runs", "mountPath": "/runs"} in job["volumeMounts"]
    assert named("PersistentVolumeClaim", "runs")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_images_are_tagged_with_the_version_and_known_to_compose():
    built = {s["image"] for s in [*ENVIRONMENTS["services"].values(), SERVICES["trainer"]]}
    engines = {SERVICES["engine-0"]["image"]}
    for workload in workloads():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert container["image"] in built | engines


def test_the_servers_options_exist():
    for workload in workloads():
        for container in workload["spec"]["template"]["spec"]["containers"]:
            if container["image"].startswith("stepagent-scienceworld"):
                options = command_line.parse(serve.options, container["args"], prog="test")
                assert options.max_sessions == 32


@pytest.mark.parametrize("index", range(len(OBJECTS)))
def test_kubernetes_own_schemas_accept_the_objects(index):
    try:
        kubernetes_validate = import_module("kubernetes_validate")
    except ImportError:
        pytest.skip("kubernetes-validate is not installed: pip install kubernetes-validate")
    kubernetes_validate.validate(OBJECTS[index], "1.33", strict=True)
