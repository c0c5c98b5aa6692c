"""Weights in shards while they are trained (FSDP), in full for everything else.

For models whose weights, gradients and optimiser do not fit one GPU:
`accelerate launch --config_file training/configs/accelerate/fsdp.yaml -m training.run …`. Each
process practises and plays by itself, which takes the full model, so the policy stays a plain
model; what is trained is a twin, which takes over the policy's weights, is sharded by accelerate,
and hands them back.
"""

from __future__ import annotations

import copy
import errno
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from stepagent.agents.models import pick_device


class Twin:
    """What is trained in the place of `original`: itself, except under FSDP.

    `original` has no weights between `release` and `hand_back`; both do nothing without FSDP.
    """

    def __init__(self, original: Any):
        self._original, self.model = original, original
        if is_fsdp():
            tensors = [*original.parameters(), *original.buffers()]
            self.model = copy.deepcopy(original, {id(t): t for t in tensors})  # shared, not copied

    def prepare(self, accelerator: Any, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The model wrapped for several processes, and the optimiser of its parameters."""
        if self.model is not self._original:
            base = next(m for m in self.model.modules() if isinstance(m, PreTrainedModel))
            plugin = accelerator.state.fsdp_plugin  # remembers the layers of the model before
            plugin.transformer_cls_names_to_wrap = list(base._no_split_modules or ())
        wrapped, stepper = accelerator.prepare(self.model, optimiser)
        self.release()
        return wrapped, stepper

    def release(self) -> None:
        """Frees the weights that the shards now hold."""
        for _, parameter in self._moved():
            parameter.data = parameter.data.new_empty(0)

    def hand_back(self) -> None:
        """Puts the trained weights into the original; all processes take part."""
        shards = dict(self.model.named_parameters())
        for name, parameter in self._moved():
            parameter.data = full(shards[name].detach())

    def _moved(self) -> list[tuple[str, Tensor]]:
        if self.model is self._original:
            return []
        return [(n, p) for n, p in self._original.named_parameters() if p.requires_grad]


def full(tensor: Tensor) -> Tensor:
    """The tensor with all its shards; all processes take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(pattern: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of a full tensor, where `pattern` is in shards."""
    if not isinstance(pattern, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)


def are_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether each process holds only its part of them."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def save_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes safetensors into a folder, each process the shards that it holds; all take part.

    Raises OSError in all of them where one cannot write.
    """
    writer = checkpoint.HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    try:
        checkpoint.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise OSError(errno.EIO, f"cannot write {folder}: {error}") from error


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """Names and full shapes of the tensors that `save_shards` wrote."""
    saved = checkpoint.HuggingFaceStorageReader(path=str(folder)).read_metadata()
    return {name: tensor.size for name, tensor in saved.state_dict_metadata.items()}  # type: ignore[union-attr]


def load_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fills tensors, full or in shards of any number of processes, with those that `save_shards`
    wrote under their names; all processes take part.

    Raises ValueError in all of them where one cannot read.
    """
    reader = checkpoint.HuggingFaceStorageReader(path=str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one process has no group, as it should
            checkpoint.load(dict(tensors), storage_reader=reader)
    except CheckpointException as error:
        raise ValueError(f"{folder}: {error}") from error


def is_fsdp() -> bool:
    """Whether the run was launched with FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_launch(device: str) -> None:
    """Raises ValueError for a launch that would not train what the configuration says.

    Where `device`, as the configuration names it, is the CPU of a machine with GPUs, accelerate is
    told so.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda" and index not in ("", "0"):
        raise ValueError(
            f"policy.device is {device}, but a run uses the first GPU that it sees: write "
            f"policy.device cuda and start it with CUDA_VISIBLE_DEVICES={index}"
        )
    if pick_device(device).type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise ValueError(
            "trained weights are float32, in practice as in training: launch with mixed_precision "
            f'"no", not {os.environ["ACCELERATE_MIXED_PRECISION"]!r}'
        )
    if is_fsdp() and not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise ValueError(f"checkpoints in shards need torch 2.9 or newer, not {torch.__version__}")
    if is_fsdp() and os.environ.get("FSDP_VERSION") != "2":
        raise ValueError("only version 2 of FSDP is supported: fsdp_config.fsdp_version: 2")
    if is_fsdp() and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "fsdp_config.fsdp_cpu_ram_efficient_loading must be false: every process practises "
            "with the full model"
        )


def check_kept_optimiser(keep: bool) -> None:
    """Raises ValueError where an optimiser cannot be kept from one iteration to the next."""
    if keep and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "preference.keep_optimiser cannot be on under DeepSpeed, which keeps the optimiser to "
            "itself"
        )


def check_own_loop(method: str) -> None:
    """Raises ValueError where `runs.optimise`, which the method uses, cannot train."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            f"method {method} cannot be trained under DeepSpeed, which steps by itself, while an "
            "update here has many trees: launch it with training/configs/accelerate/fsdp.yaml, or "
            "ddp.yaml where the full model fits"
        )
