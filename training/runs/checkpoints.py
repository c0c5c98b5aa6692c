"""Checkpoints within a stage: trained weights, optimiser, random state and position.

Safetensors and JSON, nothing pickled.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stepagent.errors import UserError
from stepagent.files import parse_json, write_atomically
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.directory import MOMENTS

log = logging.getLogger(__name__)
_RANDOM = "random.safetensors"


class DamagedState(UserError, RuntimeError):
    """A file of a run that cannot be read; the message names it."""


@dataclass
class Position:
    """How far a training is."""

    update: int = 0
    """Updates done."""
    count: int = 0
    """Updates that `totals` adds up."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of their figures."""
    recent: dict[str, float] = field(default_factory=dict)
    """Moving averages of their figures over the last ten or so, from 0 on: low at first."""

    def add(self, figures: dict[str, float]) -> None:
        """Counts one more update."""
        self.update, self.count = self.update + 1, self.count + 1
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
            recent = self.recent.get(name, 0.0)
            self.recent[name] = recent + (value - recent) / 10

    def means(self) -> dict[str, float]:
        return {name: value / max(1, self.count) for name, value in self.totals.items()}


def save_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, position: Position
) -> None:
    """Trained weights, optimiser, random state and position. All processes take part, the main
    one writes."""
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    weights, moments = _on_main(weights), _moments(optimiser)
    if not processes.is_main():
        return

    def save(partial: Path) -> None:
        partial.mkdir(parents=True)
        save_file(weights, partial / "trained.safetensors")
        save_file(moments, partial / MOMENTS)
        rng = {"cpu": torch.get_rng_state()}
        for i in range(torch.cuda.device_count()):
            rng[f"cuda{i}"] = torch.cuda.get_rng_state(i)
        save_file(rng, partial / _RANDOM)
        (partial / "position.json").write_text(json.dumps(asdict(position)))

    write_atomically(path, save)


def save_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """What `load_moments` reads. All processes take part, the main one writes."""
    moments = _moments(optimiser)
    if processes.is_main():
        write_atomically(path, lambda partial: save_file(moments, partial))
    processes.wait()


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimiser.state_dict()["state"]
    return _on_main({f"{i}.{k}": v for i, row in state.items() for k, v in row.items()})


def _on_main(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The full tensors, on the CPU, for the main process; nothing for the others."""
    gathered = {}
    for name, tensor in tensors.items():
        full = sharding.full(tensor)  # all processes take part
        if processes.is_main():
            gathered[name] = full.contiguous().cpu()
    return gathered


def load_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, updates: int
) -> Position:
    """Restores a saved state of a training of so many updates, where there is one; returns how far
    it is. A damaged one is reported and left aside: then the training starts again."""
    if not path.is_dir():
        return Position()
    try:
        position = Position(**parse_json((path / "position.json").read_text()))
        if not 0 < position.update <= updates:
            raise ValueError(f"update {position.update} of {updates}")
        weights, rng = load_file(path / "trained.safetensors"), load_file(path / _RANDOM)
        moments = load_file(path / MOMENTS)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        _check_shapes(trained, weights)
        torch.set_rng_state(rng["cpu"])
        _restore_moments(moments, optimiser)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        log.warning("%s is damaged (%s): its stage starts again", path, error)
        optimiser.state.clear()
        return Position()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(sharding.sharded_as(parameter, weights[name]))
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda{i}"], i)
    return position


def load_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Continues from the moments of an optimiser of the same parameters, where there are any.

    Raises DamagedState where the file holds others, or nothing that can be read.
    """
    if not path.is_file():
        return
    try:
        _restore_moments(load_file(path), optimiser)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedState(
            f"{path} is damaged ({error}): set keep_optimiser to false in a run with another "
            "`output`, or delete the directory"
        ) from error


def _check_shapes(expected: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    there, here = ({n: tuple(t.shape) for n, t in x.items()} for x in (saved, expected))
    if there != here:
        raise ValueError("its tensors are not those of this model")


def _restore_moments(saved: Mapping[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Raises ValueError for moments of other parameters."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in saved.items():
        index, name = key.split(".", 1)
        if value.dim():  # AdamW's count of steps is a scalar
            if not key[0].isdigit() or int(index) >= len(parameters):
                raise ValueError(f"{key} is no moment of this optimiser")
            if value.shape != parameters[int(index)].shape:
                raise ValueError(f"{key} has another shape")
            value = sharding.sharded_as(parameters[int(index)], value)
        moments.setdefault(int(index), {})[name] = value
    state = optimiser.state_dict()
    state["state"] = moments
    optimiser.load_state_dict(state)
