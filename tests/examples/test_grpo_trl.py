"""The example with TRL's GRPOTrainer, run for a few steps on an environment of a server."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from stepagent.training.config import TinyConfig
from tests.envs.serve.servers import Running

ROOT = Path(__file__).parents[2]
ALFWORLD = "stepagent/ALFWorld-v0"
GUESS = "tests.envs.guess:tests/Guess-v0"
"""Its prompt is short: a model from scratch learns to call the tool within seconds."""


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("grpo_trl", ROOT / "examples" / "grpo_trl.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo_trl"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["grpo_trl"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("env_id", "warm_up", "max_tokens"),
    [(GUESS, 2, 200), pytest.param("stepagent/HotpotQA-v0", 8, 2500, marks=pytest.mark.slow)],
)
def test_grpo_trains_on_an_environment_of_a_server(
    example, tmp_path, monkeypatch, env_id, warm_up, max_tokens
):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    torch.set_num_threads(1)
    first = {}
    build = example.build_model

    def remembered(*args):
        model = build(*args)
        first.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return model

    monkeypatch.setattr(example, "build_model", remembered)
    with Running(env_id) as server:
        config = example.Config(
            url=server.url,
            env=env_id,
            output=tmp_path / "out",
            tasks=2,
            warm_up=warm_up,
            steps=2,
            group=4,
            turns=3,
            max_tokens=max_tokens,
            learning_rate=1e-4,
        )
        shape = TinyConfig(hidden_size=64, layers=2, heads=4, vocabulary=600, context=4096)
        rows = example.train(config, shape)
        assert server.sessions.count == 0
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and 0 <= row["reward"] <= 1 for row in rows)
    assert any(row["tools/call_frequency"] > 0 for row in rows), "the model never called the tool"
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert any(not torch.equal(saved[name], first[name]) for name in saved)


def test_an_episode_is_scored_and_ends(example):
    from stepagent import envs

    with Running(ALFWORLD) as server:
        env = envs.make(ALFWORLD, url=server.url)
        episode = example.Episode(lambda: env)
        text = episode.reset(env.tasks[0], 0, prompt="whatever else the row holds")
        assert text
        for _, action in env.expert_plan():
            said = episode.act(action)
        assert episode.get_reward() == 1.0
        assert said.endswith("The episode is over.")
        assert episode.act("look") == "The episode is over."
        env.close()
