"""Section 5 on a toy problem: both reflections drive the agent's actions to the expert's."""

from __future__ import annotations

import pytest
import torch

from stepagent.training import discriminator, implicit, inverse
from stepagent.training.config import Config
from stepagent.training.discriminator import attach
from stepagent.training.implicit import plan
from stepagent.training.inspection import inspect
from stepagent.training.loop import optimise
from stepagent.training.losses import expert_is_high_reward
from stepagent.training.rundir import RunDir
from stepagent.training.surrogate import ActorCritic, step_policy
from tests.training import toy

ITERATIONS = 40
FAR, NEAR = 0.5, 0.15
"""Distances to the expert before and after."""


def quiet(done, figures):
    """Takes the figures of an update."""


@pytest.fixture
def setting(tmp_path):
    config, policy = Config(output=str(tmp_path)), toy.policy()
    config.reflection.learning_rate = 2e-2
    config.reflection.batch_size, config.reflection.practice = 128, 32
    judge = config.inverse.discriminator
    judge.learning_rate, judge.batch_size, judge.epochs, judge.rank = 2e-2, 128, 5, 0
    judge.enough = 1.1  # never
    config.checkpoint_seconds = 1e9
    assert toy.distance(policy.model) > FAR, "there is nothing to learn"
    policy.model.save_pretrained(tmp_path / "entering")
    return policy, config, RunDir(tmp_path, "toy")


def test_implicit(setting):
    policy, config, rundir = setting
    wanted, distances = config.reflection, []
    wanted.beta = 1.0
    for number in range(30):
        name = f"iteration-{number}"
        path = rundir.path / f"{name}.jsonl"
        found, _ = inspect(policy, toy.samples(), wanted, path, number)
        optimise(
            policy.model, implicit.plan(found, wanted, number), implicit.loss(wanted.beta),
            lambda item: item.pairs, wanted, rundir, name, checkpoint_seconds=1e9,
        )  # fmt: skip
        distances.append(toy.distance(policy.model))
    assert min(distances[-5:]) < NEAR, distances


@pytest.mark.parametrize("baseline", ["group", pytest.param("value", marks=pytest.mark.slow)])
def test_inverse(setting, baseline):
    policy, config, rundir = setting
    config.ppo.baseline, config.ppo.kl, config.ppo.clip = baseline, 0.0, 0.3
    judge_config, distances, before = config.inverse.discriminator, [], None
    for number in range(ITERATIONS):
        name = f"iteration-{number}"
        # Discriminator and policy circle around the saddle point unless the steps grow smaller.
        config.reflection.learning_rate = 1.5e-2 * (1 - number / ITERATIONS)
        path = rundir.path / f"{name}.jsonl"
        practised = inverse.practise(policy, toy.samples(), config, path, number)
        items = [item for _, item in practised]
        with attach(policy, judge_config, rundir.path / "entering", 0) as judge:
            if before:
                judge.load(before / "discriminator.safetensors")
            updates = plan(items, config.inverse.discriminator, number)
            inverse.train_discriminator(judge, updates, config, rundir, name, quiet)
            rewards = [expert_is_high_reward(judge.score(item)) for item in items]
        actor = ActorCritic(policy.model, baseline)
        if before:
            actor.load_head(before / "value.safetensors")
        step_policy(
            actor, inverse.grade(actor, items, rewards), config.ppo, config.reflection, rundir,
            name, number, kl=0.0, checkpoint_seconds=1e9, on_update=quiet,
        )  # fmt: skip
        before = rundir.helpers(name)
        distances.append(toy.distance(policy.model))
    assert min(distances[-5:]) < NEAR, distances


def test_a_trained_discriminator_pays_the_expert_more(setting):
    """The sign: maximising log D, as printed, would pay the agent for being caught."""
    policy, config, rundir = setting
    practised = inverse.practise(policy, toy.samples(), config, rundir.path / "p.jsonl", 0)
    items = [item for _, item in practised]
    with attach(policy, config.inverse.discriminator, rundir.path / "entering", 0) as judge:
        updates = plan(items, config.inverse.discriminator, 0)
        inverse.train_discriminator(judge, updates, config, rundir, "iteration-1", quiet)
        logits = [judge.score(item) for item in items]
    figures = inverse.health(items, logits)
    assert figures["expert_reward"] > figures["agent_reward"] + 0.2, figures
    assert figures["agent_accuracy"] + figures["expert_accuracy"] > 1.2, figures
    never = [
        logits[i][len(item.tree.replies) + b]
        for i, item in enumerate(items)
        for b, branch in enumerate(item.tree.branches)
        if branch.ids[0] not in toy.ACTIONS  # words that the expert never says
    ]
    assert expert_is_high_reward(torch.stack(never)).max() < figures["expert_reward"]


def test_when_to_stop():
    config = Config(output="x").inverse.discriminator
    assert discriminator.verdict(0.8, 0.7, config) == ""
    assert "perfect" in discriminator.verdict(1.0, 0.995, config)
    assert "at chance" in discriminator.verdict(0.52, 0.49, config)
    assert "at chance" in discriminator.verdict(0.0, 1.0, config), "it says 'expert' of everything"
