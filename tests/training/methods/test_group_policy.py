"""GRPO's and GiGPO's advantages and loss against numbers worked out by hand, and TRL's loss."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from trl import GRPOTrainer

from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.config import Config, GroupConfig
from stepagent.training.methods import find, gigpo, grpo
from stepagent.training.methods.group_policy import (
    EpisodeAdvantages,
    GroupAdvantages,
    group_loss,
    loss,
    normalised,
    of_tokens,
)
from stepagent.training.trees.forest import forests
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree
from tests.training.toys import random_tree, tiny_model


def episode(*steps, reward):
    """An episode of (observation, reward) steps."""
    taken = tuple(Step(seen, "", "act", reward=gained) for seen, gained in steps)
    return Trajectory("toy", "task", "train", "mine", 0, taken, reward=reward)


GROUP = [
    episode(("start", 0.0), ("hall", 1.0), reward=1.0),
    episode(("start", 0.0), ("hall", 0.0), ("attic", 0.0), reward=0.0),
    episode(("start", 0.5), ("cellar", 0.0), reward=0.5),
]
"""Scores 1, 0, ½: mean ½, standard deviation ½."""


def close(rows, expected):
    for row, values in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, torch.tensor(values), atol=1e-3, rtol=0)


def test_grpo_compares_the_scores_of_a_group():
    close(grpo.advantages(GROUP, GroupConfig()), [[1.0, 1.0], [-1.0] * 3, [0.0, 0.0]])
    plain = GroupConfig(scale="none")
    close(grpo.advantages(GROUP, plain), [[0.5, 0.5], [-0.5] * 3, [0.0, 0.0]])
    assert grpo.advantages([], GroupConfig()) == []
    close(grpo.advantages(GROUP[:1], GroupConfig()), [[0.0, 0.0]])
    close(grpo.advantages([GROUP[0]] * 2, GroupConfig()), [[0.0, 0.0]] * 2)


def test_grpo_with_step_rewards_sums_what_follows():
    # Rewards 0 1 0 0 0 ½ 0: mean 3/14; less the mean -3/14, 11/14, -3/14 … 2/7.
    rows = grpo.advantages(GROUP, GroupConfig(reward="step", scale="none"))
    close(rows, [[8 / 14, 11 / 14], [-9 / 14, -6 / 14, -3 / 14], [1 / 14, -3 / 14]])
    spread = torch.tensor([0, 1, 0, 0, 0, 0.5, 0.0]).std()
    scaled = grpo.advantages(GROUP, GroupConfig(reward="step"))
    close(scaled, [(row / (spread + 1e-4)).tolist() for row in rows])


def test_gigpo_compares_the_steps_taken_in_one_state():
    config = GroupConfig(scale="none", gamma=0.5)
    # start: G = ½, 0, ½, mean 1/3; hall: 1, 0, mean ½; attic and cellar are alone.
    close(gigpo.step_advantages(GROUP, config), [[1 / 6, 0.5], [-1 / 3, -0.5, 0.0], [1 / 6, 0.0]])
    weighed = GroupConfig(scale="none", gamma=0.5, step_weight=2.0)
    expected = [[0.5 + 1 / 3, 1.5], [-0.5 - 2 / 3, -1.5, -0.5], [1 / 3, 0.0]]
    close(gigpo.advantages(GROUP, weighed), expected)
    scaled = gigpo.step_advantages(GROUP, GroupConfig(gamma=0.5))
    close([scaled[0][1:], scaled[1][1:2]], [[0.5 / 0.5**0.5], [-0.5 / 0.5**0.5]])


def test_equal_values_have_no_advantage_whatever_their_last_digits():
    assert not normalised(torch.tensor([1 / 3] * 7), "std").any()


def test_the_loss_by_hand():
    """Two tokens at ratio 1, one beyond the clip for each sign of the advantage."""
    old = torch.tensor([-1.0, -1.0, -1.0, -1.0])
    now = old + torch.tensor([0.0, 0.0, 0.5, -0.5])  # ratios 1, 1, 1.65, 0.61
    item = EpisodeAdvantages(
        old_log_probs=old,
        reference_log_probs=now - torch.tensor([0.0, 0.0, 0.0, 1.0]),
        advantages=torch.tensor([2.0, -2.0, 2.0, 2.0]),
    )
    parts = group_loss(now, item, GroupConfig(kl=0.1))
    ratio = torch.tensor([1.0, 1.0, 1.2, 0.6065])  # 1.65 is clipped to 1.2; 0.61 is the smaller
    surrogate = -(ratio * item.advantages)
    kl = torch.tensor([0.0, 0.0, 0.0, torch.e**-1 + 1 - 1])
    assert float(parts["kl"]) == pytest.approx(float(kl.mean()), abs=1e-4)
    expected = float(surrogate.mean() + 0.1 * kl.mean())
    assert float(parts["loss"]) == pytest.approx(expected, abs=1e-3)
    assert float(parts["clip_fraction"]) == 0.5


APART = [random_tree(seed, 3, []) for seed in (1, 2, 3)]
"""Episodes with nothing in common."""


def sharing():
    """Five episodes that part in the second reply's middle, before it, or in an observation."""
    first = random_tree(4, 4, [])
    start, end = first.replies[1]
    episodes = [first, first]
    for seed, at in enumerate((end - 1, start, end + 1)):
        other = random_tree(5 + seed, 8, []).ids
        ids = (*first.ids[:at], *other[: len(first.ids) - at])
        episodes.append(StepTree(ids, first.replies))
    return episodes


def batch(model, trees, max_tokens=10_000):
    """Groups of episodes of several turns with log-probabilities of other policies."""
    items = []
    generator = torch.Generator().manual_seed(5)
    for forest in forests(trees, max_tokens):
        with torch.no_grad():
            now = score_trees(model, pack([forest.tree])).token_log_probs
        noise = torch.randn(2, len(now), generator=generator) * 0.4
        members = [trees[i] for i in forest.members]
        turns = [torch.randn(len(tree.replies), generator=generator) for tree in members]
        rows = tuple(map(of_tokens, members, turns))
        items.append(GroupAdvantages(forest, now + noise[0], now + noise[1], rows))
    return items


def trls_loss(model, trees, items, config):
    """`GRPOTrainer._compute_loss` on the same episodes as prompts and completions, padded, with
    the observations masked out."""
    episodes = [
        pair for item in items for pair in zip(item.forest.members, item.episodes, strict=True)
    ]
    prompts = [trees[i].ids[: trees[i].replies[0][0]] for i, _ in episodes]
    rest = [trees[i].ids[len(prompt) : trees[i].trunk_length] for (i, _), prompt in
            zip(episodes, prompts, strict=True)]  # fmt: skip
    longest = max(map(len, rest))
    shape = (len(episodes), longest)
    mask, old, reference, advantages, now = (torch.zeros(shape) for _ in range(5))
    for row, ((i, item), prompt) in enumerate(zip(episodes, prompts, strict=True)):
        tree = trees[i]
        at = torch.cat([torch.arange(s, e) for s, e in tree.replies]) - len(prompt)
        mask[row, at] = 1
        old[row, at], reference[row, at] = item.old_log_probs, item.reference_log_probs
        advantages[row, at] = item.advantages
        ids = torch.tensor([tree.ids[: tree.trunk_length]])
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        tokens = logits.gather(1, ids[0, 1:, None])[:, 0][len(prompt) - 1 :]
        now = now.index_put((torch.tensor([row]), torch.arange(len(tokens))), tokens)
    zeros = torch.zeros(shape)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (now, zeros, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=config.kl,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        epsilon_low=config.clip,
        epsilon_high=config.clip_high,
        loss_type="grpo",
        use_vllm=False,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=False),
        accelerator=MagicMock(num_processes=1, gather=lambda value: value),
        use_adaptive_entropy=False,
        current_gradient_accumulation_steps=1,
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros((len(episodes), 1), dtype=torch.long),
        "prompt_mask": torch.ones((len(episodes), 1)),
        "completion_ids": torch.zeros(shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    return GRPOTrainer._compute_loss(trainer, model, inputs)


def gradients(model):
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return flat


@pytest.mark.parametrize("max_tokens", [10_000, 60])
@pytest.mark.parametrize("trees", [APART, sharing()], ids=["apart", "sharing"])
def test_loss_and_gradient_are_trls(trees, max_tokens):
    model, config = tiny_model(), GroupConfig(kl=0.04, clip=0.2, clip_high=0.28)
    items = batch(model, trees, max_tokens)
    theirs = trls_loss(model, trees, items, config)
    theirs.backward()
    expected = gradients(model)
    total, figures = loss(config)(model, items)
    (total / len(trees)).backward()
    gradient = gradients(model)
    torch.testing.assert_close(total / len(trees), theirs, atol=1e-5, rtol=0)
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()
    assert figures["clip_fraction"] > 0


def test_an_episode_counts_as_often_as_it_was_played():
    """Two equal episodes of different advantages are one sequence, and two losses."""
    model, config = tiny_model(), GroupConfig(kl=0.0)
    tree = random_tree(1, 2, [])
    (forest,) = forests([tree, tree], 100)
    assert forest.tree.length == tree.length
    with torch.no_grad():
        now = score_trees(model, pack([forest.tree])).token_log_probs
    turns = of_tokens(tree, torch.tensor([1.0, 1.0]))
    total, _ = loss(config)(model, [GroupAdvantages(forest, now, now, (turns, -turns))])
    total.backward()
    assert total.item() == pytest.approx(0.0, abs=1e-6)
    assert gradients(model).norm() < 1e-6
    total, _ = loss(config)(model, [GroupAdvantages(forest, now, now, (turns, 2 * turns))])
    assert total.item() == pytest.approx(-3.0, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollouts": {"samples": 1}}, "rollouts.samples must be at least 2"),
        ({"group": {"clip": 0.0}}, "group.clip must be above 0"),
        ({"group": {"gamma": 1.5}}, "group.gamma"),
        ({"group": {"kl": -0.1}}, "group.kl must not be below 0"),
    ],
)
@pytest.mark.parametrize("method", ["grpo", "gigpo"])
def test_what_cannot_work_is_said_before_training(method, change, message):
    config = Config(output="unused", env="unused", method=method)
    config.rollouts.samples = 4
    for section, values in change.items():
        for name, value in values.items():
            setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError, match=message):
        find(method).check(config)


def test_a_group_is_of_eight_where_nothing_else_is_said():
    config = Config(output="unused", env="unused", method="grpo")
    for method in ("grpo", "gigpo"):
        find(method).check(config)
        assert find(method).samples(config) == 8
    assert find("rft").samples(config) == 1
    config.rollouts.samples = 3
    assert find("grpo").samples(config) == find("rft").samples(config) == 3
