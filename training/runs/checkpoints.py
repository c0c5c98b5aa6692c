"""Checkpoints within a stage: trained weights, optimiser, random state and position.

Safetensors and JSON, nothing pickled. Tensors in shards (FSDP) are not gathered: in the place of
their file is a folder to which each process writes its own (`torch.distributed.checkpoint`). Any
number of processes resumes from either form, with shards or without.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stepagent.errors import UserError
from stepagent.files import parse_json, read_text, write_atomically
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.directory import MOMENTS, shards_of

log = logging.getLogger(__name__)
_WEIGHTS = "trained.safetensors"
_RANDOM = "random.safetensors"


class DamagedState(UserError, RuntimeError):
    """A file of a run that cannot be read, or is of other data; the message names it."""


@dataclass
class Position:
    """How far a training is."""

    update: int = 0
    """Updates done."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of their figures."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of how many updates each is the sum."""
    recent: dict[str, float] = field(default_factory=dict)
    """Moving averages of their figures over the last ten or so, from 0 on: low at first."""

    def add(self, figures: dict[str, float]) -> None:
        """Counts one more update."""
        self.update += 1
        for name, value in figures.items():
            self.counts[name] = self.counts.get(name, 0) + 1
            self.totals[name] = self.totals.get(name, 0.0) + value
            recent = self.recent.get(name, 0.0)
            self.recent[name] = recent + (value - recent) / 10

    def means(self) -> dict[str, float]:
        return {name: value / self.counts[name] for name, value in self.totals.items()}


def save_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, position: Position
) -> None:
    """Trained weights, optimiser, random state and position. All processes take part; the main one
    writes all but the others' shards."""

    def save(partial: Path) -> None:
        save_state(partial, model, optimiser)
        if processes.is_main():
            rng = {"cpu": torch.get_rng_state()}
            for i in range(torch.cuda.device_count()):
                rng[f"cuda{i}"] = torch.cuda.get_rng_state(i)
            save_file(rng, partial / _RANDOM)
            (partial / "position.json").write_text(json.dumps(asdict(position)))

    _write_together(path, save)


def save_state(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Trained weights and moments, into a folder that exists. All processes take part."""
    _save(folder / _WEIGHTS, _trained(model))
    _save(folder / MOMENTS, _moments(optimiser))


def load_state(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """What `save_state` wrote; nothing is changed where it raises ValueError, for tensors of
    another model, or what reading a damaged file raises. All processes take part."""
    trained = _trained(model)
    weights = _load(folder / _WEIGHTS, trained.__getitem__)
    if weights.keys() != trained.keys():
        raise ValueError("its tensors are not those of this model")
    _load_moments(folder / MOMENTS, optimiser)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])


def in_shards(folder: Path) -> bool:
    """Whether `save_state` wrote shards there."""
    return shards_of(folder / _WEIGHTS).is_dir()


def save_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """What `load_moments` reads. All processes take part."""
    moments = _moments(optimiser)
    if sharding.are_sharded(moments):
        _write_together(shards_of(path), lambda partial: sharding.save_shards(partial, moments))
    elif processes.is_main():
        write_atomically(path, lambda partial: _save(partial, moments))
    processes.wait()


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def _moments(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"{i}.{k}": v for i, row in state.items() for k, v in row.items()}


def _write_together(path: Path, save: Callable[[Path], None]) -> None:
    """`write_atomically` of a folder to which every process adds its files by `save`."""

    def save_together(partial: Path) -> None:
        partial.mkdir(parents=True)
        processes.gather(str(partial))
        save(partial)

    if processes.is_main():
        write_atomically(path, save_together)
    else:
        save(Path(processes.gather(None)[0]))


def _save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """A file by the main process, or shards by all."""
    if sharding.are_sharded(tensors):
        shards_of(path).mkdir(exist_ok=True)
        sharding.save_shards(shards_of(path), tensors)
    elif processes.is_main():
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path)


def _load(path: Path, pattern: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `_save` wrote, each tensor placed as `pattern` of its name, which scalars do not have.

    Raises ValueError for a tensor of another shape.
    """
    folder = shards_of(path)
    in_shards = folder.is_dir()
    saved = {} if in_shards else load_file(path)
    shapes = sharding.saved_shapes(folder) if in_shards else {n: t.shape for n, t in saved.items()}
    if not shapes:
        raise ValueError(f"{folder} is empty")
    tensors = {}
    for name, shape in shapes.items():
        like = pattern(name) if shape else torch.zeros(())  # AdamW's count of steps is a scalar
        if like.shape != shape:
            raise ValueError(f"{name} has another shape")
        place = torch.empty_like(like) if in_shards else sharding.sharded_as(like, saved[name])
        tensors[name] = place
    if in_shards:
        sharding.load_shards(folder, tensors)
    return tensors


def load_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, updates: int
) -> Position:
    """Restores a saved state of a training of so many updates, where there is one; returns how far
    it is. A damaged one is reported and left aside: then the training starts again."""
    if not path.is_dir():
        return Position()
    try:
        position = Position(**parse_json(read_text(path / "position.json")))
        if not 0 < position.update <= updates:
            raise ValueError(f"update {position.update} of {updates}")
        rng = load_file(path / _RANDOM)
        load_state(path, model, optimiser)
        torch.set_rng_state(rng["cpu"])
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        log.warning("%s is damaged (%s): its stage starts again", path, error)
        optimiser.state.clear()
        return Position()
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda{i}"], i)
    return position


def load_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Continues from the moments of an optimiser of the same parameters.

    Raises DamagedState where the file holds others, or nothing that can be read.
    """
    try:
        _load_moments(path, optimiser)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedState(
            f"{path} is damaged ({error}): set keep_optimiser to false in a run with another "
            "`output`, or delete the directory"
        ) from error


def _load_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Raises ValueError for moments of other parameters."""
    parameters = _parameters(optimiser)

    def parameter(key: str) -> torch.Tensor:
        index = key.partition(".")[0]
        if not index.isdigit() or int(index) >= len(parameters):
            raise ValueError(f"{key} is no moment of this optimiser")
        return parameters[int(index)]

    restore_moments(_load(path, parameter), optimiser)


def restore_moments(moments: Mapping[str, torch.Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Moments by `INDEX.NAME`, the index of their parameter among the optimiser's; full or in
    shards."""
    parameters = _parameters(optimiser)
    rows: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        placed = sharding.sharded_as(parameters[int(index)], value) if value.dim() else value
        rows.setdefault(int(index), {})[name] = placed
    state = optimiser.state_dict()
    state["state"] = rows
    optimiser.load_state_dict(state)


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]
