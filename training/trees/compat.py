"""Compatibility: which models can run step trees, and how long a path each can take."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from stepagent.agents.models import context_length
from stepagent.training.trees.attention import NAME

_LAYERS = {"full_attention", "sliding_attention"}


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP / FSDP / peft wrappers (LoRA layers stay in place)."""
    inner: Any = model
    while hasattr(inner, "module"):
        inner = inner.module
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"step trees need a transformers model, got {type(inner).__name__}")
    return inner


def enable_step_trees(model: nn.Module) -> int | None:
    """Switch `model` to the step-tree attention; a no-op for a model that is already switched.

    Returns:
        The sliding window that all layers share, in tokens; None for full attention.

    Raises:
        ValueError: layers that are not attention over all tokens (Mamba, linear attention, …),
            or a model that does not go through transformers' attention interface.
    """
    base = unwrap(model)
    config = base.config.get_text_config(decoder=True)
    name = type(base).__name__
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(base, "_is_stateful", False) or not kinds <= _LAYERS:
        raise ValueError(
            f"{name} cannot run step trees: it has layers other than attention over the tokens "
            f"({', '.join(sorted(kinds - _LAYERS)) or 'recurrent state'}), which would "
            "mix sibling actions. Take a model whose layers are full or sliding attention."
        )
    if base.config.is_encoder_decoder or not getattr(base, "_supports_attention_backend", False):
        raise ValueError(
            f"{name} cannot run step trees: it is not a decoder that takes its attention from "
            "transformers' AttentionInterface. Llama, Mistral, Qwen, Gemma 3 and SmolLM do."
        )
    if base.config._attn_implementation != NAME:
        base.set_attn_implementation(NAME)
    window = getattr(config, "sliding_window", None)
    listed = getattr(config, "layer_types", None)  # not listed: every layer slides (Mistral)
    return window if window and (not listed or "sliding_attention" in listed) else None


def check_path(model: nn.Module, longest: int) -> int | None:
    """Check that a path of `longest` tokens (trunk prefix + action) fits `model`.

    Returns:
        The window to apply in the mask, or None where the path is shorter than it.

    Raises:
        ValueError: the path is longer than the context; or than the window of a model that mixes
            sliding with full layers (one mask serves all layers here); or than what a model whose
            positions stretch with the text leaves unchanged.
    """
    window, base = enable_step_trees(model), unwrap(model)
    context = context_length(base)
    if longest > context:
        raise ValueError(
            f"a state and its action take {longest} tokens, the model's context is {context}: "
            "cut the trajectory or take a model with a longer context"
        )
    config = base.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    short = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") in ("dynamic", "longrope") and short and longest > short:
        raise ValueError(
            f"a state and its action take {longest} tokens; beyond {short} the model's positions "
            f"({rope['rope_type']}) change with the length of the text, which differs along a tree"
        )
    if window is None or longest <= window:
        return None
    if len(set(getattr(config, "layer_types", None) or [])) > 1:
        raise ValueError(
            f"a state and its action take {longest} tokens, and some layers of the model see only "
            f"the last {window} while others see all: step trees run it up to {window} tokens"
        )
    return window
