"""Checkpoints within a stage: trained weights, optimiser, random state and position.

Safetensors and JSON, nothing pickled.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stepagent.files import write_atomically
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.directory import MOMENTS


def save_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, update: int
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
        save_file(rng, partial / "random.safetensors")
        (partial / "position.json").write_text(json.dumps({"update": update}))

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
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> int:
    """Restores a saved state; returns the updates done, 0 where there is none."""
    if not (path / "position.json").is_file():
        return 0
    weights = load_file(path / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(sharding.sharded_as(parameter, weights[name]))
    load_moments(path / MOMENTS, optimiser)
    rng = load_file(path / "random.safetensors")
    torch.set_rng_state(rng["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda{i}"], i)
    return int(json.loads((path / "position.json").read_text())["update"])


def load_moments(path: Path, optimiser: torch.optim.Optimizer) -> None:
    """Continues from the moments of an optimiser of the same parameters, where there are any."""
    if not path.is_file():
        return
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        index, name = key.split(".", 1)
        if value.dim():  # AdamW's count of steps is a scalar
            value = sharding.sharded_as(parameters[int(index)], value)
        moments.setdefault(int(index), {})[name] = value
    state = optimiser.state_dict()
    state["state"] = moments
    optimiser.load_state_dict(state)
