"""Speed under a chat template that drops earlier thoughts.

A trajectory in one pass, in which it branches, against a sequence of its own for every step, as
such templates otherwise have to be trained.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.envs.react import Prompt, PromptStyle, render
from stepagent.envs.trajectory import Trajectory
from stepagent.eval.benches import Row, measure
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import StepTree

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.role != 'assistant' else m.content.split('</think>')[-1].lstrip() }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, as Qwen3 writes it: thoughts of earlier turns are dropped."""


def encode(trajectory: Trajectory, tokenizer: Any, prompt: Prompt) -> Encoded:
    """The trajectory with its thoughts in `<think>`, under `TEMPLATE`."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    steps = [
        replace(s, reply=f"<think>\n{s.thought}\n</think>\n\n{render('', s.action)}")
        for s in trajectory.steps
    ]
    thinking = replace(trajectory, steps=tuple(steps))
    return ChatCodec(tokenizer).encode(thinking.messages(prompt, PromptStyle()))


def rows(model: Any, encoded: Encoded, repeats: int) -> list[Row]:
    """Forward and backward of the SFT loss, both ways."""
    packed = [StepTree.of(part) for _, part in encoded.parts()]
    plain = [StepTree.of(encoded.alone(step)) for step in range(len(encoded.replies))]
    ours, theirs = measure(
        functools.partial(_loss, model, packed), functools.partial(_loss, model, plain), repeats
    )
    tokens = (sum(tree.length for tree in trees) for trees in (packed, plain))
    counts = "{} tokens packed, {} plain".format(*tokens)
    name = f"SFT, thoughts dropped from history, {len(plain)} steps ({counts})"
    losses = [_loss(model, trees) for trees in (packed, plain)]
    return [
        Row.less_is_better(name, ours, theirs, "s forward and backward"),
        Row("its loss (baseline: plain)", losses[0], losses[1], 1.0, "nats"),
    ]


def _loss(model: Any, trees: Sequence[StepTree]) -> float:
    """Mean over the reply tokens; gradients are made and dropped."""
    total = 0.0
    count = sum(end - start for tree in trees for start, end in tree.replies)
    for tree in trees:
        loss = -score_trees(model, pack([tree], model.device)).token_log_probs.sum() / count
        loss.backward()
        total += float(loss.detach())
    model.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return total
