"""What the methods that TRL trains share: arguments, logging, checkpoints by the clock, resume."""

from __future__ import annotations

import errno
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback

from stepagent.training import processes, sharding
from stepagent.training.config import PreferenceConfig, SftConfig
from stepagent.training.loop import TrainingDiverged
from stepagent.training.policy import Policy
from stepagent.training.rundir import RunDir
from stepagent.training.support import unwrap

OnUpdate = Callable[[int, dict[str, float]], None]


def common_arguments(
    policy: Policy, config: SftConfig | PreferenceConfig, folder: Path, seed: int
) -> dict[str, Any]:
    """The trainer's arguments that do not depend on its loss; `batch_size` is that of an update,
    shared by all processes (where an epoch's last update has too few for them, accelerate fills it
    up from the epoch's beginning)."""
    each, rest = divmod(config.batch_size, processes.count())
    if not each or rest:
        raise ValueError(
            f"a batch_size of {config.batch_size} cannot be shared by {processes.count()} "
            "processes: take a multiple of their number"
        )
    fitting = range(1, min(config.microbatch_size, each) + 1)
    micro = max(n for n in fitting if each % n == 0)  # an update has `batch_size`, and no more
    return {
        "output_dir": str(folder),
        "gradient_checkpointing": policy.config.gradient_checkpointing,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": each // micro,
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "adam_beta2": config.beta2,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no",
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": policy.device.type == "cpu",
        "bf16": False,
        "logging_nan_inf_filter": False,  # a loss that is no number stops the run
        # Between its micro-batches too, or each process would hold whole gradients.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        if sharding.wanted()
        else None,
        "dataloader_pin_memory": False,
        "max_length": None,
        "remove_unused_columns": False,
    }


def arguments(kind: Callable[..., Any], **options: Any) -> Any:
    """TRL's arguments, without the warning that newer transformers rename one of them.

    A process has one GPU, whatever the machine has: the trainer would take all of them, and each
    for a batch of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        made = kind(**options)
    made._n_gpu = min(made.n_gpu, 1)
    return made


def run_trainer(
    kind: Callable[..., Any],
    settings: Any,
    data: Dataset,
    collator: Callable[..., Any],
    policy: Policy,
    rundir: RunDir,
    stage: str,
    checkpoint_seconds: float,
    on_update: OnUpdate | None,
) -> None:
    """Trains, from the newest whole checkpoint of the stage on; the policy is left as it was found
    but for its weights. `kind` is the trainer's class, `settings` its arguments."""
    twin = sharding.Twin(policy.model)
    trainer = kind(
        model=twin.model,
        args=settings,
        train_dataset=data,
        data_collator=collator,
        processing_class=policy.tokenizer,
        callbacks=[Log(rundir, stage, checkpoint_seconds, on_update, twin)],
    )
    done, checkpoint = _newest(rundir.checkpoint(stage))
    rundir.metrics.rewind(stage, done)
    trainer.remove_callback(PrinterCallback)
    twin.model.train()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, SafetensorError) as error:
        if any(words in str(error) for words in _UNWRITTEN):
            raise OSError(errno.EIO, f"cannot write {rundir.checkpoint(stage)}: {error}") from error
        raise
    else:
        twin.hand_back()
    finally:
        policy.model.eval()
        # TRL puts a forward of its own on the model, and each trainer another around it.
        vars(unwrap(policy.model)).pop("forward", None)


_UNWRITTEN = ("PytorchStreamWriter failed", "No space left", "I/O error")
"""What torch and safetensors say, each with an error of its own, where a disk is full."""


def _newest(folder: Path) -> tuple[int, Path | None]:
    """The newest whole checkpoint (`trainer_state.json` is written last) and its update count."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found.append((int(json.loads(path.read_text())["global_step"]), path.parent))
        except (ValueError, KeyError):
            continue  # cut by a kill
    return max(found) if found else (0, None)


class Log(TrainerCallback):
    """Hands figures to the run's metrics, asks for checkpoints by the clock, and stops
    a run whose loss is no number."""

    def __init__(
        self,
        rundir: RunDir,
        stage: str,
        checkpoint_seconds: float,
        on_update: OnUpdate | None,
        twin: sharding.Twin,
    ):
        self._rundir, self._stage, self._on_update = rundir, stage, on_update
        self._seconds, self._saved = checkpoint_seconds, time.monotonic()
        self._twin = twin

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._twin.release()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        figures = {_LOGGED[k]: float(v) for k, v in (logs or {}).items() if k in _LOGGED}
        if "loss" not in figures:
            return
        if not all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm")):
            raise TrainingDiverged(
                f"{self._stage}, update {state.global_step}: the loss is {figures['loss']} and the "
                f"norm of its gradient {figures.get('grad_norm')}: lower the learning rate (now "
                f"{args.learning_rate}) in a run with another `output`"
            )
        self._rundir.metrics.log(self._stage, state.global_step, **figures)
        if self._on_update:
            self._on_update(state.global_step, figures)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        due = time.monotonic() - self._saved > self._seconds and state.global_step < state.max_steps
        if any(processes.gather(due)):  # all or none: saving is done together
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
"""The trainer's names of figures → ours."""
