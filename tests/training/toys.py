"""What the tests of training share: a tiny environment, small random models and trees, and every
action scored in a sequence of its own."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stepagent.agents.encoded import encode_paths
from stepagent.training import run
from stepagent.training.trees import attention
from stepagent.training.trees.runs import Runs
from stepagent.training.trees.tree import Branch, StepTree

GUESS = "tests.envs.guess:tests/Guess-v0"
"""The guessing game."""
CONFIGS = Path(run.__file__).with_name("configs")
SWEEPS = [p.stem for p in sorted(CONFIGS.glob("*.yaml")) if "\nexperiments:" in p.read_text()]
"""The shipped configurations of sweeps."""

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny_model(kind: str = "llama", **changes: object) -> PreTrainedModel:
    """A small random model in float32, with weights large enough that attention matters."""
    torch.manual_seed(0)
    shape = {**SHAPE, "initializer_range": 0.2, **changes}
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**{"sliding_window": None, **shape})).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def random_tree(seed: int, steps: int, branch_steps: list[int]) -> StepTree:
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(96) for _ in range(rng.randint(low, high)))

    ids = tokens(5, 9)
    replies = []
    for _ in range(steps):
        ids += tokens(2, 6)
        reply = tokens(1, 5)
        replies.append((len(ids), len(ids) + len(reply)))
        ids += (*reply, 7)
    return StepTree(ids, tuple(replies), tuple(Branch(step, tokens(1, 6)) for step in branch_steps))


def rewriting_tree(seed: int, steps: int, branch_steps: list[int], anew: int = -1) -> StepTree:
    """A tree under a template that drops thoughts: a state holds the second half of each reply
    before; from step `anew` on the states begin otherwise."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(96) for _ in range(rng.randint(low, high))]

    history, paths = tokens(9, 12), []
    for step in range(steps):
        if step == anew:
            history = tokens(2, 3) + history
        history += tokens(2, 5)
        reply = tokens(4, 7)
        paths.append(([*history, 90, 91], reply))
        history = [*history, 90, *reply[len(reply) // 2 :]]
    branches = [Branch(step, tuple(tokens(1, 6))) for step in branch_steps]
    return StepTree.of(encode_paths(paths), branches)


def actions(tree: StepTree) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (state, action) of a tree, numbered as `PackedTrees` does."""
    pairs = [(tree.state(i), tree.expert(i)) for i in range(len(tree.replies))]
    return pairs + [(tree.state(b.step), b.ids) for b in tree.branches]


def plain_scores(model: PreTrainedModel, tree: StepTree) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [A] and the hidden states [A, 2, hidden] (end of state, of action), one by one."""
    sums, hidden = [], []
    for state, action in actions(tree):
        ids = torch.tensor([state + action])
        out = model(ids, output_hidden_states=True, use_cache=False)
        log_probs = out.logits[0].log_softmax(-1)
        at = torch.arange(len(state) - 1, ids.shape[1] - 1)
        sums.append(log_probs[at, ids[0, at + 1]].sum())
        hidden.append(out.hidden_states[-1][0, [len(state) - 1, -1]])
    return torch.stack(sums), torch.stack(hidden)


def ways_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills, from now on, with the ways in which trunks that branch are attended to, in order."""
    ways: list[str] = []
    whole, by_runs = attention.cascade, Runs.attend
    monkeypatch.setattr(attention, "cascade", lambda *a: (ways.append("cascade"), whole(*a))[1])
    monkeypatch.setattr(Runs, "attend", lambda *a: (ways.append("runs"), by_runs(*a))[1])
    return ways


TREES = {
    "no branch": random_tree(1, 3, []),
    "first and last step": random_tree(2, 4, [0, 3]),
    "several at one step": random_tree(3, 4, [2, 2, 2, 0]),
    "unordered, every step": random_tree(4, 5, [4, 0, 3, 1, 2, 0]),
    "one step": random_tree(5, 1, [0, 0]),
    "history rewritten": rewriting_tree(6, 5, [4, 0, 3, 1, 2, 0]),
    "history rewritten, then anew": rewriting_tree(7, 6, [5, 0, 3, 3, 1], anew=3),
    "the agent's own": replace(
        random_tree(6, 4, [1, 3, 3, 0]), experts=((5, 6), (7,), (8, 9, 10, 11), (12, 13))
    ),
}
