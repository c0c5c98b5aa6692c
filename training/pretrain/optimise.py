"""Next-token prediction over a row of tokens.

Update n takes the same sequences whether the training was killed before or not: they are a function
of (seed, n) alone. Weights, AdamW's moments and the position are written together, so a run that is
killed at any moment resumes from the newest checkpoint and ends with the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from stepagent.errors import check_range
from stepagent.training.pretrain.tokens import random_tokens
from stepagent.training.runs.checkpoints import Position, load_training_state, save_training_state
from stepagent.training.runs.interrupts import checkpoint_clock


@dataclass
class Optimiser:
    """AdamW with warm-up, then a cosine down to a tenth of the peak rate."""

    tokens: float = 20.0
    """Tokens to train on, in millions. A shorter corpus is read more than once."""
    sequence: int = 1024
    """Tokens per sequence."""
    batch_size: int = 16
    """Sequences per update."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    warmup_ratio: float = 0.02
    """Share of the updates for warm-up."""
    weight_decay: float = 0.1
    """Weight decay of matrices; embeddings and norms have none."""
    beta2: float = 0.95
    """AdamW's second decay rate."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    seed: int = 0
    """Seed of the order in which sequences are read."""
    copying: int = 0
    """Each sequence ends with a row of up to this many random tokens and its repetition, so that a
    model that can copy keeps copying. Of the two only the repetition is learned. 0: none."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints; 0: after every update."""

    def check(self) -> None:
        """Raises UsageError for a number that is out of range."""
        check_range(1, sequence=self.sequence, batch_size=self.batch_size)
        check_range(0, tokens=self.tokens, learning_rate=self.learning_rate, seed=self.seed)
        check_range(0, self.sequence // 4, copying=self.copying)
        check_range(0, 1, warmup_ratio=self.warmup_ratio, beta2=self.beta2)
        check_range(0, max_grad_norm=self.max_grad_norm, weight_decay=self.weight_decay)
        check_range(0, checkpoint_seconds=self.checkpoint_seconds)

    @property
    def updates(self) -> int:
        return math.ceil(self.tokens * 1e6 / (self.sequence * self.batch_size))

    def rate(self, update: int) -> float:
        """The learning rate of an update, counted from 0.

        >>> config = Optimiser(tokens=100 * 1024 * 16 / 1e6, warmup_ratio=0.1)
        >>> [round(config.rate(i) / config.learning_rate, 3) for i in (0, 9, 54, 99)]
        [0.1, 1.0, 0.565, 0.1]
        """
        warmup = max(1, round(self.warmup_ratio * self.updates))
        if update < warmup:
            return self.learning_rate * (update + 1) / warmup
        way = (update - warmup) / max(1, self.updates - warmup - 1)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, way))))


def train(
    model: LlamaForCausalLM,
    tokens: np.ndarray,
    config: Optimiser,
    folder: Path,
    on_update: Callable[[int, dict[str, float]], None],
) -> None:
    """Trains the model in place, from the newest checkpoint in `folder` on.

    Parameters
    ----------
    tokens: uint16 [N]; the model's padding token is not learned.
    on_update: called with (updates done, figures).

    Raises ValueError where there are fewer tokens than a sequence holds. After Ctrl-C or SIGTERM it
    ends the current update, writes a checkpoint and raises KeyboardInterrupt.
    """
    if len(tokens) <= config.sequence:
        raise ValueError(
            f"the corpus has {len(tokens)} tokens, a sequence {config.sequence}: collect more"
        )
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "embed" not in n)]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=(0.9, config.beta2),
        fused=True,
    )
    position = load_training_state(folder / "checkpoint", model, optimiser, config.updates)
    model.train()
    with checkpoint_clock(config.checkpoint_seconds) as clock:
        for update in range(position.update, config.updates):
            ids = torch.from_numpy(_batch(tokens, config, update).astype(np.int64))
            learned = _end_with_copies(ids, config, update, model.config.vocab_size)
            for group in optimiser.param_groups:
                group["lr"] = config.rate(update)
            figures = _descend(model, optimiser, ids, learned, config.max_grad_norm)
            if not math.isfinite(figures["loss"]):
                raise ValueError(
                    f"update {update + 1}: the loss is {figures['loss']}: lower the rate"
                )
            on_update(update + 1, figures)
            if clock.due() or update + 1 == config.updates:
                save_training_state(folder / "checkpoint", model, optimiser, Position(update + 1))
                clock.written()
    model.eval()


def _descend(
    model: LlamaForCausalLM,
    optimiser: torch.optim.AdamW,
    ids: Tensor,
    learned: Tensor,
    max_grad_norm: float,
) -> dict[str, float]:
    """One update on int64 [B, T + 1], of which bool [B, T + 1] are learned; returns its figures."""
    started = time.monotonic()
    loss = next_token_loss(model, ids, learned)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimiser.step()
    optimiser.zero_grad()
    return {
        "loss": float(loss.detach()),
        "grad_norm": float(norm),
        "tokens_per_second": ids.numel() / (time.monotonic() - started),
    }


def next_token_loss(model: LlamaForCausalLM, ids: Tensor, learned: Tensor) -> Tensor:
    """float32 []: mean negative log-likelihood of those of int64 [B, T + 1] that bool [B, T + 1]
    names; padding tokens are left out."""
    logits = model(input_ids=ids[:, :-1]).logits
    following = ids[:, 1:]
    padding = int(model.config.pad_token_id or 0)
    targets = torch.where(following.ne(padding) & learned[:, 1:], following, -100)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _batch(tokens: np.ndarray, config: Optimiser, update: int) -> np.ndarray:
    """uint16 [batch_size, sequence + 1]; each pass over the tokens has its own cuts and order."""
    per_pass = (len(tokens) - 1) // config.sequence
    rows = []
    for i in range(update * config.batch_size, (update + 1) * config.batch_size):
        lap, place = divmod(i, per_pass)
        rng = np.random.default_rng([config.seed, 5, lap])
        shift = int(rng.integers((len(tokens) - 1) % config.sequence + 1))
        begin = shift + int(rng.permutation(per_pass)[place]) * config.sequence
        rows.append(tokens[begin : begin + config.sequence + 1])
    return np.stack(rows)


def _end_with_copies(ids: Tensor, config: Optimiser, update: int, vocabulary: int) -> Tensor:
    """Ends int64 [B, T + 1] with random rows and their repetitions, in place; returns what is to be
    learned (bool [B, T + 1]): all but the row itself and the first token of its repetition."""
    learned = torch.ones_like(ids, dtype=torch.bool)
    if not config.copying:
        return learned
    rng = np.random.default_rng([config.seed, 13, update])
    for sequence, mask in zip(ids, learned, strict=True):
        length = int(rng.integers(1, config.copying + 1))
        row = random_tokens(rng, vocabulary, length)
        sequence[-2 * length :] = row.repeat(2)
        mask[-2 * length :][: length + 1] = False
    return learned
