"""A small Llama from scratch, with its own tokenizer: the policy of tests and of `-laptop.yaml`.

It knows no English: all it can do it has learned from the trajectories of its run. On two CPU cores
that takes minutes instead of the hours that a pre-trained model of 135 M parameters needs.

Acting on text is mostly copying: the action names something that the observation shows. A large
model has long learned to copy; one from scratch spends nearly all of a small data set on it. So its
attention is initialised to copy (`start_copying`), after Trockman and Kolter, "Mimetic
Initialization of Self-Attention Layers" (2023).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stepagent.agents.models import quiet
from stepagent.training.config import TinyConfig

# A turn is a role token, the text, and one token that ends it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ("<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")


def build_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer trained on `texts`; it can encode any text.

    Words begin with their space, so "Rome" in "find Rome" and in "search[Rome]" would be different
    tokens, and could not be copied: a space after each bracket makes them the same.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace("[", "[ ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("[ ", "[")])
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
    config: TinyConfig, tokenizer: PreTrainedTokenizerFast, seed: int, rope_theta: float = 1e4
) -> LlamaForCausalLM:
    """A Llama for that tokenizer, from scratch; the same seed gives the same weights."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.hidden_size,
                intermediate_size=config.hidden_size * 8 // 3,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=config.context,
                rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
                tie_word_embeddings=True,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        start_copying(model)
    return model


@torch.no_grad()
def start_copying(model: LlamaForCausalLM) -> None:
    """Makes every head attend to tokens like the current one, and raise the odds of what it sees.

    Queries and keys share a random map, so that attention looks for similarity; the output map is
    the inverse of the value map, so that with tied embeddings a token that is attended to becomes a
    likelier next one. Training changes all of it.
    """
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.06)
    for layer in model.model.layers:
        attention = layer.self_attn
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        width = attention.q_proj.weight.shape[0]
        shared = torch.randn(width, width) / width**0.5
        attention.q_proj.weight.add_(shared)
        attention.k_proj.weight.add_(shared)
