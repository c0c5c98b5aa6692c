"""`docs/metrics.yaml` describes what training logs: every method runs, names are compared."""

import json
import re
from dataclasses import replace
from pathlib import Path

import generate
import pytest

from stepagent.envs.react import PromptStyle
from stepagent.training import run
from stepagent.training.config import Config
from stepagent.training.methods import ALL, rollouts
from stepagent.training.tiny import TinyConfig
from tests import toy_env

ONCE = ", once"


@pytest.fixture
def config(tmp_path):
    """A run of all stages of any method, on an environment with rewards between 0 and 1."""
    config = Config(output=str(tmp_path / "run"), env=toy_env.ID, env_args={"size": 6})
    config.prompt = PromptStyle(instruction=False, example=False, thoughts=False)
    config.policy.model, config.policy.max_new_tokens, config.policy.device = "tiny", 4, "cpu"
    config.policy.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=400, context=512)
    config.sft.learning_rate, config.sft.batch_size, config.sft.epochs = 1e-2, 4, 2
    config.reflection.iterations, config.reflection.practice = 1, 2
    config.preference.iterations, config.preference.epochs = 1, 1
    config.rollouts.samples, config.inverse.reward = 2, "both"
    config.rollouts.temperature = 1.0
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    return config


def _logged(output: str) -> dict[str, set[str]]:
    """Stage, with N for its number → the names that a run logged."""
    names: dict[str, set[str]] = {}
    for line in (Path(output) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        names.setdefault(_stage(row["stage"]), set()).update(row.keys() - {"stage", "update"})
    summary = json.loads((Path(output) / "summary.json").read_text())
    for stage, figures in summary["figures"].items():  # with the means of the updates among them
        once = figures.keys() - names.get(_stage(stage), set())
        if once:
            names.setdefault(_stage(stage) + ONCE, set()).update(once)
    return names


def _stage(name: str) -> str:
    return re.sub(r"-\d+", "-N", name)


@pytest.mark.parametrize("method", ALL)
def test_every_logged_metric_is_described(config, method, pages, monkeypatch):
    config.method = method
    if method in ("grpo", "gigpo"):  # so small a policy never scores: every other episode does
        play = rollouts.play
        monkeypatch.setattr(
            rollouts,
            "play",
            lambda *args: [
                [replace(t, reward=float(k % 2)) for k, t in enumerate(row)] for row in play(*args)
            ],
        )
    if method == "distill":
        config.method, config.output = "sft", config.output + "-teacher"
        run.run(config)
        config.distill.teacher = f"{config.output}/final"
        config.method, config.output = "distill", config.output.removesuffix("-teacher")
    discriminator = config.inverse.discriminator
    discriminator.learning_rate, discriminator.batch_size = 1e-2, 16
    discriminator.chance_margin, discriminator.max_accuracy = -1.0, 1.1  # never stops the run
    run.run(config)
    logged = _logged(config.output)
    if method == "implicit":  # once more, with actions that are played, and practice ahead
        config.output += "-played"
        config.reflection.weights, config.reflection.equal = "value", "effect"
        config.reflection.off_policy_iterations, config.reflection.iterations = 1, 2
        run.run(config)
        logged["iteration-N" + ONCE] |= _logged(config.output)["iteration-N" + ONCE]
    if method in ("dpo", "eto"):  # once more, with the episodes in a file
        files = sorted(Path(config.output).glob("rollouts/*-0.jsonl"))
        config.output, config.preference.trajectories = config.output + "-files", [str(files[0])]
        run.run(config)
        for stage, names in _logged(config.output).items():
            logged.setdefault(stage, set()).update(names)
    if method == "inverse":  # once more, where the discriminator stops the run
        config.output += "-stopped"
        discriminator.max_accuracy, config.inverse.reward = 0.0, "step"
        config.inverse.demonstrations = False
        config.reflection.equal = "effect"
        run.run(config)
        for stage, names in _logged(config.output).items():
            logged.setdefault(stage, set()).update(names)
        config.inverse.demonstrations = True
        config.output += "-played"  # and with rewards of actions that are played
        config.inverse.judge, config.reflection.value_rollouts = "return", 1
        config.reflection.off_policy_iterations, config.reflection.iterations = 1, 2
        run.run(config)
        logged["iteration-N" + ONCE] |= _logged(config.output)["iteration-N" + ONCE]
    times = json.loads((Path(config.output) / "summary.json").read_text())["times"]
    assert set().union(*times.values()) <= generate.metric_groups()["times"].keys()
    described = {stage: set(names) for stage, names in generate.logged_by(method).items()}
    assert logged == described
    assert f'{{{{ metrics("{method}") }}}}' in pages[f"methods/{method}.md"]
