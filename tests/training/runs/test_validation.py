"""What cannot work is said before any training."""

from __future__ import annotations

import functools
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from stepagent import command_line
from stepagent.agents import nano
from stepagent.training import run as runs
from stepagent.training.config import Config
from stepagent.training.methods import find, sft
from stepagent.training.runs import processes
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_options
from tests.training.toys import GUESS

PAIRS, EPISODES = ["dpo", "eto", "spin"], ["grpo", "gigpo", "distill"]
CONFIGS = Path(runs.__file__).with_name("configs")


@pytest.fixture
def start(config, monkeypatch):
    """Opens the run of a method that must not get as far as SFT."""
    monkeypatch.setattr(sft, "learn", lambda run: pytest.fail("it was trained"))

    def opened(method: str) -> TrainingRun:
        config.method, config.distill.teacher = method, "teacher"
        return TrainingRun(config, Console(quiet=True))

    return opened


def mixed_windows(window: int) -> Gemma3ForCausalLM:
    shape = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8, "vocab_size": 400}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(**shape, sliding_window=window, layer_types=layers)
    return Gemma3ForCausalLM(config)


@pytest.mark.parametrize("method", [*PAIRS, *EPISODES])
def test_a_model_that_cannot_run_step_trees(start, method):
    run = start(method)
    run.policy.no_step_trees = "it has a recurrent state"
    with pytest.raises(ValueError, match=f"method {method}: it has a recurrent state"):
        find(method).learn(run)


@pytest.mark.parametrize("method", [*PAIRS, *EPISODES])
def test_trajectories_longer_than_the_window_of_some_layers(start, method):
    run = start(method)
    run.policy.model = mixed_windows(window=8)
    with pytest.raises(ValueError, match="step trees run it up to 8 tokens"):
        find(method).learn(run)


@pytest.mark.parametrize("method", ["grpo", "gigpo"])
def test_episodes_that_would_be_left_out_need_not_fit_the_window(start, method, monkeypatch):
    run, reached = start(method), []
    run.policy.model = mixed_windows(window=8)
    run.config.reflection.max_tree_tokens = 8
    run.config.reflection.iterations = 0
    monkeypatch.setattr(sft, "learn", reached.append)
    monkeypatch.setattr(run, "entering", lambda: None)
    find(method).learn(run)
    assert reached == [run]


@pytest.mark.parametrize("method", PAIRS)
def test_pairs_that_the_processes_cannot_share(start, method, monkeypatch):
    run = start(method)
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match="batch_size of 16 cannot be shared by 3 processes"):
        find(method).learn(run)


OUT_OF_RANGE = {
    "reflection.top_p": (0.0, 1.5),
    "reflection.positive_penalty": (-1.0,),
    "reflection.sft_weight": (-1.0,),
    "reflection.preference_weight": (-1.0,),
    "reflection.off_policy_limit": (0.0,),
    "reflection.max_tree_tokens": (0,),
    "rollouts.top_p": (0.0, 1.5),
    "rollouts.unlabelled": (-3,),
    "sft.beta2": (-0.1, 1.0, 1.5),
    "sft.weight_decay": (-1.0,),
    "sft.warmup_ratio": (-0.1, 1.0, 2.0),
    "preference.later_learning_rate": (-1e-6,),
    "inverse.discriminator.beta2": (1.5,),
    "inverse.discriminator.label_smoothing": (-0.1, 0.5),
    "inverse.discriminator.rank": (-1,),
    "inverse.discriminator.spectral_norm": (-1.0,),
    "ppo.clip": (-1.0, 0.0),
    "ppo.gamma": (-0.1, 2.0),
    "ppo.lam": (1.1,),
    "ppo.kl": (-0.1,),
    "ppo.entropy": (-0.1,),
    "ppo.value_coefficient": (-1.0,),
    "inverse.discriminator.pack_tokens": (-1,),
    "policy.lora.r": (-2,),
    "policy.lora.alpha": (0, -1),
    "policy.lora.dropout": (-0.1, 1.0),
}
MAY_BE_NEGATIVE = {
    "expert.min_reward",  # every trajectory counts
    "inverse.discriminator.early_stop_accuracy",  # these three switch off what they decide
    "inverse.discriminator.max_accuracy",
    "inverse.discriminator.chance_margin",
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in OUT_OF_RANGE.items() for v in vs])
def test_a_number_out_of_range(name, value):
    config = Config(output="unused", env=GUESS)
    config.policy.model = "tiny"
    check_options(config)
    *sections, last = name.split(".")
    setattr(functools.reduce(getattr, sections, config), last, value)
    with pytest.raises(ValueError, match=name):
        check_options(config)


def _numbers(section, path=""):
    for part in fields(section):
        value = getattr(section, part.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{path}{part.name}.")
        elif type(value) in (int, float):
            yield f"{path}{part.name}"


@pytest.mark.parametrize("name", sorted({*_numbers(Config("", ""))} - MAY_BE_NEGATIVE))
def test_a_negative_number_is_refused(name):
    config = Config(output="unused", env=GUESS, method="grpo")
    config.policy.model, config.reflection.temperature = "tiny", 1.0
    runs.check(config)
    *sections, last = name.split(".")
    section = functools.reduce(getattr, sections, config)
    setattr(section, last, type(getattr(section, last))(-1))
    with pytest.raises(ValueError, match=last):
        runs.check(config)


@pytest.mark.parametrize("name", command_line.shipped_configs("stepagent.training", Config))
def test_every_shipped_configuration_can_work(name, monkeypatch):
    monkeypatch.setattr(nano, "origin", lambda model: {})  # with or without it
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), "--output", "unused"]
    config = command_line.parse(Config, arguments, prog="test")
    check_options(replace(config, report_to=[]))
