"""A run small enough for tests: the guessing game and a Llama of a few thousand weights."""

import pytest
import torch

from stepagent.envs.react import PromptStyle
from stepagent.training.config import Config, PolicyConfig, TinyConfig
from stepagent.training.policy import Policy
from stepagent.training.runs.metrics import Metrics
from tests.training.toys import GUESS


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Models this small gain nothing from threads, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def watch_updates(monkeypatch):
    """Starts watching: returns a list that fills with (stage, update) as runs log them."""

    def start():
        updates, log = [], Metrics.log

        def record(self, stage, update, **figures):
            updates.append((stage, update))
            log(self, stage, update, **figures)

        monkeypatch.setattr(Metrics, "log", record)
        return updates

    return start


@pytest.fixture
def config(tmp_path):
    config = Config(output=str(tmp_path / "run"), env=GUESS)
    config.prompt = PromptStyle(instruction=False, example=False, thoughts=False)
    config.policy.model, config.policy.max_new_tokens, config.policy.device = "tiny", 6, "cpu"
    config.policy.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=400, context=512)
    config.sft.learning_rate, config.sft.batch_size, config.sft.epochs = 3e-3, 4, 1
    config.sft.microbatch_size = 2
    config.reflection.learning_rate, config.reflection.batch_size = 1e-3, 4
    config.reflection.iterations, config.reflection.practice = 2, 2
    config.evaluation.limit, config.checkpoint_seconds = 4, 0.0  # a checkpoint after every update
    return config


@pytest.fixture
def policy():
    """A policy of 300 tokens and a context of 64."""
    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu", dtype="float32")
    config.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=64)
    return Policy.tiny(config, ["a b c"], seed=0)
