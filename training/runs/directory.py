"""A run's directory: configuration, metrics, checkpoints, policies, summary. Safe to kill any time.

    config.yaml          the resolved configuration; a different one is refused
    origin.json          which `nano` it began from; a different one is refused
    expert/              the expert's trajectories, where the run collects them itself
    base/                the untrained model, where it is made from scratch
    entering/            the policy after SFT, for methods that refer back to it
    metrics.jsonl        one JSON object per update; TensorBoard has the same under tensorboard/
    practice/            practice actions of each iteration
    rollouts/            episodes that the agent played, for the methods that learn from them
    artifacts/STAGE/     what a stage keeps beside the policy (discriminator, reference log-probs)
    checkpoints/STAGE/   the newest state within a stage; deleted when the stage is done
    policies/STAGE/      the policy after a stage
    eval/STAGE/          its episodes and scores
    stages.json          which stages are done, and their figures
    final/               the last policy; loads with from_pretrained, or with PEFT
    summary.json         the results

Everything complete appears in one rename, so that what exists can be trusted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from stepagent.errors import UserError
from stepagent.files import (
    Lock,
    Locked,
    check_files,
    is_file,
    read_object,
    read_text,
    write_atomically,
    write_text,
)
from stepagent.training.runs.metrics import Metrics
from stepagent.training.runs.options import differing

ORIGIN = "origin.json"
MOMENTS = "optimiser.safetensors"
BASE = "base"
"""The folder of the model `tiny` as it was before any training."""
"""AdamW's moments, in a checkpoint and among a stage's artifacts."""


class RunError(UserError, RuntimeError):
    """A run that cannot start or resume; the message says what to do."""


class WrongOptions(RunError):
    """Options or files that the run cannot use."""

    exit_code = 2


def shards_of(path: Path) -> Path:
    """The folder in the place of a file of tensors, where these are in shards."""
    return path.with_suffix("")


class RunDirectory:
    """Opens (or reopens) the run in `path`.

    Of several processes that work on one run together, the main one owns the directory and writes;
    the others (`main=False`) read. Raises RunError where the directory holds a run of a different
    configuration, or where a process of another run is working in it.
    """

    def __init__(self, path: str | Path, config: str, main: bool = True):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        check_files(self.path)
        self.metrics = Metrics(self.path, main)
        self.resumed = is_file(self.path / "config.yaml")
        self.main = main
        self._lock: Lock | None = None
        if not main:
            return
        try:
            self._lock = Lock(self.path / ".lock")
        except Locked as error:
            raise RunError(f"{error.strerror}: wait for it, or use another `output`") from None
        file = self.path / "config.yaml"
        if not is_file(file) and is_file(self.path / "stages.json"):
            raise RunError(
                f"{file} is missing, so it is unknown which run the directory holds: restore the "
                "file, choose another `output`, or delete the directory"
            )
        if changes := self._changes(file, config):
            first = [f"{key} {old!r}, now {new!r}" for key, (old, new) in changes.items()][:4]
            raise RunError(
                f"{self.path} holds a run with another configuration ({'; '.join(first)}): choose "
                "another `output`, or delete the directory"
            )
        write_text(file, config)

    @staticmethod
    def _changes(file: Path, config: str) -> dict[str, tuple[Any, Any]]:
        """The options that differ from those of the run that the directory holds."""
        if not is_file(file):
            return {}
        try:
            return differing(read_text(file), config)
        except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
            raise RunError(
                f"{file} is damaged ({str(error).splitlines()[0]}): restore the file, choose "
                "another `output`, or delete the directory"
            ) from None

    def begin_from(self, origin: dict[str, str]) -> None:
        """Keeps which model the run begins from. Raises RunError where it began from another one of
        the same name."""
        file = self.path / ORIGIN
        before = read_object(file)
        if before and before != origin:
            model, old, new = origin["model"], before.get("digest"), origin["digest"]
            raise RunError(
                f"{self.path} holds a run that began from another {model} ({old}) than the one "
                f"that is installed now ({new}): install that one again, choose another `output`, "
                "or delete the directory"
            )
        if self.main and not before:
            write_text(file, json.dumps(origin))

    def policy(self, stage: str) -> Path:
        return self.path / "policies" / stage

    def checkpoint(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def artifacts(self, stage: str) -> Path:
        """A folder for what a stage learns or gathers beside the policy."""
        path = self.path / "artifacts" / stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    def has_policy(self, stage: str) -> bool:
        return self.policy(stage).is_dir()

    def finish_stage(self, stage: str, save: Callable[[Path], None]) -> None:
        """Keeps the stage's policy and drops its checkpoints."""
        if not self.main:
            return
        write_atomically(self.policy(stage), save)
        self.drop_checkpoint(stage)

    def drop_checkpoint(self, stage: str) -> None:
        shutil.rmtree(self.checkpoint(stage), ignore_errors=True)

    def check_space(self, needed: int, contents: str) -> None:
        """Raises RunError where the disk has fewer than `needed` bytes left."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise RunError(
                f"{contents} need about {needed / 1e9:.1f} GB in {self.path}, where "
                f"{free / 1e9:.1f} GB are free: make room, choose another `output`, or set "
                "keep_policies to false"
            )

    def close(self) -> None:
        self.metrics.close()
        if self._lock:
            self._lock.release()
