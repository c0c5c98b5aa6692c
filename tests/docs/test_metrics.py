"""`docs/metrics.yaml` describes what training logs: every method runs, names are compared."""

import json
import re
from pathlib import Path

import generate
import pytest

from stepagent.training import run
from stepagent.training.run import METHODS
from tests.eval import toy_world
from tests.training.conftest import config as config  # the run of a few thousand weights

ONCE = ", once"


@pytest.fixture
def toy(config):
    """A run of every method's stages, on a world with rewards between 0 and 1."""
    config.env, config.env_args = toy_world.ID, {"size": 6}
    config.policy.max_new_tokens, config.checkpoint_seconds = 4, 300.0
    config.sft.epochs, config.sft.learning_rate = 2, 1e-2
    config.evaluation.limit, config.evaluation.every_iteration = 1, False
    config.reflection.iterations, config.rollouts.samples = 1, 2
    config.preference.iterations, config.preference.epochs = 1, 1
    config.inverse.reward = "both"
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


@pytest.mark.parametrize("method", METHODS)
def test_every_logged_metric_is_described(toy, method, pages):
    toy.method = method
    discriminator = toy.inverse.discriminator
    discriminator.learning_rate, discriminator.batch_size = 1e-2, 16
    discriminator.chance, discriminator.perfect = -1.0, 1.1  # never stops the run
    run.run(toy)
    logged = _logged(toy.output)
    if method == "inverse":  # once more, where the discriminator stops the run
        toy.output += "-stopped"
        discriminator.perfect = 0.0
        run.run(toy)
        for stage, names in _logged(toy.output).items():
            logged.setdefault(stage, set()).update(names)
    described = {stage: set(names) for stage, names in generate.logged_by(method).items()}
    assert logged == described
    assert f'{{{{ metrics("{method}") }}}}' in pages[f"methods/{method}.md"]
