"""What a pre-trained model can do, measured on walks that it has not seen.

observation accuracy   of an observation's tokens, how many does it predict (given those before)?
copying accuracy       behind a row of random tokens that begins again, how many does it repeat?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from stepagent.agents.chat import ChatCodec
from stepagent.training.pretrain.corpus import documents
from stepagent.training.pretrain.tokens import encode, random_tokens


@torch.no_grad()
def observation_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    part: Path,
    limit: int = 32,
    context: int = 2048,
) -> dict[str, float]:
    """Over `limit` documents: accuracy on observations behind the first action, and loss (nats a
    token). Where a source has pages only, all of their tokens count."""
    codec = ChatCodec(tokenizer)
    hits = total = 0
    loss = 0.0
    for messages in list(documents(part))[:limit]:
        ids = torch.tensor(encode(messages, codec))[:context]
        counted = _observations(ids, tokenizer)[1:]
        if not counted.any():
            continue
        logits = model(input_ids=ids[None, :-1]).logits[0].float()
        targets = ids[1:]
        hits += int((logits.argmax(-1) == targets)[counted].sum())
        loss += float(torch.nn.functional.cross_entropy(logits[counted], targets[counted])) * int(
            counted.sum()
        )
        total += int(counted.sum())
    return {"accuracy": hits / max(1, total), "loss": loss / max(1, total), "tokens": float(total)}


def _observations(ids: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """bool [T]: tokens of observations, without the first of a conversation with several."""
    user, end = (tokenizer.convert_tokens_to_ids(name) for name in ("<|user|>", "<|end|>"))
    turns = 0
    inside, counted = False, []
    for token in ids.tolist():
        turns += token == user
        counted.append(inside and turns > 1)
        inside = (inside or token == user) and token != end
    alone = [token not in (user, end) for token in ids.tolist()]
    return torch.tensor(counted if turns > 1 else alone)


@torch.no_grad()
def copying_accuracy(
    model: LlamaForCausalLM, lengths: Sequence[int] = (16, 64, 256), seed: int = 0
) -> dict[int, float]:
    """For each length: the share of a random row's tokens that the model repeats, over 16 rows.

    The first token of the repetition is left out: nothing says that it begins.
    """
    rng = np.random.default_rng([seed, 11])
    vocabulary, accuracies = model.config.vocab_size, {}
    for length in lengths:
        rows = random_tokens(rng, vocabulary, (16, length))
        logits = model(input_ids=torch.cat([rows, rows], 1)[:, :-1]).logits
        accuracies[length] = float((logits[:, length:].argmax(-1) == rows[:, 1:]).float().mean())
    return accuracies
