"""The example with TRL's GRPOTrainer, run for a few steps on an environment of a server."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from stepagent import envs
from stepagent.rewards import step_rewards
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


def _every_environment():
    yield GUESS, 2, 200, None
    yield GUESS, 2, 200, "expert"
    for env_id in envs.ENTRY_POINTS:
        yield pytest.param(env_id, 4, 2500, "expert", marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("env_id", "warm_up", "max_tokens", "judge"), _every_environment())
def test_grpo_trains_on_an_environment_of_a_server(
    example, tmp_path, monkeypatch, env_id, warm_up, max_tokens, judge
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
            turns=5,  # in fewer, nothing can be bought for some tasks of WebShop
            max_tokens=max_tokens,
            learning_rate=1e-4,
            judge=judge,
        )
        shape = TinyConfig(hidden_size=64, layers=2, heads=4, vocabulary=600, context=4096)
        rows = example.train(config, shape)
        assert server.sessions.count == 0
    assert len(rows) == 2
    assert all(math.isfinite(row["loss"]) and 0 <= row["reward"] <= 1 for row in rows)
    assert any(row["tools/call_frequency"] > 0 for row in rows), "the model never called the tool"
    assert all(("rewards/step_reward/mean" in row) == bool(judge) for row in rows)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "final" / "model.safetensors")
    assert any(not torch.equal(saved[name], first[name]) for name in saved)


def test_process_advantages(example):
    """Worked by hand: two groups of two episodes; mean 0.5 and spread √(1/3) in the first."""
    rewards = [[1.0, 0.0], [0.0, 1.0], [1.0], []]
    unit = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = [[0.0, -unit], [0.0, unit], [0.0], []]
    for row, values in zip(example.process_advantages(rewards, 2), expected, strict=True):
        assert row == pytest.approx(values)


def test_which_turn_took_which_step(example):
    def calls(*arguments, name="act"):
        functions = [{"name": name, "arguments": a} for a in arguments]
        calls = [{"type": "function", "function": function} for function in functions]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    messages = [
        calls({"action": "look"}),
        {"role": "tool", "name": "act", "content": "A room."},
        calls({"act": "look"}),  # the tool refuses it: no step
        calls({"action": "a"}, {"action": "b"}),
        calls({"action": "a"}, name="other"),
        calls("not an object"),
        {"role": "assistant", "content": "Done."},
        calls({"action": "c"}),
    ]
    assert example.turns_of_steps(messages) == [0, 2, 2, 6]


def test_every_token_gets_the_advantage_of_its_step(example, monkeypatch):
    """TRL's own part of a batch is replaced: two episodes of two turns and of one."""
    output = {
        "advantages": torch.tensor([1.0, -1.0]),
        "tool_mask": torch.tensor([[1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 1, 1]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
    }
    trainer = object.__new__(example.StepwiseTrainer)
    trainer.step_weight, trainer.num_generations = 0.5, 2
    trainer.model = torch.nn.Linear(1, 1).train()
    trainer.judged = [([0, 1], [1.0, 0.0]), ([1], [0.0])]
    monkeypatch.setattr(
        example.GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: output
    )
    advantages = trainer._generate_and_score_completions([])["advantages"]
    spread = math.sqrt(1 / 3) + 1e-4
    high, low = 2 / 3 / spread, -1 / 3 / spread
    first, second = 1 + 0.5 * (high + low), 1 + 0.5 * low
    other = -1 + 0.5 * low
    written = output["tool_mask"] * output["completion_mask"]
    expected = [[first, first, 0, second, second, 0], [-1.0, 0, 0, other, 0, 0]]
    torch.testing.assert_close(advantages * written, torch.tensor(expected))


def test_tasks_that_need_more_turns_are_left_out_of_the_warm_up(example, capsys):
    with Running("stepagent/WebShop-v0") as server:
        env = envs.make("stepagent/WebShop-v0", url=server.url, split="train", max_steps=3)
        lengths = [len(row) for row in example.expert_episodes(env, env.tasks[:8], seed=0)]
        env.close()
        assert 0 < len(lengths) < 8
        assert max(lengths) <= 1 + 2 * 3
        command = ["--url", server.url, "--env", "stepagent/WebShop-v0", "--turns", "1"]
        assert example.main(command) == 2
    error = capsys.readouterr().err
    assert "--turns" in error
    assert "nothing can be bought" in error


def test_an_episode_is_scored_and_ends(example):
    with Running(ALFWORLD) as server:
        env = envs.make(ALFWORLD, url=server.url)
        episode = example.Episode(lambda: env, ALFWORLD)
        text = episode.reset(env.tasks[0], 0, prompt="whatever else the row holds")
        assert text
        for _, action in env.expert_plan():
            said = episode.act(action)
        assert episode.get_reward() == 1.0
        assert said.endswith("The episode is over.")
        assert episode.act("look") == "The episode is over."
        trajectory = episode._trajectory()
        assert set(step_rewards(trajectory)) == {1.0}
        assert set(step_rewards(trajectory, "reach")) == {0.0}
        env.close()
