"""Templates that rewrite history: what is learned equals one sequence of its own for every step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stepagent import envs
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Step, Trajectory, read, write
from stepagent.eval.rollout import run_episodes
from stepagent.training import collect, run
from stepagent.training.config import Config, PolicyConfig, ReflectionConfig
from stepagent.training.data import Sample, encode
from stepagent.training.methods import (
    actor_critic,
    discriminator,
    implicit,
    inverse,
    preference,
    sft,
)
from stepagent.training.methods.actor_critic import ActorCritic
from stepagent.training.methods.losses import discriminator_loss, ppo_loss, step_dpo_loss
from stepagent.training.methods.practice import Practice, practise
from stepagent.training.methods.preference import Pair
from stepagent.training.policy import Policy
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.rows import Rows
from tests import toy_env
from tests.agents.conversations import turn
from tests.agents.families import FAMILIES, Family
from tests.agents.tiny_models import make_model

PROMPT = Prompt("You act in a house. Say what you do.", (("A door.", "It is shut.", "open"),))
STYLE = PromptStyle()
NAMES = ("Qwen3", "DeepSeek-R1 and distillates", "Mistral 7B v0.3")
"""Drops thoughts; opens them in the prompt and drops them; moves the system message."""


def family(name: str) -> Family:
    return next(f for f in FAMILIES if f.name == name)


def make_policy(name: str, kind: str = "llama", **changes: Any) -> Policy:
    tokenizer = family(name).tokenizer()
    config = PolicyConfig(model="tiny", max_new_tokens=8, device="cpu", dtype="float32")
    model = make_model(kind, len(tokenizer), eos_token_id=tokenizer.eos_token_id, **changes)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Policy(model, tokenizer, config)


def trajectories(name: str, steps: int = 4) -> list[Trajectory]:
    opening = "" if family(name).thinks == "opened" else "<think>\n"
    return [
        Trajectory(
            "tests/House-v0",
            f"house/{task}",
            "train",
            "expert",
            0,
            tuple(
                Step(
                    f"You see a red apple on table {i + task}.",
                    "",
                    f"go {i}",
                    reply=f"{opening}Apple {i}, so I go on and on.\n</think>\n\nAction: go {i}",
                )
                for i in range(steps)
            ),
        )
        for task in range(3)
    ]


def make_samples(policy: Policy, name: str) -> list[Sample]:
    found, left_out = encode(trajectories(name), policy.codec, PROMPT, STYLE, policy.context)
    assert not left_out
    return found


@pytest.fixture
def stage(tmp_path):
    return Stage("s", RunDirectory(tmp_path, ""), seed=3)


def log_prob(model: Any, state: list[int], reply: list[int]) -> torch.Tensor:
    """float32 [tokens]: of a reply in its state, in a sequence of its own."""
    ids = torch.tensor(reply)
    return distributions(model, state, reply).gather(-1, ids[:, None])[:, 0]


def distributions(model: Any, state: list[int], reply: list[int]) -> torch.Tensor:
    """float32 [tokens, vocabulary]: log-probabilities at each token of a reply."""
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([[*state, *reply]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(state) - 1 : -1].float()
    return logits.log_softmax(-1)


def experts(policy: Policy, name: str) -> list[tuple[list[int], list[int]]]:
    """Every (state, reply) of the trajectories, as the template itself gives it."""
    pairs = []
    for trajectory in trajectories(name):
        messages = trajectory.messages(PROMPT, STYLE)
        for i in range(2, len(messages), 2):
            prompt = policy.codec.prompt(messages[:i])
            pairs.append((prompt, policy.codec.reply_ids(messages[i]["content"])))
    return pairs


by_template = pytest.mark.parametrize("name", NAMES)


@by_template
def test_practice_and_training_see_the_same_ids(name: str, stage: Stage):
    """And so does an agent that acts."""
    policy = make_policy(name)
    samples, steps = make_samples(policy, name), iter(experts(policy, name))
    agent = TransformersAgent(policy.model, policy.tokenizer, max_new_tokens=8)
    for sample in samples:
        assert sample.encoded.joins, "the template rewrites history"
        messages = sample.trajectory.messages(PROMPT, STYLE)
        for step, (start, end) in enumerate(sample.encoded.replies):
            state, reply = next(steps)
            assert sample.encoded.state(step) == state
            assert sample.encoded.ids[start:end] == reply
            acted = agent._requests([turn("t", messages[: 2 + 2 * step])])
            assert acted[0].ids == state
    rows = practise(stage, policy, samples, ReflectionConfig(practice=1, temperature=0.0))
    for sample, row in zip(samples, rows, strict=True):
        for item in row:
            for branch in item.tree.branches:
                state = torch.tensor([sample.encoded.state(item.first_step + branch.step)])
                assert list(item.tree.state(branch.step)) == state[0].tolist()
                policy.model.set_attn_implementation("sdpa")
                out = policy.model.generate(
                    state,
                    attention_mask=torch.ones_like(state),
                    max_new_tokens=8,
                    do_sample=False,
                    eos_token_id=sorted(policy.eos_ids),
                    pad_token_id=0,
                )
                greedy = out[0, state.shape[1] :].tolist()
                assert greedy[: len(branch.ids)] == list(branch.ids)


@by_template
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_sft_equals_one_sequence_per_step(name: str, kind: str, stage: Stage):
    policy = make_policy(name, kind, **({"sliding_window": 60} if kind == "mistral" else {}))
    policy.model.train()
    layout = Rows.of(policy.model, [s.encoded for s in make_samples(policy, name)])
    assert layout.packed
    plain = torch.cat([log_prob(policy.model, *pair) for pair in experts(policy, name)])
    expected = -plain.mean()
    expected.backward()
    gradient = gradients(policy)
    config = Config(output="").sft
    config.epochs, config.batch_size, config.microbatch_size, config.learning_rate = 1, 16, 16, 0.0
    policy = make_policy(name, kind, **({"sliding_window": 60} if kind == "mistral" else {}))
    sft.train(stage, policy, make_samples(policy, name), config)
    line = the_update(stage)
    assert line["loss"] == pytest.approx(float(expected.detach()), abs=1e-4)
    assert line["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-3)


def the_update(stage: Stage) -> dict[str, Any]:
    """What the stage's one update logged."""
    [line] = stage.directory.metrics.path.read_text().splitlines()
    return json.loads(line)


def gradients(policy: Policy) -> torch.Tensor:
    found = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
    policy.model.zero_grad()
    return torch.cat(found)


def test_a_model_that_cannot_branch_reads_every_step_alone(stage: Stage):
    policy = make_policy(NAMES[0], "mamba")
    samples = make_samples(policy, NAMES[0])
    layout = Rows.of(policy.model, [s.encoded for s in samples])
    rows = [row for sample in samples for row in layout.split(sample.encoded)]
    assert [(r.ids[: r.replies[0][0]], r.ids[r.replies[0][0] :]) for r in rows] == experts(
        policy, NAMES[0]
    )
    assert not any(row.joins for row in rows)
    with pytest.raises(ValueError, match="rewrites history"):
        preference.train(stage, policy, [Pair(*samples[:2])], Config(output="").preference)


def actions(item: Practice) -> list[tuple[list[int], list[int]]]:
    tree = item.tree
    own = [(list(tree.state(i)), list(tree.ids[a:b])) for i, (a, b) in enumerate(tree.replies)]
    return own + [(list(tree.state(b.step)), list(b.ids)) for b in tree.branches]


def practices(stage: Stage, policy: Policy, name: str) -> list[Practice]:
    config = ReflectionConfig(practice=2)
    rows = practise(stage, policy, make_samples(policy, name), config)
    items = [item for row in rows for item in row]
    assert sum(len(item.tree.branches) for item in items) > 12
    return items


@by_template
def test_implicit_equals_one_sequence_per_step(name: str, stage: Stage):
    policy = make_policy(name)
    items = practices(stage, policy, name)
    pairs = implicit.with_reference(stage, policy, items)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape).sign())
    loss = implicit.loss(ReflectionConfig())
    packed = sum(loss(policy.model, [item])[0] for item in pairs)
    packed.backward()
    gradient = gradients(policy)
    plain = torch.zeros(())
    for item in pairs:
        tree = item.tree
        states = [list(tree.state(b.step)) for b in tree.branches]
        spans = [tree.replies[b.step] for b in tree.branches]
        chosen, rejected = (
            torch.stack(
                [log_prob(policy.model, s, r).sum() for s, r in zip(states, side, strict=True)]
            )
            for side in (
                [list(tree.ids[a:b]) for a, b in spans],
                [list(b.ids) for b in tree.branches],
            )
        )
        reference = (torch.tensor(item.reference_chosen), torch.tensor(item.reference_rejected))
        out = step_dpo_loss(
            chosen, rejected, *reference, beta=0.1, weights=torch.tensor(item.weights)
        )
        plain = plain + out.loss * item.count()
    assert float(packed) == pytest.approx(float(plain), abs=1e-4 * len(pairs))
    plain.backward()
    difference = (gradients(policy) - gradient).norm()
    assert difference <= 1e-3 * gradient.norm()


@by_template
def test_inverse_equals_one_sequence_per_step(name: str, stage: Stage, tmp_path):
    """The discriminator's loss and PPO's, over the same practice."""
    policy = make_policy(name)
    items = practices(stage, policy, name)
    config = Config(output="")
    config.inverse.discriminator.rank, config.ppo.baseline = 0, "group"
    policy.save(tmp_path / "entering")
    with discriminator.attach(
        policy, config.inverse.discriminator, tmp_path / "entering", seed=0
    ) as judge:
        logits = [judge.score(item) for item in items]
        for item, of_item in zip(items, logits, strict=True):
            judge.backbone.set_attn_implementation("sdpa")
            alone = []
            for (state, action), logit in zip(actions(item), of_item, strict=True):
                out = judge.backbone(torch.tensor([state + action]), output_hidden_states=True)
                alone.append(judge.head(out.hidden_states[-1][0, -1]).reshape(()).detach())
                assert float(logit) == pytest.approx(float(alone[-1]), abs=1e-4)
            agent, expert = torch.tensor(item.agent), torch.tensor(item.expert)
            expected = discriminator_loss(torch.stack(alone), agent, expert).loss
            found = discriminator.loss(config.inverse.discriminator)(judge, [item])[0]
            assert float(found) == pytest.approx(float(expected), abs=1e-4)
    rewards = discriminator.rewards_of(logits, "log_d")
    actor = ActorCritic(policy.model, "group")
    for advantages in inverse.practice_advantages(actor, items, rewards, config):
        tree = advantages.tree
        item = next(item for item in items if item.tree == tree)
        alone = torch.cat([log_prob(policy.model, *pair) for pair in actions(item)])
        torch.testing.assert_close(advantages.old_log_probs, alone.detach(), atol=1e-4, rtol=0)
        rows = torch.cat([distributions(policy.model, *pair) for pair in actions(item)])
        plain = ppo_loss(
            alone,
            advantages.old_log_probs,
            advantages.advantages,
            advantages.weights,
            -(rows.exp() * rows).sum(-1),
            clip=config.ppo.clip,
            kl=config.ppo.kl,
            entropy=config.ppo.entropy,
        )
        found, _ = actor_critic.loss(config.ppo, config.ppo.kl)(actor, (advantages,))
        assert float(found) == pytest.approx(float(plain.loss), abs=1e-4)
        found.backward()
        gradient = gradients(policy)
        plain.loss.backward()
        assert (gradients(policy) - gradient).norm() <= 1e-3 * gradient.norm()


@by_template
def test_preference_equals_one_sequence_per_step(name: str, stage: Stage):
    policy = make_policy(name)
    samples = make_samples(policy, name)
    config = Config(output="").preference
    config.epochs, config.batch_size, config.learning_rate, config.iterations = 1, 2, 0.0, 1
    pairs = [Pair(samples[0], samples[1]), Pair(samples[1], samples[2])]
    references = preference._references(stage, policy, pairs)

    def plainly() -> list[torch.Tensor]:
        return [
            torch.cat(
                [
                    log_prob(policy.model, s.encoded.state(i), s.encoded.ids[a:b])
                    for i, (a, b) in enumerate(s.encoded.replies)
                ]
            ).sum()
            for s in samples
        ]

    def close(sums: torch.Tensor) -> Any:
        # A hundred tokens' log-probabilities add up to some -700: float32 is that far apart there.
        return pytest.approx(float(sums), abs=2 * float(np.spacing(np.float32(abs(float(sums))))))

    reference = [sums.detach() for sums in plainly()]
    assert references[0]["ref_chosen_logps"] == close(reference[0])
    assert references[1]["ref_rejected_logps"] == close(reference[2])
    with torch.no_grad():  # moved away from its reference
        torch.manual_seed(1)
        for parameter in policy.model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape).sign())
    now = plainly()
    ratios = [a - b for a, b in zip(now, reference, strict=True)]
    margins = config.beta * torch.stack([ratios[0] - ratios[1], ratios[1] - ratios[2]])
    assert margins.abs().max() > 0.01
    expected = -F.logsigmoid(margins).mean()
    expected.backward()
    gradient = gradients(policy)
    preference.train(stage, policy, pairs, config)
    line = the_update(stage)
    assert line["loss"] == pytest.approx(float(expected.detach()), abs=1e-4)
    assert line["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert line["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-3)


@by_template
@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_a_run_from_end_to_end(name: str, method: str, config: Config, tmp_path: Path):
    """SFT, one iteration and scores; what is played under the policy's template."""
    make_policy(name).save(tmp_path / "model")
    config.policy.model, config.policy.template = str(tmp_path / "model"), {"date": "2025-01-31"}
    config.method, config.env, config.env_args = method, toy_env.ID, {"size": 6}
    config.reflection.iterations, config.evaluation.every_iteration = 1, False
    config.evaluation.limit = 2
    config.inverse.discriminator.chance_margin = -1.0  # so small a one may know nothing
    played = collect.Config(toy_env.ID, tmp_path / "expert", env_args=config.env_args, limit=4)
    expert = read(collect.collect(played))
    opening = "" if family(name).thinks == "opened" else "<think>\n"
    thinking = [
        replace(
            t,
            steps=tuple(
                replace(s, reply=f"{opening}Then {s.action}.\n</think>\n\n{s.action}")
                for s in t.steps
            ),
        )
        for t in expert
    ]
    config.expert.trajectories = str(tmp_path / "thinking.jsonl")
    write(tmp_path / "thinking.jsonl", thinking)
    summary = run.run(config)
    figures = summary["figures"]["iteration-1"]
    assert figures["practised"] > 0
    assert summary["template"] == {"date": "2025-01-31"}
    [score] = summary["scores"].values()
    assert score["fingerprint"]["agent.template"] == '{"date": "2025-01-31"}'


@by_template
def test_what_the_policy_drew_is_learned(name: str, config: Config, monkeypatch: Any):
    """An episode's replies are the tokens drawn, in the states that were shown."""
    policy = make_policy(name)
    policy.config.max_new_tokens = 12
    config.env, config.env_args, config.rollouts.temperature = toy_env.ID, {"size": 6}, 2.0
    agent = TransformersAgent(
        policy.model,
        policy.tokenizer,
        temperature=2.0,
        max_new_tokens=12,
        record_tokens=True,
        example=False,
    )
    shown, requests = [], agent._requests

    def record(turns: Any) -> Any:
        made = requests(turns)
        shown.extend(request.ids for request in made)
        return made

    monkeypatch.setattr(agent, "_requests", record)
    episodes = list(run_episodes(toy_env.ID, agent, ["odd/7"], workers=1))
    style = PromptStyle(example=False)
    prompt = envs.make(toy_env.ID).prompt
    [sample], _ = encode(episodes, policy.codec, prompt, style, policy.context)
    drawn = [step.tokens for step in sample.trajectory.steps]
    assert len(drawn) > 5
    learned = [tuple(sample.encoded.ids[a:b]) for a, b in sample.encoded.replies]
    # What follows the action is not kept, and a reply may have nothing that is.
    same = [ids == step[: len(ids)] for ids, step in zip(learned, drawn, strict=True)]
    assert sum(same) >= len(same) - 1
    assert any(ids == step for ids, step in zip(learned, drawn, strict=True))
    assert [sample.encoded.state(i) for i in range(len(learned))] == shown
