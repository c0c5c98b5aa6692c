"""Gradient descent over a fixed plan of updates: the one loop behind every method of ours.

A method says what an update consists of (a list of items) and what an item's loss is; this file
owns devices and processes (accelerate), learning rate, clipping, checkpoints, resume and logging.
The plan is a function of the seed alone, so a run that was killed and started again makes the same
updates in the same order and ends with the same weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import get_scheduler
from trl.trainer.utils import disable_dropout_in_model

from stepagent.errors import UserError
from stepagent.training import processes, sharding
from stepagent.training.config import OptimiserConfig
from stepagent.training.rundir import RunDir, load_training_state, save_training_state

Item = TypeVar("Item")
Loss = Callable[[Any, Item], tuple[Tensor, dict[str, float]]]
"""(model, item) → the loss summed over the item's samples, and sums of figures to log."""


class TrainingDiverged(UserError, RuntimeError):
    """The loss or its gradient is no longer a number."""


def optimise(
    model: Any,
    plan: Sequence[Sequence[Item]],
    loss: Loss[Item],
    size: Callable[[Item], float],
    config: OptimiserConfig,
    rundir: RunDir,
    stage: str,
    *,
    checkpoint_seconds: float = 300.0,
    on_update: Callable[[int, dict[str, float]], bool | None] | None = None,
) -> dict[str, float]:
    """Makes the plan's updates, from the newest checkpoint of the stage on.

    Parameters
    ----------
    model: the policy's model; parameters with `requires_grad` are trained, in float32.
    plan: for each update the items it consists of (never empty).
    loss: see `Loss`; figures are logged as means over `size`.
    size: how many samples an item counts for; an update's loss is the mean over its samples.
    on_update: called with (updates done, figures), for progress bars; True ends the training.

    Returns the means of the figures over the updates made since the last checkpoint.
    Raises TrainingDiverged when the loss is not finite; the checkpoint before it is kept.
    """
    from accelerate import Accelerator

    processes.count()  # with our patience, before accelerate sets its own
    accelerator, twin = Accelerator(), sharding.Twin(model)
    optimiser = torch.optim.AdamW(
        [p for p in twin.model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )
    wrapped, stepper = twin.prepare(accelerator, optimiser)
    done = load_training_state(rundir.checkpoint(stage), twin.model, optimiser)
    rundir.metrics.rewind(stage, done)
    scale = get_scheduler(
        config.schedule,
        optimiser,
        num_warmup_steps=round(config.warmup_ratio * len(plan)),
        num_training_steps=len(plan),
    ).lr_lambdas[0]
    wrapped.train()
    # Ratios to a reference are to be those of the weights, and a run gone on with the same as one
    # that never stopped: no dropout.
    disable_dropout_in_model(wrapped)
    totals: dict[str, float] = {}
    made, saved = 0, time.monotonic()
    for update in range(done, len(plan)):
        samples = sum(size(item) for item in plan[update])
        figures: dict[str, float] = {"loss": 0.0}
        work = _share(plan[update], accelerator.process_index, accelerator.num_processes)
        for i, (item, weight) in enumerate(work):
            last = i + 1 == len(work)
            with _exchange(accelerator, wrapped, last):
                total, sums = loss(wrapped, item)
                # Processes average their gradients; the mean is over the samples of all of them.
                accelerator.backward(total * (weight * accelerator.num_processes / samples))
            figures["loss"] += weight * float(total.detach())
            for name, value in sums.items():
                figures[name] = figures.get(name, 0.0) + weight * value
        figures = _across_processes(accelerator, figures)
        figures = {name: value / samples for name, value in figures.items()}
        norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
        figures["grad_norm"] = float(sharding.whole(norm))
        if not torch.isfinite(torch.tensor([figures["loss"], figures["grad_norm"]])).all():
            raise TrainingDiverged(
                f"{stage}, update {update + 1}: the loss is {figures['loss']} and the norm of its "
                f"gradient {figures['grad_norm']}: lower the learning rate (now "
                f"{config.learning_rate}) in a run with another `output`"
            )
        figures["learning_rate"] = config.learning_rate * scale(update)
        for group in optimiser.param_groups:
            group["lr"] = figures["learning_rate"]
        stepper.step()
        stepper.zero_grad()
        if accelerator.is_main_process:
            rundir.metrics.log(stage, update + 1, **figures)
        for name, value in figures.items():
            totals[name] = totals.get(name, 0.0) + value
        made += 1
        if on_update and on_update(update + 1, figures):
            break
        due = time.monotonic() - saved > checkpoint_seconds
        if any(processes.gather(due)):  # all or none: shards are collected together
            save_training_state(rundir.checkpoint(stage), twin.model, optimiser, update + 1)
            saved = time.monotonic()
    twin.hand_back()
    model.eval()
    return {name: value / max(1, made) for name, value in totals.items()}


def _share(items: Sequence[Item], rank: int, count: int) -> list[tuple[Item, float]]:
    """One process's part of an update, with weights: 0 where there is no item left for it.

    All processes run equally many, since they exchange shards and gradients as they go.

    >>> _share(["a", "b", "c"], 1, 2)
    [('b', 1.0), ('a', 0.0)]
    """
    mine = [(item, 1.0) for item in items[rank::count]]
    return mine + [(items[0], 0.0)] * (-(-len(items) // count) - len(mine))


def _exchange(accelerator: Any, model: Any, last: bool) -> Any:
    """Gradients travel between processes once an update, with its last item; in shards with each,
    or every process would hold whole gradients."""
    now = last or accelerator.is_fsdp2
    return contextlib.nullcontext() if now else accelerator.no_sync(model)


def _across_processes(accelerator: Any, figures: dict[str, float]) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return figures
    names = sorted(figures)
    values = torch.tensor([figures[n] for n in names], device=accelerator.device)
    return dict(zip(names, accelerator.reduce(values, "sum").tolist(), strict=True))


def batches(
    order: Sequence[Item], batch_size: int, size: Callable[[Item], float]
) -> list[list[Item]]:
    """Cuts a sequence into updates of at least `batch_size` samples (the last may have fewer)."""
    plan: list[list[Item]] = [[]]
    held = 0.0
    for item in order:
        if held >= batch_size:
            plan.append([])
            held = 0.0
        plan[-1].append(item)
        held += size(item)
    return [update for update in plan if update]
