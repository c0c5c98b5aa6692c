"""A run small enough for tests: the guessing game and a Llama of a few thousand weights."""

import pytest
import torch

from stepagent.envs.react import PromptStyle
from stepagent.training.config import Config
from stepagent.training.rundir import Metrics
from stepagent.training.tiny import TinyConfig

GUESS = "tests.envs.guess:tests/Guess-v0"


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Models this small gain nothing from threads, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def watch(monkeypatch):
    """A list that fills with (stage, update) as runs log them."""
    made, log = [], Metrics.log

    def noted(self, stage, update, **figures):
        made.append((stage, update))
        log(self, stage, update, **figures)

    monkeypatch.setattr(Metrics, "log", noted)
    return made


@pytest.fixture
def config(tmp_path):
    made = Config(output=str(tmp_path / "run"), env=GUESS)
    made.prompt = PromptStyle(instruction=False, example=False, thoughts=False)
    made.policy.model, made.policy.max_new_tokens, made.policy.device = "tiny", 6, "cpu"
    made.policy.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=400, context=512)
    made.sft.learning_rate, made.sft.batch_size, made.sft.epochs = 3e-3, 4, 1
    made.sft.microbatch_size = 2
    made.reflection.learning_rate, made.reflection.batch_size = 1e-3, 4
    made.reflection.iterations, made.reflection.practice = 2, 2
    made.evaluation.limit, made.checkpoint_seconds = 4, 0.0  # a checkpoint after every update
    return made
