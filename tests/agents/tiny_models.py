"""A tokenizer trained on a few words, and random models of a few thousand weights."""

from __future__ import annotations

from typing import Any

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "Observation: you see a red apple on the wooden table and an open door to the kitchen\n"
    "Thought: the door is open so I go through it and look around\nAction: go to kitchen\n"
) * 3


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(kind: str, vocab: int, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32: llama, mistral, qwen2, qwen3, gpt2 or mamba."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    common: dict[str, Any] = {
        "vocab_size": vocab,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        common |= {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 1024,
            "initializer_range": 0.2,
        }
    elif kind == "mamba":
        common |= {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    else:
        common |= {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "tie_word_embeddings": False,
        }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(common | changes)))
    return model.float().eval()
