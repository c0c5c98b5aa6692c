"""Practice of an earlier policy: who drew it, what it counts, and that a resume changes nothing."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepagent import envs
from stepagent.agents.chat import Encoded
from stepagent.agents.generation import Decoding
from stepagent.envs.trajectory import read
from stepagent.training import run
from stepagent.training.data import encode
from stepagent.training.methods import implicit
from stepagent.training.methods.off_policy import reweighted
from stepagent.training.methods.practice import practice_trees
from stepagent.training.policy import Policy
from stepagent.training.runs.metrics import Metrics
from stepagent.training.trees.sampling import Sampling, draw_seed, practice
from tests.training.sampler.runs import losses

ENCODED = Encoded([9, 8, 1, 2, 0, 7, 3, 0], [(2, 5), (6, 8)])


@pytest.fixture
def config(config):
    config.reflection.off_policy_iterations, config.reflection.iterations = 1, 2
    config.reflection.practice = 3
    return config


def test_a_draw_counts_its_ratio_up_to_the_limit_and_the_expert_as_much_as_the_draws():
    replies = [[[1, 2, 0], [5, 0], [5, 0]], [[4, 0], [4, 0], [6, 0]]]
    [item] = practice_trees(ENCODED, replies, 1000)
    assert item.agent == (1, 0, 2, 2, 1)
    # Actions: the expert's in both states, then 5 in the first, 4 and 6 in the second.
    ratios = torch.tensor([0.5, 9.0, 1.5, 0.25, 7.0])
    [weighted] = reweighted([item], [ratios], limit=2.0)
    assert weighted.agent == (0.5, 0, 3.0, 0.5, 2.0)
    assert weighted.expert == (3.5, 2.5, 0, 0, 0)
    assert weighted.tree is item.tree


def test_trees_of_one_trajectory_share_the_experts_side():
    replies = [[[5, 0], [6, 0]], [[4, 0], [7, 0]]]
    trees = practice_trees(ENCODED, replies, 10)
    assert len(trees) == 3
    assert sum(sum(tree.expert) for tree in trees) == 4
    doubled = reweighted(trees, [torch.full((len(t.agent),), 1.5) for t in trees], limit=2.0)
    assert [tree.expert for tree in doubled] == [tuple(1.5 * n for n in t.expert) for t in trees]
    assert [tree.agent for tree in doubled] == [tuple(1.5 * n for n in t.agent) for t in trees]


@pytest.mark.parametrize("method", ["implicit", "inverse"])
def test_the_policy_before_the_updates_practises_for_the_next_iteration(method, config, tmp_path):
    config.method = method
    config.inverse.discriminator.max_accuracy = 1.1
    config.inverse.discriminator.chance_margin = -1.0
    summary = run.run(config)
    folder = Path(config.output)
    lines = [
        json.loads(x) for x in (folder / "practice/iteration-2.jsonl").read_text().splitlines()
    ]
    assert {line["policy"] for line in lines} == {"sft"}
    assert not any("policy" in line for line in _lines(folder / "practice/iteration-1.jsonl"))
    sft = Policy.load(replace(config.policy, model=str(folder / "policies/sft")))
    prompts = _samples(config, sft)
    sampling = Sampling(
        3,
        Decoding(1.0, 1.0, config.policy.max_new_tokens),
        sft.eos_ids,
        sft.codec.has_stop,
        sft.codec.stops,
    )
    for i, line in enumerate(lines[:3]):
        drawn = practice(sft.model, prompts[i], sampling, draw_seed(config.seed + 2000, i))
        assert line["replies"] == [[sft.codec.used(ids) for ids in state] for state in drawn]
    figures = summary["figures"]
    assert "off_policy_weight" not in figures["iteration-1"]
    # E[π / π_b] over draws of π_b is 1; less where it is cut at 2.
    assert 0.5 < figures["iteration-2"]["off_policy_weight"] < 1.5
    assert 0 <= figures["iteration-2"]["off_policy_truncated"] < 0.5


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _samples(config, policy):
    """The expert's trajectories of a run, as tokens."""
    trajectories = list(read(Path(config.output) / "expert" / "trajectories.jsonl"))
    env = envs.make(config.env, split="train")
    samples, _ = encode(trajectories, policy.codec, env.prompt, config.prompt, policy.context)
    env.close()
    return [sample.encoded for sample in samples]


def test_weights_are_the_ratios_of_both_policies(config, monkeypatch):
    """By hand, for the first pairs that are learned from."""
    items, reference = [], implicit.with_reference

    def keep(*args):
        items.append(reference(*args))
        return items[-1]

    monkeypatch.setattr(implicit, "with_reference", keep)
    run.run(config)
    folder = Path(config.output)
    now, then = (
        Policy.load(replace(config.policy, model=str(folder / "policies" / name)))
        for name in ("iteration-1", "sft")
    )

    def log_prob(policy, state, reply):
        ids = torch.tensor([[*state, *reply]])
        with torch.no_grad():
            table = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(float(table[len(state) - 1 + t, token]) for t, token in enumerate(reply))

    lines = [
        json.loads(x) for x in (folder / "practice/iteration-2.jsonl").read_text().splitlines()
    ]
    drawn = [tuple(ids) for line in lines for state in line["replies"] for ids in state]
    checked = 0
    for item in items[1][:4]:
        for branch, weight in zip(item.tree.branches, item.weights, strict=True):
            state = item.tree.state(branch.step)
            ratio = math.exp(log_prob(now, state, branch.ids) - log_prob(then, state, branch.ids))
            assert drawn.count(branch.ids)
            count = weight / min(2.0, ratio)
            assert count == pytest.approx(round(count), rel=1e-3)
            checked += abs(ratio - 1) > 0.01
    assert checked, "both policies say the same"


@pytest.mark.parametrize("update", [("iteration-1", 2), ("iteration-2", 1)])
def test_a_killed_run_goes_on_exactly(update, config, tmp_path, monkeypatch):
    """Also where policies are not kept: that which drew the practice is still needed."""
    run.run(config)
    expected = losses(config), load_file(Path(config.output) / "final/model.safetensors")
    config.output, config.keep_policies = str(tmp_path / "killed"), False
    log, killed = Metrics.log, []

    def kill(self, stage, number, **figures):
        log(self, stage, number, **figures)
        if (stage, number) == update and not killed:
            killed.append(update)
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "log", kill)
    with contextlib.suppress(KeyboardInterrupt):
        run.run(config)
    assert killed
    run.run(config)
    final = load_file(Path(config.output) / "final/model.safetensors")
    assert losses(config) == expected[0]
    assert all(torch.equal(final[name], expected[1][name]) for name in final)
    assert [p.name for p in (Path(config.output) / "policies").iterdir()] == ["iteration-2"]


def test_what_cannot_practise_ahead_says_so(config):
    config.reflection.states = "own"
    with pytest.raises(ValueError, match="off_policy_iterations is 1 with"):
        run.check(config)
    config.reflection.states, config.sft.epochs = "expert", 0
    with pytest.raises(ValueError, match=r"with sft\.epochs 0"):
        run.check(config)
    config.sft.epochs, config.method = 1, "dagger"
    with pytest.raises(ValueError, match="dagger does not practise ahead"):
        run.check(config)
