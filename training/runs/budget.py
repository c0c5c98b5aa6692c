"""What a run has used: expert labels, episodes, draws, updates, tokens, time.

Read off the files that a run keeps, so that one that was killed and resumed counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepagent.files import is_file, parse_json, read_text
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.lines import all_lines


@dataclass(frozen=True)
class Budget:
    """What a stage, or a run, has used."""

    expert_labels: int = 0
    """Actions that the expert has shown, or said when it was asked."""
    episodes: int = 0
    """Episodes that the agent has played to learn from, those for values of actions included."""
    draws: int = 0
    """Actions that the agent has practised, one by one."""
    updates: int = 0
    """Steps of an optimiser, those of a discriminator or critic included."""
    tokens: int = 0
    """Tokens read in training, once per forward and backward pass; those without a loss count."""
    seconds: float = 0.0
    """Time of practice, episodes and training; neither evaluation nor collecting, nor starts that
    were killed."""

    def __add__(self, other: Budget) -> Budget:
        one, two = asdict(self), asdict(other)
        return Budget(**{name: one[name] + two[name] for name in one})


def of_stage(directory: RunDirectory, stage: str, figures: dict[str, float]) -> Budget:
    """What a stage has used, by the files that it has written; without its time.

    `figures` are the stage's; `expert_labels` among them counts what it has asked the expert.
    """
    updates = [
        row
        for row in _lines(directory.path / "metrics.jsonl")
        if row["stage"] == stage or row["stage"].startswith(f"{stage}-")
    ]
    episodes = [
        *(directory.path / "rollouts").glob(f"{stage}-[0-9]*.jsonl"),
        *(directory.path / "artifacts" / stage).glob("values-[0-9]*.jsonl"),
    ]
    practised = all_lines(directory.path / "practice" / f"{stage}.jsonl")
    return Budget(
        expert_labels=round(figures.get("expert_labels", 0)),
        episodes=sum(len(_lines(path)) for path in episodes),
        draws=sum(len(replies) for line in practised for replies in line.get("replies", ())),
        updates=len(updates),
        tokens=sum(row.get("tokens", 0) for row in updates),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, the last of which a kill may have cut; none where there is no file."""
    rows = []
    for line in read_text(path).splitlines() if is_file(path) else ():
        try:
            rows.append(parse_json(line))
        except ValueError:
            continue
    return rows


@contextmanager
def count_tokens(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Counts the tokens that the model embeds while gradients are computed; yields the count so
    far. (On CUDA step trees are padded to a multiple of 128, which counts.)"""
    total = 0

    def add(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal total
        if torch.is_grad_enabled() and args:
            total += args[0].numel()

    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    hook = embedding.register_forward_pre_hook(add) if embedding else None
    try:
        yield lambda: total
    finally:
        if hook:
            hook.remove()
