"""PPO's advantages over whole episodes, worked out by hand, and what it learns from them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stepagent.agents.chat import Encoded
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training.config import Config
from stepagent.training.data import Sample
from stepagent.training.methods import rollouts
from stepagent.training.methods.actor_critic import (
    HEAD,
    ActorCritic,
    TreeAdvantages,
    loss,
    normalised,
    step_policy,
)
from stepagent.training.methods.episode_advantages import by_value, episode_advantages
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.optimise import optimise
from stepagent.training.runs.schedule import Schedule
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.tree import StepTree
from tests.training.methods import toy_problem
from tests.training.toys import tiny_model

TOKENS = 50
"""Of each turn in the worked example"""


def _episode(turns: int, reward: float, tokens: int = TOKENS) -> Sample:
    """Turns of one observation token and `tokens` tokens of the agent."""
    generator = torch.Generator().manual_seed(turns)
    ids = torch.randint(1, 60, (turns * (tokens + 1),), generator=generator).tolist()
    spans = [(i * (tokens + 1) + 1, (i + 1) * (tokens + 1)) for i in range(turns)]
    steps = tuple(Step("o", "", "a") for _ in range(turns))
    trajectory = Trajectory("toy", "toy/1", "train", "ppo", 0, steps, reward=reward)
    return Sample(trajectory, Encoded(ids, spans))


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Returns a function that gives the advantages of some episodes, one of a task."""
    model = tiny_model()
    policy = SimpleNamespace(model=model, as_in=lambda path: nullcontext())
    stage = Stage("iteration-1", RunDirectory(tmp_path / "run", "toy"), checkpoint_seconds=1e9)

    def advantages(config: Config, episodes: list[Sample]) -> list[TreeAdvantages]:
        by_id = {id(e.trajectory): e for e in episodes}
        monkeypatch.setattr(rollouts, "play", lambda *_: [[e.trajectory] for e in episodes])
        monkeypatch.setattr(rollouts, "encode", lambda run, row: ([by_id[id(t)] for t in row], 0))
        run = SimpleNamespace(config=config, policy=policy, samples=episodes)
        actor = ActorCritic(model, config.ppo.baseline)
        return episode_advantages(run, stage, actor, tmp_path)

    return advantages


@pytest.fixture
def config(tmp_path):
    """No baseline yet: V = 0."""
    config = Config(output=str(tmp_path))
    config.ppo.critic_warmup = 0
    return config


def _at_turn_ends(item: TreeAdvantages) -> list[float]:
    return item.advantages[TOKENS - 1 :: TOKENS].tolist()


def test_a_token_s_discount_and_whitening_turn_a_success_against_itself(play, config):
    """The old way: 0.95^100, 0.95^50 and 1, whitened."""
    config.ppo.credit, config.ppo.normalise = "token", "whiten"
    (success,) = play(config, [_episode(3, 1.0)])
    assert _at_turn_ends(success) == pytest.approx([-0.56, -0.25, 3.84], abs=0.02)


def test_every_turn_of_a_success_has_its_credit(play, config):
    """λ² = 0.9025, λ = 0.95 and 1, over their root mean square, 0.9517."""
    (success,) = play(config, [_episode(3, 1.0)])
    assert _at_turn_ends(success) == pytest.approx([0.9483, 0.9983, 1.0508], abs=1e-3)
    assert success.advantages.unique().numel() == 3, "a turn's tokens share its advantage"


def test_failures_beside_a_success_leave_its_sign(play, config):
    success, failure = play(config, [_episode(3, 1.0), _episode(2, 0.0)])
    # Σ A² = 50 (0.8145 + 0.9025 + 1) over 250 tokens: spread 0.7372
    assert _at_turn_ends(success) == pytest.approx([1.2243, 1.2887, 1.3565], abs=1e-3)
    assert not failure.advantages.any()


def test_small_advantages_are_not_blown_up(play, config):
    (item,) = play(config, [_episode(1, 0.01)])
    assert _at_turn_ends(item) == pytest.approx([0.1]), "0.01 over the floor of 0.1"
    config.ppo.normalise = "none"
    (item,) = play(config, [_episode(1, 0.01)])
    assert _at_turn_ends(item) == pytest.approx([0.01])


def test_a_turn_pays_for_the_kl_of_its_tokens_and_asks_the_critic_at_its_state(config):
    sample, config.ppo.lam, config.ppo.gamma = _episode(2, 1.0, tokens=2), 0.5, 1.0
    outputs = SimpleNamespace(
        log_probs=torch.zeros(4),
        values=torch.tensor([0.2, 9.0, 0.4, 9.0]),
        action=torch.tensor([0, 0, 1, 1]),
        first=torch.tensor([0, 2]),
    )
    item = by_value(sample, outputs, torch.tensor([0.1, 0.2, 0.0, 0.3]), config.ppo)
    # rewards -0.3, 0.7; δ₂ = 0.7 - 0.4 = 0.3; δ₁ = -0.3 + 0.4 - 0.2 = -0.1; A₁ = -0.1 + 0.15
    assert item.advantages.tolist() == pytest.approx([0.05, 0.05, 0.3, 0.3])
    assert item.returns.tolist() == pytest.approx([0.25, 0.25, 0.7, 0.7])
    assert item.value_weights.tolist() == [1, 0, 1, 0]
    assert item.actions == 2


def test_normalising():
    """Draws weigh: √((1 · 1 + 3 · 4) / 4) = 1.803."""
    item = TreeAdvantages(
        StepTree((1, 2), ((1, 2),)),
        actions=1,
        weights=torch.tensor([1.0, 3.0]),
        old_log_probs=torch.zeros(2),
        advantages=torch.tensor([1.0, 2.0]),
        returns=torch.zeros(2),
        value_weights=torch.zeros(2),
    )
    ppo = Config(output="x").ppo
    (scaled,) = normalised([item], ppo)
    assert scaled.advantages.tolist() == pytest.approx([0.5547, 1.1094], abs=1e-4)
    (white,) = normalised([item], replace(ppo, normalise="whiten"))
    assert white.advantages.tolist() == pytest.approx([-1.7321, 0.5774], abs=1e-4)


def test_the_critic_is_warmed_up_before_the_first_advantages(play, config):
    """Every episode scores 1: once the critic knows, there is no advantage left."""
    episodes = [_episode(n, 1.0, tokens=4) for n in (1, 2, 3)]
    config.ppo.normalise, config.reflection.batch_size = "none", 2
    before = play(config, episodes)
    config.ppo.critic_warmup, config.ppo.critic_learning_rate = 60, 1e-2
    after = play(config, episodes)
    for cold, warm in zip(before, after, strict=True):
        assert cold.advantages.min() > 0.8
        assert warm.advantages.abs().max() < 0.2
    again = play(config, episodes)  # a run that was killed after the warm-up
    assert all(torch.equal(a.returns, b.returns) for a, b in zip(after, again, strict=True))


def test_the_critic_moves_alone_and_at_its_own_rate(play, config, tmp_path):
    (item,) = play(config, [_episode(2, 1.0, tokens=4)])
    actor = ActorCritic(tiny_model(), "value")
    policy = {n: p.clone() for n, p in actor.model.named_parameters()}
    config.reflection.learning_rate, config.ppo.critic_learning_rate = 0.0, 0.5
    stage = Stage("iteration-2", RunDirectory(tmp_path / "two", "toy"))
    step_policy(stage, actor, [item], config, kl=0.0)
    assert all(torch.equal(p, policy[n]) for n, p in actor.model.named_parameters())
    # AdamW's first step is its rate, in the direction of the gradient.
    assert actor.value_head.bias.tolist() == pytest.approx([0.5], rel=1e-4)
    assert (stage.artifacts / HEAD).is_file()


def test_entropy_is_logged_but_has_no_graph_at_weight_zero(play, config):
    (item,) = play(config, [_episode(2, 1.0, tokens=4)])
    actor = ActorCritic(tiny_model(), "group")
    with_entropy = []
    forward = actor.forward

    def watch(*args, **options):
        out = forward(*args, **options)
        with_entropy.append(out[1].requires_grad)
        return out

    actor.forward = watch
    config.ppo.baseline = "group"
    for weight in (0.0, 0.01):
        config.ppo.entropy = weight
        figures = loss(config.ppo, 0.0)(actor, (item,))[1]
        assert figures["entropy"] > 1
    assert with_entropy == [False, True]


def test_packed_trees_have_the_loss_and_gradient_of_single_ones(play, config):
    episodes = [_episode(n, n / 3, tokens=4) for n in (1, 2, 3)]
    items = play(config, episodes)
    config.ppo.entropy = 0.01
    objective, sides = loss(config.ppo, 0.05), []
    for groups in ([tuple(items)], [(item,) for item in items]):
        actor = ActorCritic(tiny_model(), "value")
        totals: dict[str, float] = {}
        for group in groups:
            total, figures = objective(actor, group)
            total.backward()
            for name, value in {"loss": float(total.detach()), **figures}.items():
                totals[name] = totals.get(name, 0.0) + value
        sides.append((totals, [p.grad for p in actor.parameters() if p.grad is not None]))
    (packed, packed_grads), (single, single_grads) = sides
    assert packed == pytest.approx(single, abs=1e-5, rel=1e-5)
    for a, b in zip(packed_grads, single_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("baseline", ["value", "group"])
def test_learns_three_turns_from_their_final_reward(monkeypatch, tmp_path, baseline):
    """In each of three states one action is right; the score at the end is the share of them."""
    config, policy = Config(output=str(tmp_path)), toy_problem.policy()
    policy.as_in = lambda path: nullcontext()
    config.ppo.baseline, config.ppo.kl, config.ppo.critic_learning_rate = baseline, 0.0, 5e-2
    config.reflection.learning_rate, config.reflection.batch_size = 5e-3, 64
    directory, scores = RunDirectory(tmp_path / "run", "toy"), []
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def play() -> list[Sample]:
        ids = torch.zeros(64, 0, dtype=torch.long)
        for state in toy_problem.STATES:
            ids = torch.cat([ids, torch.full((64, 1), state)], dim=1)
            shares = policy.model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(shares, 1, generator=generator)], dim=1)
        right = (ids[:, 1::2] == torch.tensor(toy_problem.ACTIONS[:3])).float().mean(dim=1)
        steps, spans = (Step("o", "", "a"),) * 3, [(1, 2), (3, 4), (5, 6)]
        return [
            Sample(
                Trajectory("toy", "toy/1", "train", "ppo", 0, steps, reward=reward),
                Encoded(row, spans),
            )
            for row, reward in zip(ids.tolist(), right.tolist(), strict=True)
        ]

    for number in range(1, 21):
        episodes = play()
        scores.append(sum(e.trajectory.reward for e in episodes) / 64)
        by_id = {id(e.trajectory): e for e in episodes}
        played = [[e.trajectory for e in episodes]]
        monkeypatch.setattr(rollouts, "play", lambda *_, played=played: played)
        monkeypatch.setattr(
            rollouts, "encode", lambda run, row, by_id=by_id: ([by_id[id(t)] for t in row], 0)
        )
        stage = Stage(f"iteration-{number}", directory, seed=number, checkpoint_seconds=1e9)
        actor = ActorCritic(policy.model, baseline)
        actor.load_head(directory.artifacts(f"iteration-{number - 1}") / HEAD)
        run = SimpleNamespace(config=config, policy=policy, samples=[])
        items = episode_advantages(run, stage, actor, tmp_path)
        step_policy(stage, actor, items, config, kl=0.0)
    assert scores[0] < 0.4
    assert sum(scores[-3:]) / 3 > 0.9, scores


def test_optimise_gives_each_part_its_rate_and_clips_it_by_itself(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 1), "head": torch.nn.Linear(2, 1)})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = Config(output="x").reflection
    config.learning_rate = 0.01

    def total(model, item):
        x = torch.ones(1, 2)
        return (model["body"](x) + 1000 * model["head"](x)).sum(), {}

    stage = Stage("s", RunDirectory(tmp_path / "run", ""))
    optimise(stage, model, Schedule([[0]], lambda _: 1.0), total, config, {"head": 0.1})
    for name, parameter in model.named_parameters():
        rate = 0.1 if name.startswith("head") else 0.01
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), atol=1e-6, rtol=1e-4)
