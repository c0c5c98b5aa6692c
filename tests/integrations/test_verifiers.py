"""verifiers plays our environments, as its task set and through OpenEnv: score 1.0 for the expert.

`pytest -m integration -k verifiers`
"""

import json
import os
import subprocess

import pytest

from stepagent import envs
from tests.envs.serve.servers import Running
from tests.integrations.environments import binary
from tests.integrations.stub import ExpertModel
from tests.servers import running

pytestmark = [pytest.mark.integration("verifiers"), pytest.mark.timeout(1800)]
WEBSHOP = "stepagent/WebShop-v0"
ALFWORLD = "stepagent/ALFWorld-v0"


def run(folder, name, *arguments):
    environment = {
        **os.environ,
        "PATH": f"{binary('verifiers', 'uv').parent}:{os.environ['PATH']}",  # harnesses start uv
        "STUB_KEY": "none",
    }
    done = subprocess.run(
        [binary("verifiers", name), *map(str, arguments), "--no-rich"],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """Runs vf-eval on a configuration with the stub model; the traces of its episodes."""

    def evaluate(model, env):
        config = {
            "env": env,
            "model": "stub",
            "push": False,
            "client": {"base_url": f"{model.address}/v1", "api_key_var": "STUB_KEY"},
            "run": {"dir": "run"},
            "select": {"limit": 2},
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        with running(model, monkeypatch):
            run(tmp_path, "vf-eval", "@", path)
        lines = (tmp_path / "outputs/run/traces.jsonl").read_text().splitlines()
        episodes = [json.loads(line) for line in lines]
        assert all(episode["ok"] for episode in episodes)
        return [trace for episode in episodes for trace in episode["traces"]]

    return evaluate


@pytest.mark.parametrize("env_id", [WEBSHOP, ALFWORLD])
def test_our_task_set_gives_the_expert_its_score(evaluate, env_id):
    tasks = envs.make(env_id, split="dev").tasks[:2]
    taskset = {"id": "stepagent-verifiers", "env": env_id, "split": "dev"}
    traces = evaluate(ExpertModel(env_id, tasks, split="dev"), {"taskset": taskset})
    assert {trace["task"]["data"]["task_id"] for trace in traces} == set(tasks)
    for trace in traces:
        assert trace["rewards"]["score"]["score"] == 1.0
        assert trace["metrics"]["success"] == 1.0
        assert sum(trace["info"]["step_rewards"]) == 1.0


def test_its_own_openenv_task_set_plays_our_server(evaluate):
    tasks = envs.make(WEBSHOP, split="test").tasks[:2]
    with Running(ALFWORLD, WEBSHOP) as server:
        taskset = {
            "id": "openenv",
            "base_url": f"{server.url}/{WEBSHOP}",
            "resets": [{"split": "test", "index": index, "seed": 0} for index in range(2)],
        }
        player = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}
        model = ExpertModel(WEBSHOP, tasks, split="test")
        traces = evaluate(model, {"taskset": taskset, "player": player})
    assert [trace["rewards"]["openenv_reward"]["score"] for trace in traces] == [1.0, 1.0]


def test_validate_plays_the_experts(tmp_path):
    arguments = ["--taskset.split", "dev", "-n", 3, "--only-gold", "--runtime.type", "subprocess"]
    output = run(tmp_path, "vf-validate", "stepagent-verifiers", *arguments)
    assert '"valid": 3' in output
