"""Checkpoints of TRL's trainers under FSDP: in shards, and resumed by any number of processes.

By itself a trainer gathers weights and optimiser on one process, and resumes only as it was
launched. Of weights that share another's memory it warns as if a checkpoint lacked them.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from stepagent.training.policy import Policy
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.checkpoints import in_shards, load_state, restore_moments, save_state
from stepagent.training.trees.compat import unwrap

_SCHEDULER, _OPTIMISER = "scheduler.pt", "optimizer.pt"
"""The trainer's own files."""


def adapt(trainer: Any, policy: Policy, checkpoint: Path | None) -> None:
    """Replaces what the trainer would do by itself: under FSDP its writing, and its reading of a
    checkpoint that is in shards or comes from a launch without FSDP.

    The weights of the latter are loaded into the policy here, before the trainer shards it.
    """
    if sharding.is_fsdp():
        trainer.save_model = _nothing
        trainer._save_optimizer_and_scheduler = lambda folder: _save(trainer, Path(folder))
    if not checkpoint:
        return
    warn = trainer._issue_warnings_after_load
    shared = getattr(unwrap(policy.model), "all_tied_weights_keys", {})
    trainer._issue_warnings_after_load = lambda loaded: warn(
        SimpleNamespace(
            missing_keys=[key for key in loaded.missing_keys if key not in shared],
            unexpected_keys=loaded.unexpected_keys,
        )
    )
    load = None
    if in_shards(checkpoint):
        load = _load
    elif sharding.is_fsdp() and (checkpoint / _OPTIMISER).is_file():
        policy.load_weights(checkpoint)
        load = _load_optimiser
    if load:
        trainer._load_from_checkpoint = _nothing
        trainer._load_optimizer_and_scheduler = lambda folder: load(trainer, Path(folder))


def _nothing(*_: Any, **options: Any) -> None:
    pass


def _save(trainer: Any, folder: Path) -> None:
    if processes.is_main():
        os.makedirs(folder, exist_ok=True)
    processes.wait()
    save_state(folder, trainer.model, trainer.optimizer)
    if processes.is_main():
        torch.save(trainer.lr_scheduler.state_dict(), folder / _SCHEDULER)


def _load(trainer: Any, folder: Path) -> None:
    """Weights, moments and the schedule of a checkpoint in shards."""
    load_state(folder, trainer.model, trainer.optimizer)
    _load_schedule(trainer, folder)


def _load_optimiser(trainer: Any, folder: Path) -> None:
    """Moments and schedule of a checkpoint that the trainer wrote by itself."""
    saved = torch.load(folder / _OPTIMISER, map_location="cpu", weights_only=True)["state"]
    moments = {f"{index}.{name}": t for index, row in saved.items() for name, t in row.items()}
    restore_moments(moments, trainer.optimizer)
    _load_schedule(trainer, folder)


def _load_schedule(trainer: Any, folder: Path) -> None:
    state = torch.load(folder / _SCHEDULER, map_location="cpu", weights_only=True)
    trainer.lr_scheduler.load_state_dict(state)
    rates = trainer.lr_scheduler.get_last_lr()  # which it does not give to the optimiser
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
