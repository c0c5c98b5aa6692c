"""Inverse against the plain way: scores, values and ratios of every action in its own sequence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.training.config import Config, PolicyConfig, PpoConfig, TinyConfig
from stepagent.training.methods import actor_critic, discriminator, inverse
from stepagent.training.methods.actor_critic import ActorCritic, TreeAdvantages
from stepagent.training.methods.discriminator import Discriminator, attach
from stepagent.training.methods.practice import (
    Practice,
    differing,
    practice_trees,
    with_expert_tokens,
)
from stepagent.training.policy import Policy
from stepagent.training.tiny import build_tokenizer
from stepagent.training.trees.packing import pack
from stepagent.training.trees.tree import Branch, StepTree
from tests.training.toys import TREES, actions, plain_scores, tiny_model

ENCODED = Encoded(ids=[9, 8, 1, 2, 0, 7, 3, 0, 4, 5, 0], replies=[(2, 5), (6, 8), (9, 11)])


def _randomise(head: torch.nn.Linear) -> None:
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(3))
        head.bias.fill_(0.3)


@pytest.mark.parametrize("name", list(TREES))
def test_discriminator_scores_equal_the_plain_way(name: str) -> None:
    model = tiny_model()
    judge = Discriminator(model)
    _randomise(judge.head)
    expected = judge.head(plain_scores(model, TREES[name])[1][:, 1]).squeeze(-1)
    torch.testing.assert_close(judge(pack([TREES[name]])), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(TREES))
def test_log_probs_values_and_entropies_equal_the_plain_way(name: str) -> None:
    model, tree = tiny_model(), TREES[name]
    actor = ActorCritic(model, "value")
    _randomise(actor.value_head)
    log_probs, entropies, values = actor(pack([tree]))
    plain_log_probs, plain_entropies, plain_values = [], [], []
    for state, action in actions(tree):
        out = model(torch.tensor([state + action]), output_hidden_states=True)
        at = torch.arange(len(state) - 1, len(state) + len(action) - 1)
        chances = out.logits[0, at].log_softmax(-1)
        plain_log_probs.append(chances.gather(1, torch.tensor(action)[:, None])[:, 0])
        plain_entropies.append(-(chances.exp() * chances).sum(-1))
        plain_values.append(actor.value_head(out.hidden_states[-1][0, at]).squeeze(-1))
    order = pack([tree]).action.argsort(stable=True)  # tokens action by action
    for from_tree, plain in (
        (log_probs, plain_log_probs),
        (entropies, plain_entropies),
        (values, plain_values),
    ):
        torch.testing.assert_close(from_tree[order], torch.cat(plain), atol=1e-4, rtol=1e-4)


def test_no_gradient_of_the_value_head_reaches_the_policy() -> None:
    model = tiny_model()
    actor = ActorCritic(model, "value")
    _randomise(actor.value_head)
    actor(pack([TREES["one step"]]))[2].sum().backward()
    assert actor.value_head.weight.grad is not None
    assert all(p.grad is None for p in model.parameters())


def _item(tree: StepTree) -> Practice:
    steps = len(tree.replies)
    agent = (0.0, *[1.0] * (steps - 1), *[2.0] * len(tree.branches))
    return Practice(tree, agent, (*[3.0] * steps, *[0.0] * len(tree.branches)))


@pytest.mark.parametrize("baseline", ["value", "group"])
def test_ratios_are_1_before_the_first_step(baseline: str) -> None:
    model, config = tiny_model(), PpoConfig(baseline=baseline, kl=1.0)
    algorithm_1 = Config(output="", ppo=config)
    algorithm_1.inverse.demonstrations = algorithm_1.inverse.informative = False
    actor = ActorCritic(model, baseline)
    items = [_item(TREES["several at one step"]), _item(TREES["unordered, every step"])]
    rewards = [torch.linspace(0, 2, len(item.agent)) for item in items]
    advantages = inverse.practice_advantages(actor, items, rewards, algorithm_1)
    for item in advantages:
        _, figures = actor_critic.loss(config, config.kl)(actor, (item,))
        assert figures["ratio"] / item.actions == pytest.approx(1, abs=1e-5)
        assert figures["clip_fraction"] == 0
        assert figures["kl"] == pytest.approx(0, abs=1e-6)
    weights = torch.cat([i.weights for i in advantages])
    values = torch.cat([i.advantages for i in advantages])
    assert float((weights * values).sum()) == pytest.approx(0, abs=1e-3), "whitened"
    assert float((weights * values**2).sum() / weights.sum()) == pytest.approx(1, abs=1e-3)


def test_group_means_are_over_all_draws_in_a_state() -> None:
    # State 0: the expert's own action once (reward 1), a branch twice (reward 4): (1 + 8) / 3
    tree = StepTree((9, 8, 1, 7, 3), ((2, 3), (4, 5)), (Branch(0, (5,)), Branch(1, (6,))))
    item = Practice(tree, (1.0, 0.0, 2.0, 3.0), (3.0, 3.0, 0.0, 0.0))
    draws, rewards = torch.tensor(item.agent), torch.tensor([1.0, 9.0, 4.0, 2.0])
    [means] = inverse.group_means([item], [draws], [rewards])
    assert means.tolist() == [3.0, 2.0, 3.0, 2.0]


REPLIES = [
    [[1, 2, 0], [5, 0], [5, 0]],
    [[3, 0], [3, 0], [3, 0]],
    [[6, 6, 0], [4, 0], [5, 0]],
]


@pytest.mark.parametrize("limit", [1000, 15, 14])
def test_every_action_counts_once_however_the_tree_is_split(limit: int) -> None:
    parts = practice_trees(ENCODED, REPLIES, limit)
    assert all(part.tree.length <= limit for part in parts)
    assert (len(parts) == 1) == (limit == 1000)
    assert sum(part.draws for part in parts) == 9
    assert sum(sum(part.expert) for part in parts) == 9
    seen: dict[tuple[int, tuple[int, ...]], float] = {}
    for part in parts:
        tree = part.tree
        keys = [(i, tuple(tree.ids[a:b])) for i, (a, b) in enumerate(tree.replies)]
        keys += [(b.step, b.ids) for b in tree.branches]
        for key, count in zip(keys, part.agent, strict=True):
            seen[key] = seen.get(key, 0) + count
    drawn = {(i, tuple(ids)) for i, row in enumerate(REPLIES) for ids in row}
    assert {k for k, count in seen.items() if count} == drawn
    assert seen[(1, (3, 0))] == 3
    assert seen[(0, (5, 0))] == 2


def test_a_trajectory_where_the_agent_is_the_expert_still_counts() -> None:
    replies = [[ENCODED.ids[a:b]] for a, b in ENCODED.replies]
    [part] = practice_trees(ENCODED, replies, 1000)
    assert part.agent == part.expert == (1.0, 1.0, 1.0)


def test_a_trunk_over_the_limit_is_said() -> None:
    with pytest.raises(ValueError, match="limit of 5"):
        practice_trees(ENCODED, REPLIES, 5)


@pytest.fixture(scope="module")
def tiny() -> Policy:
    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu", dtype="float32")
    config.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=64)
    return Policy.tiny(config, ["go north open door a b c"], seed=0)


def test_an_adapter_beside_the_policys_own(tiny: Policy, tmp_path) -> None:
    """On a LoRA policy the discriminator shares the base, leaves the policy alone and goes."""
    tiny.save(tmp_path / "base")
    config = PolicyConfig(model=str(tmp_path / "base"), device="cpu", dtype="float32")
    config.lora.r, config.max_new_tokens = 4, 5
    policy = Policy.load(config)
    judge_config = Config(output="x").inverse.discriminator
    tree = StepTree((9, 8, 1, 7, 3), ((2, 3), (4, 5)), (Branch(0, (5,)),))
    actor = ActorCritic(policy.model, "group")
    before = actor.outputs(tree).log_probs
    with attach(policy, judge_config, tmp_path / "none", seed=0) as judge:
        with judge.active():
            trained = [n for n, p in judge.named_parameters() if p.requires_grad]
            assert all("discriminator" in n or n.startswith("head") for n in trained)
            assert any("lora" in n for n in trained)
            with torch.no_grad():
                for parameter in judge.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1)
        item = Practice(tree, (1.0, 1.0, 1.0), (1.0, 1.0, 0.0))
        scores = judge.score(item)
        judge.save(tmp_path / "judge.safetensors")
        policy.save(tmp_path / "policy")
        torch.testing.assert_close(actor.outputs(tree).log_probs, before)
    assert not (tmp_path / "policy" / "discriminator").exists()
    assert list(policy.model.peft_config) == ["default"]
    assert all("default" in n for n, p in policy.model.named_parameters() if p.requires_grad)
    with attach(policy, judge_config, tmp_path / "none", seed=0) as judge:
        new = judge.score(item)
        assert len(set(new.tolist())) > 1, "the head lets the backbone learn"
        assert (new - scores).abs().max() > 1e-3
        judge.load(tmp_path / "judge.safetensors")
        torch.testing.assert_close(judge.score(item), scores)
    with attach(policy, judge_config, tmp_path / "none", seed=0) as judge:
        assert torch.equal(judge.score(item), new), "the same in every process"
    judge_config.rank = 0
    with (
        pytest.raises(ValueError, match="rank is 0"),
        attach(policy, judge_config, tmp_path, seed=0),
    ):
        pass


def test_a_backbone_of_its_own_reads_in_its_own_tokens(tiny: Policy, tmp_path) -> None:
    other = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu")
    other.tiny = TinyConfig(hidden_size=16, layers=1, heads=2, vocabulary=270, context=99)
    Policy.tiny(other, ["x y z"], seed=1).save(tmp_path / "small")
    judge_config = replace(
        Config(output="x").inverse.discriminator, backbone=str(tmp_path / "small")
    )
    messages = [
        {"role": "user", "content": "obs"},
        {"role": "assistant", "content": "go north"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "open door"},
    ]
    encoded = tiny.codec.encode(messages)
    replies = [[tiny.codec.reply_ids("a b"), tiny.codec.reply_ids("go north")]] * 2
    [item] = practice_trees(encoded, replies, 999)
    with attach(tiny, judge_config, tmp_path, seed=0) as judge:
        translated = judge.translate(item, messages, tiny.codec)
        assert judge.codec is not None
        assert judge.codec.decode(translated.tree.branches[0].ids) == "a b"
        start, end = translated.tree.replies[1]
        assert judge.codec.decode(translated.tree.ids[start:end]) == "open door"
        assert translated.agent == item.agent
        assert judge.score(translated).shape == (len(item.agent),)


@pytest.mark.parametrize(("practice", "temperature"), [(1, 1.0), (3, 0.0)])
def test_a_group_of_one_is_no_baseline(practice: int, temperature: float) -> None:
    config = Config(output="x", method="inverse")
    config.ppo.baseline = "group"
    config.reflection.practice, config.reflection.temperature = practice, temperature
    with pytest.raises(ValueError, match=r"ppo.baseline is group"):
        inverse.check(config)
    config.ppo.baseline = "value"
    inverse.check(config)


def test_health_by_hand() -> None:
    # The agent's one action D = 3/4, the expert's D = 1/4.
    tree = StepTree((9, 8, 1), ((2, 3),), (Branch(0, (5,)),))
    item = Practice(tree, (0.0, 1.0), (1.0, 0.0))
    logit = torch.tensor([3.0, -3.0]).sign() * torch.log(torch.tensor(3.0))
    figures = discriminator.health([item], [-logit], discriminator.rewards_of([-logit], "log_d"))
    assert figures["agent_accuracy"] == figures["expert_accuracy"] == 1
    assert figures["agent_reward"] == pytest.approx(0.287682, abs=1e-5)
    assert figures["expert_reward"] == pytest.approx(1.386294, abs=1e-5)
    assert figures["reward_gap"] == pytest.approx(1.098612, abs=1e-5)
    assert figures["discriminator_entropy"] == pytest.approx(0.562335, abs=1e-5)
    alone = replace(Config(output="x").inverse, demonstrations=False)
    assert discriminator.verdict(1, 1, alone)


# State 0: the expert took (1,), the agent (1,) once and (5,) twice. State 1: three times (3,).
DIFFERS = StepTree((9, 8, 1, 7, 3), ((2, 3), (4, 5)), (Branch(0, (5,)),))
PRACTICE = Practice(DIFFERS, (1.0, 3.0, 2.0), (3.0, 3.0, 0.0))


def test_differing_draws_leave_out_what_both_sides_share() -> None:
    left = differing(PRACTICE)
    assert left.agent == (0.0, 0.0, 2.0)
    assert left.expert == (2.0, 0.0, 0.0)
    assert left.pairs == 2
    assert differing(Practice(DIFFERS, (1.0, 3.0, 0.0), (3.0, 3.0, 0.0))).draws == 0


def _advantages(rewards: list[float], **changes: bool) -> list[TreeAdvantages]:
    config = Config(output="", ppo=PpoConfig(baseline="group"))
    config.inverse = replace(config.inverse, **changes)
    actor = ActorCritic(tiny_model(), "group")
    return inverse.practice_advantages(actor, [PRACTICE], [torch.tensor(rewards)], config)


def test_only_draws_with_an_advantage_count_by_hand() -> None:
    [item] = _advantages([3.0, 5.0, 0.0], demonstrations=False)
    # The group of state 0: 3, 0, 0, mean 1. State 1 has no spread: its three draws count nothing.
    assert item.actions == 3
    spread = math.sqrt((4 + 1 + 1) / 3)
    of_action = dict(zip(pack([DIFFERS]).action.tolist(), item.advantages.tolist(), strict=True))
    assert of_action == pytest.approx({0: 2 / spread, 1: 0.0, 2: -1 / spread})
    assert item.weights.tolist() == [1.0, 0.0, 2.0]


def test_the_experts_action_is_one_more_member_where_the_agent_took_another() -> None:
    [item] = _advantages([3.0, 5.0, 0.0], demonstrations=True)
    # State 0: 3, 3, 0, 0 with the expert's own, mean 1.5, all differences 1.5.
    assert item.actions == 4
    assert item.weights.tolist() == [2.0, 0.0, 2.0]
    assert sorted(item.advantages.tolist()) == pytest.approx([-1.0, 0.0, 1.0])


def test_the_experts_action_earns_no_less_than_any_other_in_its_state() -> None:
    # Branch 2 hangs in state 0, whose expert's action is 0; the others keep what D said.
    for judged, leading in ([1.0, 5.0, 3.0], [3.0, 5.0, 3.0]), ([4.0, 0.0, 3.0], [4.0, 0.0, 3.0]):
        assert inverse.expert_leads(PRACTICE, torch.tensor(judged)).tolist() == leading


def test_a_judge_of_pairs_is_centred_in_each_state() -> None:
    logits = discriminator.centred(torch.tensor([1.0, 7.0, 4.0]), DIFFERS)
    assert logits.tolist() == [-1.5, 0.0, 1.5]


def test_where_no_draw_has_an_advantage_nothing_is_left() -> None:
    assert _advantages([1.0, 1.0, 1.0], demonstrations=True) == []


def test_the_oracle_reads_actions_as_the_environment_does() -> None:
    tokenizer = build_tokenizer(["Thought: It is near. Action: go north south"], 300, 128)
    codec = ChatCodec(tokenizer)
    messages = [
        {"role": "user", "content": "obs"},
        {"role": "assistant", "content": "Thought: It is near.\nAction: go north"},
    ]
    encoded = codec.encode(messages)
    other_thought = codec.reply_ids("Thought: Why not.\nAction: go north")
    other_action = codec.reply_ids("Thought: It is near.\nAction: go south")
    replies = [[other_thought, other_action]]
    [item] = practice_trees(encoded, replies, 999)
    assert inverse.oracle_rewards(item, codec).tolist() == [1.0, 1.0, 0.0]
    [same] = practice_trees(encoded, with_expert_tokens(encoded, replies, codec), 999)
    assert same.draws_of_expert == 1
    assert [branch.ids for branch in same.tree.branches] == [tuple(other_action)]


def test_spectral_norm_bounds_the_head() -> None:
    judge = Discriminator(tiny_model(), max_norm=0.5)
    _randomise(judge.head)
    with torch.no_grad():
        judge.head.bias.zero_()
    tree = TREES["first and last step"]
    bounded = judge(pack([tree]))
    judge.max_norm = 0.0
    free = judge(pack([tree]))
    torch.testing.assert_close(bounded, free * 0.5 / judge.head.weight.norm())
