"""`make gpu-check`: what CPUs cannot test, in one script of a few minutes on one GPU.

    python -m stepagent.training.benchmarks.gpu_check --out build/gpu-check.json

Parity of FlexAttention, blocks and plain sequences, its compiled backward pass too; then, for the
shapes of SmolLM2-135M (all weights, under autocast) and Llama-3-8B (LoRA), with random weights on a
trajectory of 40 steps and 4,000 tokens: practice, reflection and an iteration of Inverse against
the plain way. Needs nothing but torch and what training needs: no weights, no environment, no
network.

Each section is written as soon as it is done, and not done again: the same command goes on after a
kill. On a CPU the same code runs with a model of a few thousand weights.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from stepagent.agents.encoded import Encoded
from stepagent.agents.generation import Decoding
from stepagent.command_line import Command
from stepagent.files import read_object, write_text
from stepagent.training.benchmarks import inverse
from stepagent.training.config import Config as RunConfig
from stepagent.training.config import LoraSettings, PolicyConfig
from stepagent.training.methods.actor_critic import ActorCritic
from stepagent.training.methods.discriminator import attach
from stepagent.training.methods.practice import practice_trees
from stepagent.training.policy import Policy, adapted, compute_in_bfloat16
from stepagent.training.runs.times import flops_per_token, peak_flops
from stepagent.training.tiny import build_tokenizer
from stepagent.training.trees.packing import pack
from stepagent.training.trees.sampling import Sampling, practice
from stepagent.training.trees.scoring import Attention, score_trees
from stepagent.training.trees.tree import Branch, StepTree


@dataclass(frozen=True)
class Shape:
    """A model with random weights, and the work that it is measured on."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    rank: int
    """Rank of the adapter; 0 trains all weights."""
    steps: int = 40
    state: int = 75
    """Tokens between two replies."""
    reply: int = 25
    plain_every: int = 8
    """The plain way is measured in one of this many states, and its time multiplied by it."""


SHAPES = {
    "cuda": {
        "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, rank=0),
        "llama-3-8b": Shape(32, 4096, 14336, 32, 8, 128256, rank=16),
    },
    "cpu": {
        "tiny": Shape(2, 32, 64, 2, 1, 300, rank=0, steps=6, state=8, reply=4, plain_every=2),
        "tiny-lora": Shape(2, 32, 64, 2, 1, 300, rank=2, steps=6, state=8, reply=4, plain_every=2),
    },
}


@dataclass
class Config:
    """Checks step trees on a GPU, and measures them there."""

    out: Path = Path("build/gpu-check.json")
    """JSON file, written section by section. Sections that it already holds are not done again."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`cpu` runs the same code on tiny models, as a test of the script."""


def run(config: Config) -> int:
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    report, console = read_object(config.out), Console()
    for name, section in _sections(device):
        if name not in report:
            report[name] = section()
            write_text(config.out, json.dumps(report, indent=1) + "\n")
        console.print(f"{name}: {json.dumps(report[name])}", markup=False, soft_wrap=True)
    return 0 if all(row["passed"] for row in report["parity"]) else 1


def _sections(device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "machine", lambda: _machine(device)
    yield "parity", lambda: _parity(device)
    for name, shape in SHAPES[device.type].items():
        measured = (("practice", _practice), ("reflection", _reflection), ("inverse", _inverse))
        for title, work in measured:
            yield f"{title}, {name}", functools.partial(_alone, work, shape, device)


def _machine(device: torch.device) -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    return {"gpu": gpu, "torch": torch.__version__, "python": sys.version.split()[0]}


# Parity -----------------------------------------------------------------------------------------


def _parity(device: torch.device) -> list[dict[str, Any]]:
    """Log-probabilities and gradients of each way against plain sequences in float32.

    FlexAttention has no backward pass on a CPU.
    """
    shape = Shape(2, 256, 512, 4, 2, 500, rank=0, steps=12, state=30, reply=12)
    tree = trajectory(shape)
    exact = _model(shape, device, torch.float32)
    expected, gradient = _scored(exact, tree, None)
    rows = []
    ways: list[Attention] = ["blocks", "flex"]
    for dtype, way in itertools.product((torch.float32, torch.bfloat16), ways):
        model = _model(shape, device, dtype)
        backward = way == "blocks" or device.type == "cuda"
        scores, own = _scored(model, tree, way, backward)
        difference = float((scores - expected).abs().max() / expected.abs().mean())
        of_gradient = float((own - gradient).norm() / gradient.norm()) if backward else None
        limit = 1e-3 if dtype == torch.float32 else 0.1
        rows.append(
            {
                "way": way,
                "dtype": str(dtype).removeprefix("torch."),
                "log_probs": difference,
                "gradient": of_gradient,
                "passed": max(difference, of_gradient or 0.0) < limit,
            }
        )
    return rows


def _scored(
    model: Any, tree: StepTree, way: Attention | None, backward: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all actions, and a gradient of their sum; `way` None: one by one."""
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.grad = None
    with torch.set_grad_enabled(backward):
        if way is None:
            scores = torch.stack([_plain(model, *pair) for pair in _pairs(tree)])
        else:
            packed = pack([tree], model.device)
            scores = score_trees(model, packed, attention=way).log_probs
    if backward:
        scores.sum().backward()
    return scores.detach().float(), weight.grad if backward else weight


def _pairs(tree: StepTree) -> list[tuple[list[int], list[int]]]:
    """(state, action): the expert's of every step, then the branches."""
    expert = [(list(tree.state(i)), list(tree.expert(i))) for i in range(len(tree.replies))]
    return expert + [(list(tree.state(b.step)), list(b.ids)) for b in tree.branches]


def _plain(model: Any, state: list[int], action: list[int]) -> torch.Tensor:
    """log π of an action, in a sequence of its own."""
    ids = torch.tensor([state + action], device=model.device)
    logits = model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=len(action)).logits[0]
    picked = logits.float().log_softmax(-1).gather(-1, ids[0, len(state) :, None])
    return picked.sum()


# Speed ------------------------------------------------------------------------------------------


def _practice(policy: Policy, shape: Shape, tree: StepTree) -> dict[str, float]:
    """Three replies in every state, of full length, against `generate` state by state."""
    sampling = Sampling(3, Decoding(1.0, 1.0, shape.reply), eos_ids=())
    ours = _seconds(policy, lambda: practice(policy.model, tree, sampling, seed=0))
    states = range(0, shape.steps, shape.plain_every)

    def plain() -> None:
        for step in states:
            ids = torch.tensor([tree.state(step)], device=policy.device)
            policy.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                num_return_sequences=3,
                min_new_tokens=shape.reply,
                max_new_tokens=shape.reply,
                pad_token_id=0,
            )

    other = _seconds(policy, plain) * shape.steps / len(states)
    replies = shape.steps * 3
    return {"ours_s": ours, "plain_s": other, "ratio": other / ours, "replies_s": replies / ours}


def _reflection(policy: Policy, shape: Shape, tree: StepTree) -> dict[str, float]:
    """Forward and backward over all pairs of the tree, against each action by itself."""
    model = policy.model

    def ours() -> None:
        score_trees(model, pack([tree], policy.device)).log_probs.sum().backward()

    pairs = _pairs(tree)[:: shape.plain_every]

    def plain() -> None:
        for pair in pairs:
            _plain(model, *pair).backward()

    seconds = _seconds(policy, ours)
    peak = _peak_memory(policy.device)
    other = _seconds(policy, plain) * len(_pairs(tree)) / len(pairs)
    flops = flops_per_token(model) * tree.length
    figures = {
        "ours_s": seconds,
        "plain_s": other,
        "ratio": other / seconds,
        "tokens_s": tree.length / seconds,
        "peak_memory_gb": peak,
    }
    top = peak_flops(policy.device)
    return figures | ({"share_of_peak": flops / seconds / top} if top else {})


def _inverse(policy: Policy, shape: Shape, tree: StepTree) -> dict[str, float]:
    """What an iteration of Inverse does after the practice, by step trees and plainly; the latter
    in the first states alone, as much of them as one in `plain_every`."""
    if not shape.rank:
        policy = Policy(adapted(policy.model, LoraSettings(r=8)), policy.tokenizer, policy.config)
    seconds = {}
    for side, work, steps in (
        ("ours", inverse._ours, shape.steps),
        ("plain", inverse._plain, max(1, shape.steps // shape.plain_every)),
    ):
        encoded = Encoded(list(tree.ids), list(tree.replies)).part(0, steps)
        drawn = [[list(b.ids) for b in tree.branches if b.step == i] for i in range(steps)]
        [item] = practice_trees(encoded, drawn, 10**6)
        judge_config = RunConfig(output="").inverse.discriminator
        with tempfile.TemporaryDirectory() as folder:
            judge_settings = (policy, judge_config, Path(folder))
            with attach(*judge_settings, seed=0) as judge:
                actor = ActorCritic(policy.model, inverse.PPO.baseline)
                seconds[side] = _seconds(policy, lambda: work(judge, actor, item))  # noqa: B023
    # Plain work in a state grows with its length: the mean state is half the trajectory's.
    steps = max(1, shape.steps // shape.plain_every)
    scale = (shape.steps / steps) ** 2
    other = seconds["plain"] * scale
    return {"ours_s": seconds["ours"], "plain_s": other, "ratio": other / seconds["ours"]}


def _alone(
    work: Callable[[Policy, Shape, StepTree], dict[str, float]], shape: Shape, device: torch.device
) -> dict[str, float]:
    """A measurement with a model of its own, which is gone afterwards."""
    torch.manual_seed(0)
    model = _model(shape, device, torch.bfloat16)
    config = PolicyConfig(model="random", device=device.type, max_new_tokens=shape.reply)
    if shape.rank:
        model = adapted(model.to(torch.bfloat16), LoraSettings(r=shape.rank))
    tokenizer = build_tokenizer(["a b c"], 300, 10**6)
    figures = work(Policy(model, tokenizer, config), shape, trajectory(shape))
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {name: round(value, 4) for name, value in figures.items()}


def _model(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Random weights in float32; bfloat16 computes by autocast."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        pad_token_id=0,
    )
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16 if shape.rank else torch.float32)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    if dtype == torch.bfloat16 and not shape.rank:
        compute_in_bfloat16(model)
    return model


def trajectory(shape: Shape) -> StepTree:
    """Random tokens: `steps` states and replies, with two more replies in every state."""
    draw = torch.Generator().manual_seed(0)
    size = (shape.state + shape.reply) * shape.steps
    ids = torch.randint(1, min(300, shape.vocabulary), (size * 3,), generator=draw).tolist()
    each = shape.state + shape.reply
    replies = tuple((i * each + shape.state, (i + 1) * each) for i in range(shape.steps))
    branches = []
    for number in range(2 * shape.steps):
        start = size + number * shape.reply
        branches.append(Branch(number // 2, tuple(ids[start : start + shape.reply])))
    return StepTree(tuple(ids[:size]), replies, tuple(branches))


def _seconds(policy: Policy, work: Callable[[], Any]) -> float:
    """Of the second time: the first compiles kernels."""
    for _ in range(2):
        policy.model.zero_grad(set_to_none=True)
        _wait(policy.device)
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        _wait(policy.device)
        seconds = time.perf_counter() - start
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> float:
    """GB of the last measurement; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


main = Command("gpu-check", Config, run)


if __name__ == "__main__":
    sys.exit(main())
