"""A run's directory: configuration, metrics, checkpoints, policies, summary. Safe to kill any time.

    config.yaml          the resolved configuration; another one is refused
    expert.jsonl         the trajectories learned from
    metrics.jsonl        one JSON object an update; TensorBoard has the same under tensorboard/
    inspection/          practice actions and reference log-probabilities of each iteration
    rollouts/            episodes that the agent played, for the methods that learn from them
    helpers/STAGE/       what a stage learned beside the policy (discriminator, value head), pairs
    checkpoints/STAGE/   the newest state within a stage; gone when the stage is done
    policies/STAGE/      the policy after a stage
    eval/STAGE/          its episodes and scores
    final/               the last policy; loads with from_pretrained, or with PEFT
    summary.json         what came out

Whatever is whole appears in one rename, so that what is there can be trusted.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from stepagent.errors import UserError
from stepagent.files import Lock, Locked, write_atomically, write_text
from stepagent.training import processes, sharding
from stepagent.training.config import Config


class RunError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


class RunDir:
    """Opens (or goes on with) the run in `path`.

    Of several processes that work on one run together, the main one owns the directory and writes;
    the others (`main=False`) read. Raises RunError where the directory holds a run of another
    configuration, or where a process of another run is at work in it.
    """

    def __init__(self, path: str | Path, config: str, main: bool = True):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics = Metrics(self.path, main)
        self.resumed = (self.path / "config.yaml").is_file()
        self.main = main
        self._lock: Lock | None = None
        if not main:
            return
        try:
            self._lock = Lock(self.path / ".lock")
        except Locked as error:
            raise RunError(f"{error.strerror}: wait for it, or use another `output`") from None
        file = self.path / "config.yaml"
        if file.is_file() and (found := differing(file.read_text(), config)):
            told = "; ".join(f"{key} {a!r}, now {b!r}" for key, (a, b) in list(found.items())[:4])
            raise RunError(
                f"{self.path} holds a run with another configuration ({told}): choose another "
                "`output`, or delete the directory"
            )
        write_text(file, config)

    def policy(self, stage: str) -> Path:
        return self.path / "policies" / stage

    def checkpoint(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def helpers(self, stage: str) -> Path:
        """A folder for what a stage learns or gathers beside the policy."""
        path = self.path / "helpers" / stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    def has_policy(self, stage: str) -> bool:
        """Whether the stage is done."""
        return self.policy(stage).is_dir()

    def finish_stage(self, stage: str, save: Callable[[Path], None]) -> None:
        """Keeps the stage's policy and drops its checkpoints."""
        if not self.main:
            return
        write_atomically(self.policy(stage), save)
        self.drop_checkpoint(stage)

    def drop_checkpoint(self, stage: str) -> None:
        shutil.rmtree(self.checkpoint(stage), ignore_errors=True)

    def check_space(self, needed: int, what: str) -> None:
        """Raises RunError where the disk has fewer than `needed` bytes left."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"{what} need about {needed / 1e9:.1f} GB in {self.path}, where "
                f"{free / 1e9:.1f} GB are free: make room, choose another `output`, or set "
                "keep_policies to false"
            )

    def close(self) -> None:
        self.metrics.close()
        if self._lock:
            self._lock.release()


FREE = (
    "checkpoint_seconds",
    "evaluation.agents",
    "evaluation.every_iteration",
    "evaluation.workers",
    "expert.workers",
    "keep_policies",
    "rollouts.workers",
)
"""Options that may change while a run is under way: no weight and no score depends on them."""


def differing(old: str, new: str) -> dict[str, tuple[Any, Any]]:
    """The options (by their whole names) in which two configurations differ, and both values.

    Those that are `FREE` count as equal, and one that did not exist yet when the old was written
    had what is its default now.
    """
    before, now = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    before = {**{key: value for key, value in _defaults().items() if key in now}, **before}
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if key not in FREE and before.get(key) != now.get(key)
    }


def without_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """The options (by their whole names) that do not have their default."""
    defaults = _defaults()
    return {
        key: value
        for key, value in _flat(options).items()
        if key not in defaults or value != defaults[key]
    }


def _defaults() -> dict[str, Any]:
    return _flat(dataclasses.asdict(Config(output="")))


def _flat(options: Any, path: str = "") -> dict[str, Any]:
    """Nested options by their whole names."""
    if not isinstance(options, dict) or not options:
        return {path: options}
    return {
        name: value
        for key, part in options.items()
        for name, value in _flat(part, f"{path}.{key}" if path else str(key)).items()
    }


class Metrics:
    """Figures of a run as JSON lines and TensorBoard events."""

    def __init__(self, path: Path, main: bool = True):
        self.path, self._main = path / "metrics.jsonl", main
        self._events = path / "tensorboard"
        self._writer: Any = None

    def log(self, stage: str, update: int, **figures: float) -> None:
        """One line; `update` counts within the stage."""
        if not self._main:
            return
        line = {"stage": stage, "update": update} | {k: _number(v) for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._events))
        for name, value in figures.items():
            self._writer.add_scalar(f"{stage}/{name}", value, update)

    def rewind(self, stage: str, update: int) -> None:
        """Drops the stage's lines after `update`: they are about to be made again."""
        if not self._main or not self.path.is_file():
            return
        lines = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut by a kill
            if row["stage"] != stage or row["update"] <= update:
                lines.append(line + "\n")
        write_text(self.path, "".join(lines))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _number(value: float) -> float | int:
    return value if isinstance(value, int) else round(float(value), 6)


def save_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer, update: int
) -> None:
    """Trained weights, optimiser, random state and position, as safetensors and JSON.

    All processes take part, the main one writes.
    """
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    state = optimiser.state_dict()["state"]
    moments = {f"{i}.{k}": v for i, row in state.items() for k, v in row.items()}
    weights, moments = _on_main(weights), _on_main(moments)
    if not processes.is_main():
        return

    def save(partial: Path) -> None:
        partial.mkdir(parents=True)
        save_file(weights, partial / "trained.safetensors")
        save_file(moments, partial / "optimiser.safetensors")
        rng = {"cpu": torch.get_rng_state()}
        for i in range(torch.cuda.device_count()):
            rng[f"cuda{i}"] = torch.cuda.get_rng_state(i)
        save_file(rng, partial / "random.safetensors")
        (partial / "position.json").write_text(json.dumps({"update": update}))

    write_atomically(path, save)


def _on_main(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole tensors, on the CPU, for the main process; nothing for the others."""
    found = {}
    for name, tensor in tensors.items():
        all_of_it = sharding.whole(tensor)
        if processes.is_main():
            found[name] = all_of_it.contiguous().cpu()
    return found


def load_training_state(
    path: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> int:
    """Puts a saved state back; returns the updates done. 0 where there is none."""
    if not (path / "position.json").is_file():
        return 0
    weights = load_file(path / "trained.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(sharding.sharded_as(parameter, weights[name]))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path / "optimiser.safetensors").items():
        index, name = key.split(".", 1)
        if value.dim():  # AdamW's count of steps is a number
            value = sharding.sharded_as(parameters[int(index)], value)
        moments.setdefault(int(index), {})[name] = value
    whole = optimiser.state_dict()
    whole["state"] = moments
    optimiser.load_state_dict(whole)
    rng = load_file(path / "random.safetensors")
    torch.set_rng_state(rng["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in rng:
            torch.cuda.set_rng_state(rng[f"cuda{i}"], i)
    return int(json.loads((path / "position.json").read_text())["update"])
