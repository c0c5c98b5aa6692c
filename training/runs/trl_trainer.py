"""Training through TRL's trainers: arguments, logging, checkpoints by the clock, resume."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback

from stepagent.files import write_atomically
from stepagent.training.config import PreferenceConfig, SftConfig
from stepagent.training.policy import Policy
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.optimise import TrainingDiverged
from stepagent.training.runs.stage import OnUpdate, Stage
from stepagent.training.trees.compat import unwrap


def arguments(
    kind: Callable[..., Any],
    stage: Stage,
    policy: Policy,
    config: SftConfig | PreferenceConfig,
    **options: Any,
) -> Any:
    """TRL's arguments, an instance of `kind`: those common to all trainers, and `options`.

    `batch_size` is that of an update, shared by all processes (where an epoch's last update has too
    few samples for them, accelerate fills it up from the epoch's beginning). A process has one GPU,
    however many the machine has: the trainer would otherwise use all of them, each with a batch of
    its own.
    """
    micro, accumulation = micro_batches(config)
    common = {
        "output_dir": str(stage.checkpoint),
        "gradient_checkpointing": policy.config.gradient_checkpointing,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.beta2,
        "max_grad_norm": config.max_grad_norm,
        "seed": stage.seed,
        "data_seed": stage.seed,
        "save_strategy": "no",
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": policy.device.type == "cpu",
        "bf16": False,
        "logging_nan_inf_filter": False,  # a loss that is not a number stops the run
        # Between its micro-batches too, or each process would hold all gradients in full.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if sharding.is_fsdp()
        else None,
        "dataloader_pin_memory": False,
        "max_length": None,
        "remove_unused_columns": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer transformers rename one of them
        settings = kind(**common, **options)
    settings._n_gpu = min(settings.n_gpu, 1)
    return settings


def micro_batches(config: SftConfig | PreferenceConfig) -> tuple[int, int]:
    """Samples per forward pass, and passes per update, of one process.

    Raises ValueError for a batch that the processes cannot share.
    """
    each, rest = divmod(config.batch_size, processes.count())
    if not each or rest:
        raise ValueError(
            f"a batch_size of {config.batch_size} cannot be shared by {processes.count()} "
            "processes: take a multiple of their number"
        )
    fitting = range(1, min(config.microbatch_size, each) + 1)
    micro = max(n for n in fitting if each % n == 0)  # an update has exactly `batch_size`
    return micro, each // micro


AfterUpdate = Callable[[int], bool]
"""Updates done → whether training shall end."""


def train(
    stage: Stage,
    policy: Policy,
    make_trainer: Callable[..., Any],
    after_update: AfterUpdate | None = None,
) -> None:
    """Trains the policy in place, resuming from the newest complete checkpoint of the stage.

    `make_trainer` is one of TRL's trainers with its arguments, data and collator. Nothing of the
    trainer stays on the policy's model.
    """
    twin = sharding.Twin(policy.model)
    callback = _Callback(stage, twin, after_update)
    trainer = make_trainer(
        model=twin.model, processing_class=policy.tokenizer, callbacks=[callback]
    )
    done, checkpoint = _newest(stage.checkpoint)
    stage.resume_at(done)
    trainer.remove_callback(PrinterCallback)
    twin.model.train()
    try:
        with callback.bars:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, SafetensorError) as error:
        if any(words in str(error) for words in _DISK_ERRORS):
            raise OSError(errno.EIO, f"cannot write {stage.checkpoint}: {error}") from error
        raise
    else:
        twin.hand_back()
    finally:
        policy.model.eval()
        # TRL replaces the model's forward, and each trainer wraps it once more.
        vars(unwrap(policy.model)).pop("forward", None)


_DISK_ERRORS = ("PytorchStreamWriter failed", "No space left", "I/O error")
"""How torch and safetensors, each with its own exception, report a full disk."""


def _newest(folder: Path) -> tuple[int, Path | None]:
    """The update count and path of the newest complete checkpoint, whose `trainer_state.json` is
    written last."""
    checkpoints: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            checkpoints.append((int(json.loads(path.read_text())["global_step"]), path.parent))
        except (ValueError, KeyError):
            continue  # truncated by a kill
    return max(checkpoints) if checkpoints else (0, None)


@contextlib.contextmanager
def plain(model: Any) -> Iterator[None]:
    """While a trainer is at work: the model as it acts, without the trainer's own forward. The
    trainer's random numbers stay what they would have been."""
    base = unwrap(model)
    forward, training = vars(base).pop("forward", None), model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        model.train(training)
        if forward is not None:
            base.forward = forward


class _Callback(TrainerCallback):
    """Passes figures to the stage, asks for checkpoints by the clock, and stops a run whose loss is
    not a number."""

    _move: OnUpdate
    _resumed_at: int

    def __init__(self, stage: Stage, twin: sharding.Twin, after_update: AfterUpdate | None):
        self._stage, self._twin, self._after_update = stage, twin, after_update
        self._saved = time.monotonic()
        self._tokens = 0.0
        self._may_save = True
        self.bars = contextlib.ExitStack()
        """Closes the progress bar, which begins with the training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._resumed_at = int(state.global_step)
        self._twin.release()
        bar = self._stage.progress(state.max_steps, "updates")
        self._move = self.bars.enter_context(bar)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A pass's order is drawn from the random state at its beginning, which the trainer does
        not keep: in a pass that is resumed it would be drawn again, and differ."""
        number = int(state.epoch + 1e-6)
        path = self._stage.checkpoint / f"pass-{number}-{processes.rank()}.safetensors"
        if path.is_file():
            torch.set_rng_state(load_file(path)["cpu"])
        elif state.global_step == self._resumed_at > 0:
            # The trainer is about to restore its state at the end of the pass before.
            self._may_save = False
            return
        else:
            rng = {"cpu": torch.get_rng_state()}
            write_atomically(path, lambda partial: save_file(rng, partial))
        self._may_save = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        figures = {_LOGGED[k]: float(v) for k, v in (logs or {}).items() if k in _LOGGED}
        if "loss" not in figures:
            return
        if not all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise TrainingDiverged(
                f"{self._stage.name}, update {state.global_step}: the loss is {figures['loss']} "
                f"and the norm of its gradient {figures.get('grad_norm')}: lower the learning rate "
                f"(now {args.learning_rate}) in a run with another `output`"
            )
        # The trainer's count begins anew in every process.
        before, self._tokens = self._tokens, float((logs or {}).get("num_tokens", 0.0))
        tokens = round(self._tokens - before)
        self._stage.log(state.global_step, {**figures, "tokens": tokens})
        self._move(state.global_step, figures)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # Before the checkpoint: a run that resumes behind it finds what comes of this.
        if self._after_update and self._after_update(state.global_step):
            control.should_training_stop = True
            return control
        elapsed = time.monotonic() - self._saved
        due = elapsed > self._stage.checkpoint_seconds and state.global_step < state.max_steps
        due = due and self._may_save
        if any(processes.gather(due)):  # all or none: saving takes all processes
            control.should_save = True
            self._saved = time.monotonic()
        return control


_LOGGED = {
    **{n: n for n in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")},
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}
"""The trainer's name of a figure → its name in `metrics.jsonl`."""
