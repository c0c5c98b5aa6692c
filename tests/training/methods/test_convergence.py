"""Section 5 on a toy problem: both reflections drive the agent's actions to the expert's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stepagent.training.config import Config
from stepagent.training.methods import discriminator, implicit, inverse
from stepagent.training.methods.actor_critic import HEAD, ActorCritic, step_policy
from stepagent.training.methods.discriminator import attach
from stepagent.training.methods.losses import expert_is_high_reward
from stepagent.training.methods.practice import differing, practise
from stepagent.training.methods.step_values import without_worthless
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import packed, shuffled
from stepagent.training.runs.stage import Stage
from tests.training.methods import toy_problem

ITERATIONS = 40
FAR, NEAR = 0.5, 0.15
"""Distances to the expert before and after."""


@pytest.fixture
def setting(tmp_path):
    config, policy = Config(output=str(tmp_path)), toy_problem.policy()
    config.reflection.learning_rate = 2e-2
    config.reflection.batch_size, config.reflection.practice = 128, 32
    config.reflection.equal = "tokens"  # the toy has no texts
    judge = config.inverse.discriminator
    judge.learning_rate, judge.batch_size, judge.epochs, judge.rank = 2e-2, 128, 5, 0
    judge.early_stop_accuracy = 1.1  # never
    assert toy_problem.distance(policy.model) > FAR, "there is nothing to learn"
    policy.model.save_pretrained(tmp_path / "entering")
    return policy, config, RunDirectory(tmp_path, "toy")


def _stage(directory, number):
    return Stage(f"iteration-{number}", directory, seed=number, checkpoint_seconds=1e9)


def _practise(stage, policy, config):
    rows = practise(stage, policy, toy_problem.samples(), config.reflection)
    return [practice for row in rows for practice in row]


@pytest.mark.parametrize(
    ("preference", "beta"),
    [
        ("sigmoid", 1.0),
        pytest.param("length_normalised", 1.0, marks=pytest.mark.slow),
        pytest.param("positive", 1.0, marks=pytest.mark.slow),
        pytest.param("ipo", 0.5, marks=pytest.mark.slow),
    ],
)
def test_implicit(setting, preference, beta):
    policy, config, directory = setting
    reflection, distances = config.reflection, []
    reflection.preference, reflection.beta = preference, beta
    for number in range(30):
        stage = _stage(directory, number)
        pairs = implicit.with_reference(stage, policy, _practise(stage, policy, config))
        schedule = shuffled(pairs, implicit.TreePairs.count, reflection, number)
        schedule = packed(schedule, lambda item: item.tree.length, reflection.pack_tokens)
        optimise(stage, policy.model, schedule, implicit.loss(reflection), reflection)
        distances.append(toy_problem.distance(policy.model))
    assert min(distances[-5:]) < NEAR, distances


def test_implicit_with_values(setting):
    """Every action that the expert ever takes in a state is worth 1 there, all others 0. Actions
    that lose nothing are then no longer rejected: what is pushed down is the rest alone."""
    policy, config, directory = setting
    reflection, outside = config.reflection, []
    reflection.beta = 1.0
    for number in range(30):
        stage = _stage(directory, number)
        practices = _practise(stage, policy, config)
        values = [_values(practice) for practice in practices]
        kept, rest = without_worthless(practices, values)
        pairs = implicit.with_reference(stage, policy, kept, rest)
        schedule = shuffled(pairs, implicit.TreePairs.count, reflection, number)
        schedule = packed(schedule, lambda item: item.tree.length, reflection.pack_tokens)
        optimise(stage, policy.model, schedule, implicit.loss(reflection), reflection)
        outside.append(toy_problem.outside(policy.model))
        if outside[-1] < 0.01:
            break
    assert outside[0] > 0.2
    assert outside[-1] < 0.05, outside


def _values(practice):
    """[branches]: 1 less what the branch is worth."""
    state = practice.tree.ids[0]
    support = [a for a, p in zip(toy_problem.ACTIONS, toy_problem.EXPERT[state], strict=True) if p]
    return tuple(float(branch.ids[0] not in support) for branch in practice.tree.branches)


@pytest.mark.parametrize(
    ("baseline", "changes"),
    [
        ("group", {}),
        ("group", {"informative": False, "demonstrations": False}),
        ("group", {"judge_reward": "logit"}),
        pytest.param("value", {}, marks=pytest.mark.slow),
        pytest.param("group", {"demonstrations": False}, marks=pytest.mark.slow),
        pytest.param("group", {"loss": "pairwise"}, marks=pytest.mark.slow),
        pytest.param("group", {"label_smoothing": 0.1}, marks=pytest.mark.slow),
        pytest.param("group", {"spectral_norm": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_inverse(setting, baseline, changes):
    policy, config, directory = setting
    config.reflection.epochs = 1 if changes.get("informative") is False else 3
    for name, value in changes.items():
        holder = config.inverse if hasattr(config.inverse, name) else config.inverse.discriminator
        setattr(holder, name, value)
    config.ppo.baseline, config.ppo.kl, config.ppo.clip = baseline, 0.0, 0.3
    judge_config, distances, before = config.inverse.discriminator, [], None
    # Where scores have no bound, or only their differences count, large steps circle.
    unbounded = config.inverse.judge_reward == "logit" or judge_config.loss == "pairwise"
    rate = 7e-3 if unbounded else 1.5e-2
    # A judge held back, or groups without the expert's action, teach less in an iteration.
    slow = not config.inverse.demonstrations or judge_config.spectral_norm
    iterations = 3 * ITERATIONS if slow else ITERATIONS
    for number in range(iterations):
        stage = _stage(directory, number)
        # Discriminator and policy circle around the saddle point unless the steps grow smaller.
        config.reflection.learning_rate = rate * (1 - number / iterations)
        practices = _practise(stage, policy, config)
        with attach(policy, judge_config, directory.path / "entering", 0) as judge:
            if before:
                judge.load(before / discriminator.WEIGHTS)
            learned = [differing(item) for item in practices]
            learned = learned if config.inverse.informative else practices
            discriminator.train(stage, judge, [i for i in learned if i.draws], judge_config)
            logits = [judge.score(item) for item in practices]
        rewards = discriminator.rewards_of(logits, config.inverse.judge_reward)
        actor = ActorCritic(policy.model, baseline)
        if before:
            actor.load_head(before / HEAD)
        items = inverse.practice_advantages(actor, practices, rewards, config)
        step_policy(stage, actor, items, config, kl=0.0)
        before = stage.artifacts
        distances.append(toy_problem.distance(policy.model))
    # A judge whose slope is bounded never tells the two apart completely.
    near = 0.25 if judge_config.spectral_norm else NEAR
    assert min(distances[-5:]) < near, distances


def test_a_trained_discriminator_pays_the_expert_more(setting):
    """The sign: maximising log D, as printed, would pay the agent for being caught."""
    policy, config, directory = setting
    stage = _stage(directory, 0)
    practices = _practise(stage, policy, config)
    judge_config = config.inverse.discriminator
    with attach(policy, judge_config, directory.path / "entering", 0) as judge:
        discriminator.train(stage, judge, practices, judge_config)
        logits = [judge.score(item) for item in practices]
    rewards = discriminator.rewards_of(logits, "log_d")
    figures = discriminator.health(practices, logits, rewards)
    assert figures["expert_reward"] > figures["agent_reward"] + 0.2, figures
    assert figures["agent_accuracy"] + figures["expert_accuracy"] > 1.2, figures
    never = [
        logits[i][len(item.tree.replies) + b]
        for i, item in enumerate(practices)
        for b, branch in enumerate(item.tree.branches)
        if branch.ids[0] not in toy_problem.ACTIONS  # words that the expert never says
    ]
    assert expert_is_high_reward(torch.stack(never)).max() < figures["expert_reward"]


def test_when_to_stop():
    config = Config(output="x").inverse
    assert discriminator.verdict(0.8, 0.7, config) == ""
    assert discriminator.verdict(1.0, 0.995, config) == "", "it ranks the demonstrations"
    alone = replace(config, demonstrations=False)
    assert "perfect" in discriminator.verdict(1.0, 0.995, alone)
    assert "at chance" in discriminator.verdict(0.52, 0.49, config)
    assert "at chance" in discriminator.verdict(0.0, 1.0, config), "it says 'expert' of everything"
