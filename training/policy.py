"""The policy: a language model with its tokenizer, chat codec and (optionally) a LoRA adapter.

Trained weights are kept in float32, whatever the type of the rest: bfloat16 rounds away the small
updates of reinforcement learning. Where all weights are trained, `dtype: bfloat16` computes in it
by autocast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stepagent.agents.chat import ChatCodec
from stepagent.agents.models import (
    EMBEDDED,
    ModelError,
    context_length,
    eos_ids,
    load_model,
    load_tokenizer,
    quiet,
)
from stepagent.agents.tool_template import ToolCodec
from stepagent.envs.tools import Tool
from stepagent.files import check_files
from stepagent.training.config import LoraSettings, PolicyConfig
from stepagent.training.tiny import build_model, build_tokenizer
from stepagent.training.trees.compat import enable_step_trees


class Policy:
    """A model that is trained; `load` and `tiny` make one."""

    def __init__(self, model: Any, tokenizer: Any, config: PolicyConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.codec = ChatCodec(tokenizer, config.template)
        self.eos_ids = eos_ids(model, tokenizer) | {self.codec.end_of_turn_id}
        """Tokens that end a reply."""
        self.no_step_trees = ""
        """Why the model cannot run step trees, which reflection needs; "" where it can."""
        try:
            # From the start: on a CPU this attention is also faster for SFT in bfloat16.
            enable_step_trees(model)
        except ValueError as error:
            self.no_step_trees = str(error)
        self.context = context_length(model)
        if self.context <= config.max_new_tokens:
            raise ModelError(
                f"the model's context has {self.context} tokens, which leaves no room beside "
                f"policy.max_new_tokens = {config.max_new_tokens}"
            )

    def use_tools(self, tools: Sequence[Tool]) -> None:
        """From now on conversations hold calls of these functions, in the model's own notation."""
        self.codec = ToolCodec(self.tokenizer, tools, self.config.template)
        self.eos_ids |= self.codec.end_ids

    @staticmethod
    def load(config: PolicyConfig, path: Path | None = None, seed: int = 0) -> Policy:
        """The model that the configuration names (or the one in `path`), ready to be trained.

        With `lora.r` > 0 it gets a new adapter, initialised by the seed; an adapter that the
        directory holds is trained further. Raises ModelError where the model cannot be loaded or
        has no chat template.
        """
        name = str(path or config.model)
        if name == "tiny":
            raise ModelError("the model 'tiny' is built from texts: see Policy.tiny")
        tokenizer = load_tokenizer(name)
        # Before the weights: a missing template is reported at once.
        ChatCodec(tokenizer, config.template)
        adapter = (Path(name) / "adapter_config.json").is_file()
        frozen = adapter or config.lora.r > 0
        dtype = config.dtype if frozen else "float32"
        model = load_model(name, dtype, config.device, trainable=adapter)
        if model.device.type == "cuda" and config.dtype != "float32":
            torch.set_float32_matmul_precision("high")  # TF32
        if config.lora.r > 0 and not adapter:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = adapted(model, config.lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if not frozen and config.dtype == "bfloat16":
            compute_in_bfloat16(model)
        if config.gradient_checkpointing:
            checkpoint_gradients(model)
        return Policy(model, tokenizer, config)

    @staticmethod
    def tiny(config: PolicyConfig, texts: Iterable[str], seed: int) -> Policy:
        """A small Llama from scratch whose tokenizer is trained on `texts`."""
        tokenizer = build_tokenizer(texts, config.tiny.vocabulary, config.tiny.context)
        return Policy(build_model(config.tiny, tokenizer, seed), tokenizer, config)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config")

    def save(self, path: Path) -> None:
        """Writes a directory that `from_pretrained` loads, or PEFT where there is an adapter."""
        with quiet():
            # A discriminator may have its own adapter on the same base.
            only: dict[str, Any] = {"selected_adapters": ["default"]} if self.has_adapter else {}
            self.model.save_pretrained(path, **only, **self._embeddings)
        self.tokenizer.save_pretrained(path)

    @property
    def _embeddings(self) -> dict[str, Any]:
        """For PEFT, which asks the hub for the vocabulary of a base unless it is told: one that
        comes in a package is not there."""
        packaged = self.has_adapter and self.config.model in EMBEDDED
        return {"save_embedding_layers": False} if packaged else {}

    def load_weights(self, path: Path) -> None:
        """Loads the weights of a directory that `save` wrote into the model, in place.

        Raises ModelError where they are those of a model of another architecture.
        """
        check_files(path)
        if self.has_adapter:
            from peft import get_peft_model_state_dict, set_peft_model_state_dict

            if not (path / "adapter_model.safetensors").is_file():
                raise ModelError(f"{path} holds no adapter, but the policy is one on a base")
            weights = load_file(path / "adapter_model.safetensors")
            _check_shapes(path, weights, get_peft_model_state_dict(self.model, **self._embeddings))
            set_peft_model_state_dict(self.model, weights)
            return
        saved = load_model(path, "float32", "cpu").state_dict()
        _check_shapes(path, saved, self.model.state_dict())
        self.model.load_state_dict(saved)

    @contextmanager
    def as_in(self, path: Path) -> Iterator[None]:
        """With the weights of another directory that `save` wrote; restored afterwards.

        Raises ModelError where they are those of a model of another architecture.
        """
        trained = [p for p in self.model.parameters() if p.requires_grad]
        backup = [p.detach().to("cpu", copy=True) for p in trained]  # a GPU may not hold both
        try:
            self.load_weights(path)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(trained, backup, strict=True):
                    parameter.copy_(value)

    def saved_bytes(self) -> int:
        """About what one saved policy takes on disk."""
        return sum(p.numel() * 4 for p in self.model.parameters() if p.requires_grad)

    def describe(self) -> str:
        """One line about the model and how much of it is trained."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.model.parameters())
        kind = f"LoRA of rank {self.config.lora.r}" if self.has_adapter else "all weights"
        sizes = f"{total / 1e6:.1f} M weights, {trained / 1e6:.1f} M trained"
        return f"{self.config.model}: {sizes} ({kind})"


def compute_in_bfloat16(model: Any) -> None:
    """From now on the model's forward passes run under autocast, in practice as in training; its
    weights, their gradients and the optimiser stay in float32."""
    # By hooks, since trainers replace `forward`, and a copy of the model has them too.
    model.compute_dtype, model.autocasts = torch.bfloat16, []
    model.register_forward_pre_hook(_begin_autocast)
    model.register_forward_hook(_end_autocast, always_call=True)


def _begin_autocast(model: Any, args: Any) -> None:
    model.autocasts.append(torch.autocast(model.device.type, model.compute_dtype))
    model.autocasts[-1].__enter__()


def _end_autocast(model: Any, args: Any, out: Any) -> None:
    model.autocasts.pop().__exit__(None, None, None)


def checkpoint_gradients(model: Any) -> None:
    """Activations are computed again in the backward pass instead of being kept."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()


def _check_shapes(path: Path, saved: Mapping[str, Any], policy: Mapping[str, Any]) -> None:
    """Raises ModelError unless both hold the same names and shapes."""
    there, here = ({n: tuple(t.shape) for n, t in side.items()} for side in (saved, policy))
    if there != here:
        differing = sorted(n for n in {*there, *here} if there.get(n) != here.get(n))
        first = differing[0]
        raise ModelError(
            f"{path} holds a model of another architecture than the policy: {len(differing)} of "
            f"{len(here)} weights differ, such as {first} ({there.get(first, 'missing')} there, "
            f"{here.get(first, 'none')} here): name a directory that this policy was saved to"
        )


def adapted(model: Any, settings: LoraSettings) -> Any:
    """The model with a new adapter, drawn from torch's random state."""
    from peft import LoraConfig, get_peft_model

    modules = settings.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.r,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=modules if modules == "all-linear" else modules.split(","),
            task_type="CAUSAL_LM",
        ),
    )
