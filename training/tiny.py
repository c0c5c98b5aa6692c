"""A small Llama from scratch, with a tokenizer of its own: the policy of the demo and of tests.

It knows no English. What it can do it has learned from the trajectories it is given, which on two
CPU cores takes minutes instead of the hours that a pre-trained model of 135 M parameters needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A turn is a role token, the text, and one token that ends it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")


@dataclass
class TinyConfig:
    """Shape of the small Llama."""

    hidden_size: int = 256
    """Width of the model. Usual range 64 to 512."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 8
    """Attention heads; divides hidden_size into an even number."""
    vocabulary: int = 2048
    """Tokens of the byte-pair tokenizer that is trained on the trajectories."""
    context: int = 4096
    """Longest sequence, in tokens."""
    reading_epochs: int = 0
    """Passes over the expert's trajectories as plain texts, observations included, before SFT: what
    pre-training is to a large model. About 5 where trajectories are few."""
    reading_rate: float = 3e-3
    """Peak learning rate of that reading; its batches have 4 trajectories."""


def build_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer trained on `texts`; any text can be written with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(
    config: TinyConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """A randomly initialised Llama for that tokenizer; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.hidden_size * 8 // 3,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


READING_BATCH = 4
"""Texts an update of `read`."""


def read(
    model: LlamaForCausalLM,
    texts: Sequence[Sequence[int]],
    config: TinyConfig,
    seed: int,
    on_update: Callable[[int, dict[str, float]], None],
) -> None:
    """Trains the model on whole texts (token ids), every token predicted from those before it.

    Updates depend on the seed alone. `on_update` is called with the updates done and the loss.
    """
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.reading_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    batches = [
        batch
        for epoch in range(config.reading_epochs)
        for batch in _batches(len(texts), np.random.default_rng([seed, epoch]))
    ]
    warmup = max(1, min(20, len(batches) // 10))
    for number, batch in enumerate(batches):
        decay = 0.5 * (1 + np.cos(np.pi * number / len(batches)))
        for group in optimiser.param_groups:
            group["lr"] = config.reading_rate * min((number + 1) / warmup, max(0.05, decay))
        loss = _text_loss(model, [texts[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        on_update(number + 1, {"loss": loss.item()})
    model.eval()


def _batches(count: int, rng: np.random.Generator) -> list[list[int]]:
    order = rng.permutation(count).tolist()
    return [order[i : i + READING_BATCH] for i in range(0, count, READING_BATCH)]


def _text_loss(model: LlamaForCausalLM, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean negative log-likelihood of a batch's tokens (shorter texts are padded, unseen)."""
    length = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    ids = ids.to(model.device)
    seen = torch.arange(length) < torch.tensor([len(text) for text in texts])[:, None]
    labels = ids.masked_fill(~seen.to(ids.device), -100)[:, 1:]
    logits = model(input_ids=ids).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
