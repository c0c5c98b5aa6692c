"""Documents as one row of tokens, in the policy's own way of writing conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from stepagent.agents.chat import ChatCodec
from stepagent.envs.react import Message
from stepagent.files import write_atomically
from stepagent.training.config import TinyConfig
from stepagent.training.pretrain.corpus import documents
from stepagent.training.tiny import build_tokenizer

SAMPLE = 12_000_000
"""Characters that the tokenizer is trained on, equally many of each source."""


def make_tokenizer(
    parts: Mapping[str, Sequence[Path]], shape: TinyConfig
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on all sources alike, whatever their sizes."""

    def texts() -> Iterator[str]:
        for files in parts.values():
            left = SAMPLE // len(parts)
            for message in (m for file in files for messages in documents(file) for m in messages):
                yield message["content"]
                left -= len(message["content"])
                if left <= 0:
                    break

    return build_tokenizer(texts(), shape.vocabulary, shape.context)


def write_tokens(
    path: Path, files: Iterable[Path], tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Writes uint16 [N], the documents of all files in random order, each behind a padding token.

    The padding token is where a document begins; nothing is learned from it.
    """
    codec = ChatCodec(tokenizer)
    rows = [
        np.array([tokenizer.pad_token_id, *encode(messages, codec)], dtype=np.uint16)
        for file in files
        for messages in documents(file)
    ]
    order = np.random.default_rng([seed, 3]).permutation(len(rows))
    whole = np.concatenate([rows[i] for i in order])

    def save(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, whole)

    write_atomically(path, save)


def encode(messages: Sequence[Message], codec: ChatCodec) -> list[int]:
    """A conversation's tokens; one that ends in an observation does not open a reply."""
    ids = codec.encode(messages).ids
    return ids[:-1] if messages[-1]["role"] == "user" else ids


def random_tokens(
    rng: np.random.Generator, vocabulary: int, size: int | tuple[int, int]
) -> torch.Tensor:
    """int64 [size]: tokens to be copied; the first eighth, with marks and bytes, is left out."""
    return torch.from_numpy(rng.integers(vocabulary // 8, vocabulary, size=size))
