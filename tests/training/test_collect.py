"""Trajectories of a model behind an API, kept where its answer matched: the paper's expert."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stepagent import envs
from stepagent.envs.trajectory import read
from stepagent.training import collect
from tests.agents.chat_server import KEY, ChatServer, completion
from tests.servers import running

ID = "stepagent/HotpotQA-v0"
SIZES = [12, 6, 6]


class Knowing(ChatServer):
    """Plays the expert's plan on every other task, and guesses on the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[str, list[tuple[str, str]]] = {}

    def answer(self, request: Any) -> bytes:
        messages = request["messages"]
        question = next(m["content"] for m in messages if m["role"] == "user")
        turn = sum(m["role"] == "assistant" for m in messages)
        thought, action = self.plans[question][turn]
        return completion(f"Thought: {thought}\nAction: {action}")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> Iterator[Knowing]:
    stub = Knowing()
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path_factory.getbasetemp() / "collect-cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
    env = envs.make(ID, sizes=SIZES)
    for number, task in enumerate(env.tasks):
        observation, _ = env.reset(seed=0, options={"task_id": task})
        plan = env.expert_plan() if number % 2 == 0 else [("", "finish[nobody knows]")]
        stub.plans[observation] = plan
    with running(stub, monkeypatch):
        yield stub


def test_what_matched_is_kept(model: Knowing, tmp_path):
    arguments = [f"--env={ID}", "--agent=openai:some-model", f"--out={tmp_path}", "--keep=em"]
    assert collect.main([*arguments, f"--env-args.sizes={json.dumps(SIZES)}"]) == 0
    kept, played = read(tmp_path / "trajectories.jsonl"), read(tmp_path / "results.jsonl")
    assert (len(kept), len(played)) == (6, 12)
    assert all(t.metrics["em"] == 1 and t.agent == "openai:some-model" for t in kept)
    assert all(t.steps[-1].action.startswith("finish[") for t in kept)
    assert all(len(t.steps) > 2 and t.steps[0].thought for t in kept)
    assert {t.task_id for t in kept} < {t.task_id for t in played}
    assert all(m["role"] == "system" for m in [s["messages"][0] for s in model.seen])


def test_episodes_without_an_action_are_not_kept(model: Knowing, tmp_path):
    plans = list(model.plans.values())
    for number, question in enumerate(model.plans):
        if number % 3 == 1:
            model.plans[question] = [("I do not know.", "")] * 20
    assert any(plan == [("I do not know.", "")] * 20 for plan in model.plans.values())
    options = {"sizes": SIZES, "max_steps": 5}
    collect.collect(collect.Config(ID, tmp_path, "openai:m", keep="em", env_args=options))
    kept = read(tmp_path / "trajectories.jsonl")
    assert 0 < len(kept) < len(plans)
    assert all(t.metrics == {"em": 1.0, "f1": 1.0} for t in kept)


def test_an_unknown_metric_lists_those_there_are(model: Knowing, tmp_path):
    options = collect.Config(ID, tmp_path, "openai:m", keep="exact", env_args={"sizes": SIZES})
    with pytest.raises(ValueError, match="metrics of stepagent/HotpotQA-v0 are: em, f1"):
        collect.collect(options)
