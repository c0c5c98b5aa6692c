"""Inspect runs our tasks and reads our results: `pytest -m integration -k inspect`."""

import json
import os
import subprocess
import sys

import pytest

from stepagent import envs
from stepagent.envs import trajectory as files
from tests.integrations.environments import ROOT, binary
from tests.integrations.stub import ExpertModel, StubModel
from tests.servers import running

pytestmark = pytest.mark.integration("inspect")
WEBSHOP = "stepagent/WebShop-v0"
ALFWORLD = "stepagent/ALFWorld-v0"
MOCK = """
import json, sys
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from stepagent import envs
from stepagent.envs.react import render

env, seed = envs.make("stepagent/ALFWorld-v0", split="dev"), 4
plans = {}
for epoch in range(2):
    for task in env.tasks[:2]:
        observation, _ = env.reset(seed=seed + epoch, options={"task_id": task})
        plans[observation] = env.expert_plan()

def expert(messages, tools, tool_choice, config):
    plan = plans[next(m.text for m in messages if m.role == "user")]
    turn = plan[sum(m.role == "assistant" for m in messages)]
    output = ModelOutput.from_content("mockllm", render(*turn) + "\\nObservation: all is well")
    output.usage = ModelUsage()  # else the mock counts tokens with a table from the network
    return output

model = get_model("mockllm/model", custom_outputs=expert)
options = dict(limit=2, epochs=2, display="plain", log_dir=sys.argv[1])
(log,) = eval("stepagent/alfworld", model, task_args={"split": "dev", "seed": seed}, **options)
print(json.dumps({
    "status": log.status,
    "scores": {s.name: next(iter(s.metrics.values())).value for s in log.results.scores},
    "conversations": [[m.text for m in sample.messages] for sample in log.samples],
}))
"""


def python(*arguments):
    done = subprocess.run(
        [binary("inspect", "python"), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read_log(path):
    code = (
        "import json, sys; from inspect_ai.log import read_eval_log as read; "
        "print(read(sys.argv[1]).model_dump_json())"
    )
    return json.loads(python("-c", code, str(path)))


def evaluate(folder, monkeypatch, model, task, *options):
    """The log that `inspect eval` writes, with a stub model."""
    command = [binary("inspect", "inspect"), "eval", task, "--model", "openai-api/stub/model"]
    with running(model, monkeypatch):
        done = subprocess.run(
            [*command, "--log-dir", folder, "--display", "none", *options],
            env={**os.environ, "STUB_BASE_URL": f"{model.address}/v1", "STUB_API_KEY": "none"},
            capture_output=True,
            text=True,
            timeout=300,
            cwd=folder,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.eval")
    return read_log(path)


def means(log):
    return {
        score["name"]: next(iter(score["metrics"].values()))["value"]
        for score in log["results"]["scores"]
    }


def test_the_command_finds_our_tasks_and_scores_the_expert(tmp_path, monkeypatch):
    model = ExpertModel(WEBSHOP, envs.make(WEBSHOP, split="test").tasks[:3], split="test")
    log = evaluate(tmp_path, monkeypatch, model, "stepagent/webshop", "--limit", "3")
    assert (log["status"], log["eval"]["task"]) == ("success", "stepagent/webshop")
    assert means(log) == {"episode_score": 1.0, "episode_success": 1.0}
    assert len(log["samples"]) == 3


def test_its_mock_model_plays_the_expert(tmp_path):
    script = tmp_path / "mock.py"
    script.write_text(MOCK)
    result = json.loads(python(script, tmp_path).splitlines()[-1])
    assert result["status"] == "success"
    assert result["scores"]["episode_score"] == result["scores"]["episode_success"] == 1.0
    assert len(result["conversations"]) == 4
    env = envs.make(ALFWORLD, split="dev")
    for conversation in result["conversations"]:
        assert conversation[0] == env.prompt.system()
        assert not any("all is well" in text for text in conversation)  # cut, as ours is


@pytest.mark.parametrize("env_id", envs.ENTRY_POINTS)
def test_every_environment_is_a_task(env_id, tmp_path, monkeypatch):
    name = env_id.rpartition("/")[2].removesuffix("-v0").lower()
    options = ["--limit", "1", "-T", "split=dev", "-T", "arguments={max_steps: 2}"]
    log = evaluate(tmp_path, monkeypatch, StubModel(), f"stepagent/{name}", *options)
    assert log["eval"]["dataset"]["samples"] == len(envs.make(env_id, split="dev").tasks)
    (sample,) = log["samples"]
    roles = [message["role"] for message in sample["messages"]]
    assert roles == ["system", *["user", "assistant"] * 2, "user"]
    assert means(log)["episode_success"] == 0.0


def test_our_results_are_a_log(tmp_path):
    out = tmp_path / "results"
    evaluate = ["-m", "stepagent.eval.run", "--env", ALFWORLD, "--agent", "expert", "--limit", "3"]
    subprocess.run([sys.executable, *evaluate, "--out", out], check=True, cwd=ROOT)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"cut')
    python("-m", "stepagent.eval.inspect_log", str(out), "--out", str(tmp_path / "a.eval"))
    log = read_log(tmp_path / "a.eval")
    trajectories = files.read(out / "results.jsonl", [])
    assert means(log) == {"episode_score": 1.0, "episode_success": 1.0}
    assert (log["eval"]["task"], log["eval"]["model"]) == (ALFWORLD, "expert")
    for sample, trajectory in zip(log["samples"], trajectories, strict=True):
        assert sample["id"] == trajectory.task_id
        texts = [message["content"] for message in sample["messages"]]
        assert texts[::2] == [
            *(s.observation for s in trajectory.steps),
            trajectory.final_observation,
        ]
        assert sample["scores"]["episode_score"]["value"] == trajectory.reward


def test_what_cannot_be_a_log_is_named(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    for arguments, message in (
        ([tmp_path], "no results"),
        ([tmp_path / "nowhere.jsonl"], "no trajectory file"),
        ([tmp_path, "--out", tmp_path / "log.txt"], ".eval or .json"),
    ):
        command = [binary("inspect", "python"), "-m", "stepagent.eval.inspect_log", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert (done.returncode, message in " ".join(done.stderr.split())) == (2, True), done.stderr
