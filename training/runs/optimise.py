"""Gradient descent over a schedule of updates: the loop of every method that TRL does not train.

A method says what an update consists of (a list of items) and what an item's loss is; this file
owns devices and processes (accelerate), learning rate, clipping, checkpoints, resume and logging.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import get_scheduler
from trl.trainer.utils import disable_dropout_in_model

from stepagent.errors import UserError
from stepagent.training.config import OptimiserConfig
from stepagent.training.runs import interrupts, processes, sharding
from stepagent.training.runs.budget import count_tokens
from stepagent.training.runs.checkpoints import (
    load_moments,
    load_training_state,
    save_moments,
    save_training_state,
)
from stepagent.training.runs.directory import MOMENTS
from stepagent.training.runs.schedule import Schedule
from stepagent.training.runs.stage import Stage

Item = TypeVar("Item")
Loss = Callable[[Any, Item], tuple[Tensor, dict[str, float]]]
"""(model, item) → the loss summed over the item's samples, and sums of figures to log."""


class TrainingDiverged(UserError, RuntimeError):
    """The loss or its gradient is no longer a number."""


def optimise(
    stage: Stage,
    model: Any,
    schedule: Schedule[Item],
    loss: Loss[Item],
    config: OptimiserConfig,
) -> dict[str, float]:
    """Makes the updates of the schedule, resuming from the newest checkpoint of the stage.

    Parameters
    ----------
    model: the policy's model; parameters with `requires_grad` are trained, in float32.
    loss: see `Loss`; figures are logged as means over the samples of an update, or over what
        `Schedule.per` says.

    Returns the means of the figures over the updates. Raises TrainingDiverged when the loss is not
    finite; the checkpoint before it is kept. After Ctrl-C or SIGTERM it ends the current update,
    writes a checkpoint and raises KeyboardInterrupt.
    """
    from accelerate import Accelerator

    processes.count()  # with our timeout, before accelerate sets its own
    accelerator, twin = Accelerator(), sharding.Twin(model)
    optimiser = torch.optim.AdamW(
        _groups(twin.model, {"": config.learning_rate, **schedule.rates}),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )
    wrapped, stepper = twin.prepare(accelerator, optimiser)
    updates = schedule.updates
    position = load_training_state(stage.checkpoint, twin.model, optimiser, len(updates))
    before = stage.moments_before if stage.keep_optimiser else None
    if before and not position.update:  # else the checkpoint has its own
        load_moments(before, optimiser)
    stage.resume_at(position.update)
    rate = get_scheduler(
        config.schedule,
        optimiser,
        num_warmup_steps=round(config.warmup_ratio * len(updates)),
        num_training_steps=len(updates),
    ).lr_lambdas[0]
    wrapped.train()
    # No dropout: ratios to a reference are those of the weights alone, and a run that was resumed
    # equals one that never stopped.
    disable_dropout_in_model(wrapped)
    with (
        stage.times.of("updates"),
        interrupts.checkpoint_clock(stage.checkpoint_seconds) as clock,
        stage.progress(len(updates), "updates") as move,
        count_tokens(twin.model) as tokens,
    ):
        counting = _counting(loss, tokens)
        for update in range(position.update, len(updates)):
            figures = _gradients(accelerator, wrapped, updates[update], schedule, counting)
            read = round(figures.pop("tokens") * sum(map(schedule.size, updates[update])))
            norms = [
                accelerator.clip_grad_norm_(group["params"], config.max_grad_norm)
                for group in optimiser.param_groups
            ]
            figures["grad_norm"] = math.hypot(*(float(sharding.full(norm)) for norm in norms))
            if not torch.isfinite(torch.tensor([figures["loss"], figures["grad_norm"]])).all():
                raise TrainingDiverged(
                    f"{stage.name}, update {update + 1}: the loss is {figures['loss']} and the "
                    f"norm of its gradient {figures['grad_norm']}: lower the learning rate (now "
                    f"{config.learning_rate}) in a run with another `output`"
                )
            figures["learning_rate"] = config.learning_rate * rate(update)
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * rate(update)
            stepper.step()
            stepper.zero_grad()
            stage.log(update + 1, {**figures, "tokens": read})
            move(update + 1, figures)
            position.add(figures)
            if schedule.until and schedule.until(update + 1, position.recent):
                position.update = len(updates)
            if clock.due():
                save_training_state(stage.checkpoint, twin.model, optimiser, position)
                clock.written()
            if position.update == len(updates):
                break
    if stage.keep_optimiser:
        save_moments(stage.artifacts / MOMENTS, optimiser)
    twin.hand_back()
    model.eval()
    return position.means()


def _groups(model: torch.nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """AdamW's groups of trained parameters: for each part of the model its peak rate; "" is what no
    other part holds."""
    groups: dict[str, dict[str, Any]] = {
        part: {"params": [], "peak": rate} for part, rate in rates.items()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for part in rates if part and name.startswith(f"{part}.")), "")
            groups[part]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _counting(loss: Loss[Item], tokens: Callable[[], int]) -> Loss[Item]:
    """The loss, with the tokens that it reads among its figures."""

    def counted(model: Any, item: Item) -> tuple[Tensor, dict[str, float]]:
        before = tokens()
        total, sums = loss(model, item)
        return total, {**sums, "tokens": float(tokens() - before)}

    return counted


def _gradients(
    accelerator: Any,
    model: Any,
    items: Sequence[Item],
    schedule: Schedule[Item],
    loss: Loss[Item],
) -> dict[str, float]:
    """Gradients of an update's mean loss, on the model; returns loss and figures as means."""
    samples = sum(schedule.size(item) for item in items)
    figures: dict[str, float] = {"loss": 0.0}
    share = _share(items, accelerator.process_index, accelerator.num_processes)
    for i, (item, weight) in enumerate(share):
        last = i + 1 == len(share)
        with _exchange(accelerator, model, last):
            total, sums = loss(model, item)
            # Processes average their gradients; the mean is over the samples of all of them.
            accelerator.backward(total * (weight * accelerator.num_processes / samples))
        figures["loss"] += weight * float(total.detach())
        for name, value in sums.items():
            figures[name] = figures.get(name, 0.0) + weight * value
    figures = _across_processes(accelerator, figures)
    counts = {name: figures[count] for name, count in schedule.per.items()}
    return {
        name: value / count
        for name, value in figures.items()
        if name not in schedule.per.values() and (count := counts.get(name, samples))
    }


def _share(items: Sequence[Item], rank: int, count: int) -> list[tuple[Item, float]]:
    """One process's part of an update, with weights: 0 where there is no item left for it.

    All processes run equally many, since they exchange shards and gradients along the way.

    >>> _share(["a", "b", "c"], 1, 2)
    [('b', 1.0), ('a', 0.0)]
    """
    mine = [(item, 1.0) for item in items[rank::count]]
    return mine + [(items[0], 0.0)] * (-(-len(items) // count) - len(mine))


def _exchange(accelerator: Any, model: Any, last: bool) -> Any:
    """Gradients travel between processes once per update, with its last item; in shards with each
    item, or every process would hold all gradients in full."""
    now = last or accelerator.is_fsdp2
    return contextlib.nullcontext() if now else accelerator.no_sync(model)


def _across_processes(accelerator: Any, figures: dict[str, float]) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return figures
    names = sorted(figures)
    values = torch.tensor([figures[n] for n in names], device=accelerator.device)
    return dict(zip(names, accelerator.reduce(values, "sum").tolist(), strict=True))
