"""Benchmarks of practice and reflection: step trees against the plain way of doing the same.

Both use real expert trajectories of ScienceWorld with the full prompt (instruction and example),
and both sides run in the same process on the same model. Lengths are the first n steps of long
trajectories, so that growth with n is that of the method and not of the task.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from stepagent import agents, envs
from stepagent.agents.chat import ChatCodec, Encoded
from stepagent.agents.generation import Decoding
from stepagent.agents.models import eos_ids, load_model, load_tokenizer
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import Trajectory
from stepagent.eval.benches import Options, Row, measure, settings
from stepagent.eval.rollout import run_episodes
from stepagent.training.benchmarks import rewritten_history
from stepagent.training.config import ReflectionConfig
from stepagent.training.methods.losses import step_dpo_loss
from stepagent.training.runs.schedule import Schedule, packed
from stepagent.training.trees.packing import pack
from stepagent.training.trees.sampling import Replies, Sampling, practice, practices, together
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree

ENV = "stepagent/ScienceWorld-v0"
LONG = {"task_set": "all", "tasks": "inclined-plane-determine-angle", "max_steps": 200}
"""The environment's arguments for tasks whose expert takes 40 steps and more."""


def long_trajectories(count: int, steps: int) -> list[Trajectory]:
    """Expert trajectories of at least `steps` steps, cut there.

    Raises ValueError where too few are that long.
    """
    expert, long = agents.make_agent("expert"), []
    env = envs.make(ENV, split="train", **LONG)
    tasks = list(env.tasks)
    env.close()
    episodes = run_episodes(ENV, expert, tasks, split="train", workers=2, env_args=LONG)
    try:
        for trajectory in episodes:
            if len(trajectory.steps) >= steps and not trajectory.error:
                long.append(Trajectory(**{**vars(trajectory), "steps": trajectory.steps[:steps]}))
            if len(long) == count:
                return long
    finally:
        episodes.close()
    raise ValueError(f"only {len(long)} expert trajectories have {steps} steps or more")


class Setting:
    """Model, codec and encoded trajectories of one benchmark."""

    def __init__(self, options: Options, dtype: str):
        self.model = load_model(options.model, dtype, options.device)
        self.tokenizer = load_tokenizer(options.model)
        self.codec = ChatCodec(self.tokenizer)
        self.eos = eos_ids(self.model, self.tokenizer) | {self.codec.end_of_turn_id}
        self.prompt = envs.make(ENV).prompt

    def encode(self, trajectory: Trajectory) -> Encoded:
        return self.codec.encode(trajectory.messages(self.prompt, PromptStyle()))

    def sampling(self, k: int, temperature: float, max_new_tokens: int) -> Sampling:
        return Sampling(k, Decoding(temperature, 1.0, max_new_tokens), self.eos)


def bench_practice(options: Options) -> Iterator[Row]:
    """All practice actions of a trajectory against one `generate` per state, and those of short
    trajectories together against one trajectory after another. A number of 0 leaves one out."""
    sizes = settings(
        options, trajectories=1, steps=20, practice=3, max_new_tokens=32, short=8, short_steps=5
    )
    setting = Setting(options, options.dtype)
    if sizes["trajectories"]:
        yield from _long_practice(options, setting, sizes)
    if sizes["short"]:
        yield _short_practice(options, setting, sizes)


def _long_practice(options: Options, setting: Setting, sizes: dict[str, int]) -> Iterator[Row]:
    trajectories = long_trajectories(sizes["trajectories"], sizes["steps"])
    encoded = [setting.encode(trajectory) for trajectory in trajectories]
    tokens = sum(len(e.ids) for e in encoded)
    limit = sizes["max_new_tokens"]
    for name, k, temperature in (
        ("greedy", 1, 0.0),
        (f"K = {sizes['practice']}", sizes["practice"], 1.0),
    ):
        sampling = setting.sampling(k, temperature, limit)
        ours, plain = measure(
            functools.partial(_each, shared_practice, setting, encoded, sampling),
            functools.partial(_each, _generate, setting, encoded, sampling),
            options.repeats,
        )
        states = sum(len(e.replies) for e in encoded) * k
        title = f"practice in {sizes['steps']} states, {name}, {tokens // len(encoded)} tokens"
        yield Row.more_is_better(title, states / ours, states / plain, "replies/s")
    exact, greedy = Setting(options, "float32"), setting.sampling(1, 0.0, limit)
    ours_ids = shared_practice(exact, encoded[0], greedy)
    plain_ids = _generate(exact, encoded[0], greedy)
    same = sum(a == b for a, b in zip(ours_ids, plain_ids, strict=True))
    title = "greedy replies identical (float32)"
    yield Row.more_is_better(title, same, len(ours_ids), "replies")


def _short_practice(options: Options, setting: Setting, sizes: dict[str, int]) -> Row:
    trajectories = long_trajectories(sizes["short"], sizes["short_steps"])
    encoded = [setting.encode(trajectory) for trajectory in trajectories]
    sampling = setting.sampling(sizes["practice"], 1.0, sizes["max_new_tokens"])
    ours, one_by_one = measure(
        functools.partial(_at_once, setting, encoded, sampling),
        functools.partial(_each, shared_practice, setting, encoded, sampling),
        options.repeats,
    )
    replies = sum(len(e.replies) for e in encoded) * sizes["practice"]
    title = f"practice in {sizes['short']} trajectories of {sizes['short_steps']} steps at once"
    return Row.more_is_better(title, replies / ours, replies / one_by_one, "replies/s")


def _at_once(setting: Setting, encoded: Sequence[Encoded], sampling: Sampling) -> None:
    for group in together(setting.model, encoded, sampling):
        practices(setting.model, [(encoded[i], 0) for i in group], sampling)


def _all(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


def _each(
    work: Callable[..., Any], setting: Setting, encoded: Sequence[Encoded], sampling: Sampling
) -> list[Any]:
    return [work(setting, e, sampling) for e in encoded]


def shared_practice(setting: Setting, encoded: Encoded, sampling: Sampling) -> Replies:
    """Our way: the trajectory is read once."""
    return practice(setting.model, encoded, sampling, seed=0)


def _generate(setting: Setting, encoded: Encoded, sampling: Sampling) -> Replies:
    """As a user would: one `generate` per state, its K replies as one batch."""
    setting.model.set_attn_implementation("sdpa")
    temperature = sampling.decoding.temperature
    replies = []
    for start, _ in encoded.replies:
        ids = torch.tensor([encoded.ids[:start]], device=setting.model.device)
        out = setting.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.decoding.max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_p=None,
            top_k=0 if temperature > 0 else None,
            num_return_sequences=sampling.k,
            eos_token_id=sorted(setting.eos),
            pad_token_id=setting.tokenizer.pad_token_id,
        )
        replies.append([_until_end(row[start:].tolist(), setting.eos) for row in out])
    return replies


def _until_end(ids: list[int], ends: frozenset[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in ends:
            return ids[: i + 1]
    return ids


def bench_reflection(options: Options) -> Iterator[Row]:
    """Forward and backward over all step pairs, against TRL's `DPOTrainer` loss on the same pairs.

    Settings: `steps` (a comma list of trajectory lengths), `pairs` (sequences TRL is given at once
    are twice as many), `trajectories`; `short_trees` and `pack_tokens` of `packing`.
    """
    sizes = settings(
        options,
        trajectories=1,
        steps="5,10,20",
        pairs=2,
        max_new_tokens=32,
        short_trees=16,
        pack_tokens=ReflectionConfig().pack_tokens,
    )
    lengths = [int(n) for n in str(sizes["steps"]).split(",")]
    setting = Setting(options, options.dtype)
    long = long_trajectories(sizes["trajectories"], max(lengths))
    for steps in lengths:
        cut = [Trajectory(**{**vars(t), "steps": t.steps[:steps]}) for t in long]
        trees = [_tree(setting, setting.encode(t), sizes["max_new_tokens"]) for t in cut]
        trl = _Trl(setting, sizes["pairs"])
        ours, plain = measure(
            functools.partial(_all, functools.partial(_tree_pass, setting.model), trees),
            functools.partial(_all, trl.backward, trees),
            options.repeats,
        )
        tokens = sum(t.length for t in trees)
        name = f"reflection, {steps} steps ({tokens} tokens packed, {trl.tokens} plain)"
        yield Row.less_is_better(name, ours, plain, "s forward and backward")
    short = [Trajectory(**{**vars(t), "steps": t.steps[:5]}) for t in long[:1]]
    yield from _equality(options, short)
    thinking = rewritten_history.encode(
        Trajectory(**{**vars(long[0]), "steps": long[0].steps[: max(lengths)]}),
        copy.deepcopy(setting.tokenizer),
        setting.prompt,
    )
    model = _small_llama(max(thinking.ids) + 1)
    yield from rewritten_history.rows(model, thinking, options.repeats)
    yield from packing(sizes["short_trees"], sizes["pack_tokens"], options.repeats)


def packing(count: int, pack_tokens: int, repeats: int) -> list[Row]:
    """Forward and backward over many short trees (4 steps, 200 tokens): packed up to a number of
    tokens against one tree per forward pass, on a small Llama."""
    model = _small_llama(2000)
    trees = [_short_tree(seed) for seed in range(count)]
    update = Schedule([trees], lambda tree: len(tree.branches))
    groups = packed(update, lambda tree: tree.length, pack_tokens).updates[0]
    ours, single = measure(
        functools.partial(_all, functools.partial(trees_pass, model), groups),
        functools.partial(_all, functools.partial(trees_pass, model), [(t,) for t in trees]),
        repeats,
    )
    name = f"{len(trees)} trees of 4 steps and {trees[0].length} tokens in {len(groups)} passes"
    losses = [
        float(sum(trees_pass(model, group) for group in side))
        for side in (groups, [(tree,) for tree in trees])
    ]
    return [
        Row.less_is_better(name, ours, single, "s forward and backward"),
        Row("their loss (baseline: one tree per pass)", losses[0], losses[1], 1.0, "nats"),
    ]


def _small_llama(vocabulary: int) -> LlamaForCausalLM:
    """A Llama as wide and deep as that of the `-laptop` configurations."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=8192,
    )
    return LlamaForCausalLM(shape)


def _short_tree(seed: int) -> StepTree:
    """4 steps of 22 tokens, an action of 14 by the expert and one of 14 by the agent."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 2000, (200,), generator=draw).tolist()
    replies = tuple((36 * step + 22, 36 * step + 36) for step in range(4))
    branches = (tokens[144 + 14 * step : 158 + 14 * step] for step in range(4))
    return StepTree(
        tuple(tokens[:144]), replies, tuple(Branch(i, tuple(b)) for i, b in enumerate(branches))
    )


def trees_pass(model: Any, trees: Sequence[StepTree]) -> Tensor:
    """Eq. 6 summed over the pairs of some trees, in one pass."""
    scores = score_trees(model, pack(trees, model.device))
    zeros = torch.zeros_like(scores.chosen)
    loss = step_dpo_loss(scores.chosen, scores.rejected, zeros, zeros, beta=0.1).loss * len(zeros)
    loss.backward()
    return loss.detach()


def _tree(setting: Setting, encoded: Encoded, max_new_tokens: int) -> StepTree:
    """The trajectory with one practice action per step (sampled, so never quite the expert's)."""
    replies = shared_practice(setting, encoded, setting.sampling(1, 1.0, max_new_tokens))
    branches = tuple(Branch(i, tuple(r[0])) for i, r in enumerate(replies))
    return StepTree.of(encoded, branches)


def _references(tree: StepTree) -> tuple[Tensor, Tensor]:
    """Arbitrary reference log-probabilities: their values do not change the work."""
    count = len(tree.branches)
    return -torch.linspace(5, 10, count), -torch.linspace(20, 30, count)


def _tree_pass(model: Any, tree: StepTree) -> Tensor:
    scores = score_trees(model, pack([tree], model.device))
    chosen, rejected = (r.to(model.device) for r in _references(tree))
    loss = step_dpo_loss(scores.chosen, scores.rejected, chosen, rejected, beta=0.1).loss
    loss.backward()
    return loss.detach()


class _Trl:
    """TRL's DPO loss on the pairs of a tree, each with its full prefix."""

    def __init__(self, setting: Setting, pairs: int):
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        self.setting, self.pairs, self.tokens = setting, pairs, 0
        model = setting.model
        model.set_attn_implementation("sdpa")
        self._folder = tempfile.TemporaryDirectory()
        self.trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model),
            args=DPOConfig(
                output_dir=str(Path(self._folder.name)),
                use_cpu=model.device.type == "cpu",
                report_to="none",
                bf16=False,
                beta=0.1,
                max_length=None,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=setting.tokenizer,
        )
        self.trainer.precompute_ref_logps = True
        self.collate = DataCollatorForPreference(pad_token_id=setting.tokenizer.pad_token_id)

    def backward(self, tree: StepTree) -> Tensor:
        self.setting.model.set_attn_implementation("sdpa")
        self.setting.model.train()
        rows = self._rows(tree)
        total = torch.zeros((), device=self.setting.model.device)
        for i in range(0, len(rows), self.pairs):
            part = rows[i : i + self.pairs]
            batch = {k: v.to(self.setting.model.device) for k, v in self.collate(part).items()}
            loss = self.trainer.compute_loss(self.setting.model, batch) * len(part) / len(rows)
            loss.backward()
            total += loss.detach()
        self.setting.model.eval()
        return total

    def _rows(self, tree: StepTree) -> list[dict[str, Any]]:
        chosen, rejected = _references(tree)
        rows: list[dict[str, Any]] = []
        for i, branch in enumerate(tree.branches):
            start, end = tree.replies[branch.step]
            rows.append(
                {
                    "prompt_ids": list(tree.ids[:start]),
                    "chosen_ids": list(tree.ids[start:end]),
                    "rejected_ids": list(branch.ids),
                    "ref_chosen_logps": float(chosen[i]),
                    "ref_rejected_logps": float(rejected[i]),
                }
            )
        self.tokens = sum(
            2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows
        )
        return rows


def _equality(options: Options, trajectories: Sequence[Trajectory]) -> list[Row]:
    """Loss and gradients of both ways in float32, on short trajectories."""
    setting = Setting(options, "float32")
    tree = _tree(setting, setting.encode(trajectories[0]), 32)
    trl = _Trl(setting, 2)
    loss = _tree_pass(setting.model, tree)
    ours = {n: p.grad.clone() for n, p in setting.model.named_parameters() if p.grad is not None}
    setting.model.zero_grad()
    plain = trl.backward(tree)
    worst = 0.0
    for name, parameter in setting.model.named_parameters():
        if parameter.grad is not None:
            difference = (parameter.grad - ours[name]).norm() / parameter.grad.norm().clamp(1e-12)
            worst = max(worst, float(difference))
    return [
        Row("loss in float32 (baseline: TRL's)", float(loss), float(plain), 1.0, "nats"),
        Row(
            "largest relative difference of a gradient (limit as baseline)",
            worst,
            1e-3,
            1e-3 / max(worst, 1e-12),
            "",
        ),
    ]
