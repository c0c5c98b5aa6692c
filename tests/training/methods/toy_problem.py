"""A toy problem for reflection: a few states, actions of one token, a known expert distribution.

A trajectory is [state, action]. Tokens 0 to 2 are the states, 4 to 7 the actions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stepagent.agents.chat import Encoded
from stepagent.envs.trajectory import Trajectory
from stepagent.training.config import PolicyConfig
from stepagent.training.data import Sample

STATES, ACTIONS = (0, 1, 2), (4, 5, 6, 7)
EXPERT = torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0], [0.0, 0.25, 0.25, 0.5]])
"""[state, action], in quarters"""


def policy() -> Any:
    """What practice and reflection need of a policy, around a Llama of 8 tokens."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=3,
    )
    return SimpleNamespace(
        model=LlamaForCausalLM(shape).eval(),
        config=PolicyConfig(model="toy", max_new_tokens=1, device="cpu", dtype="float32"),
        device=torch.device("cpu"),
        eos_ids={3},
        has_adapter=False,
        no_step_trees="",
        codec=SimpleNamespace(has_stop=lambda ids: False, used=lambda ids: ids, stops=()),
    )


def samples() -> list[Sample]:
    """Four expert trajectories per state, in the expert's proportions."""
    samples = []
    for state, shares in zip(STATES, EXPERT, strict=True):
        for action, share in zip(ACTIONS, shares.tolist(), strict=True):
            for _ in range(round(4 * share)):
                trajectory = Trajectory("toy", f"{state}/{len(samples)}", "train", "expert", 0, ())
                samples.append(Sample(trajectory, Encoded([state, action], [(1, 2)])))
    return samples


@torch.no_grad()
def distance(model: torch.nn.Module) -> float:
    """Total variation distance to the expert, the mean of all states: 0 is equal, 1 disjoint."""
    logits = model(input_ids=torch.tensor([[s] for s in STATES])).logits[:, -1]
    shares = logits.softmax(-1)[:, list(ACTIONS)]
    rest = 1 - shares.sum(-1)  # on tokens that the expert never says
    return float(((shares - EXPERT).abs().sum(-1) + rest).mean() / 2)


@torch.no_grad()
def outside(model: torch.nn.Module) -> float:
    """Probability of tokens that the expert never says in the state, the mean of all states."""
    logits = model(input_ids=torch.tensor([[s] for s in STATES])).logits[:, -1]
    shares = logits.softmax(-1)[:, list(ACTIONS)]
    return float(1 - (shares * (EXPERT > 0)).sum(-1).mean())
