"""Training through TRL's trainers: arguments, logging, checkpoints by the clock, resume."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from stepagent.agents.models import evaluating
from stepagent.files import parse_json, read_text
from stepagent.training.config import PreferenceConfig, SftConfig
from stepagent.training.policy import Policy
from stepagent.training.runs import processes, sharding, trl_checkpoints
from stepagent.training.runs.checkpoints import in_shards, load_moments, save_moments
from stepagent.training.runs.directory import MOMENTS
from stepagent.training.runs.interrupts import CheckpointClock, checkpoint_clock
from stepagent.training.runs.optimise import TrainingDiverged
from stepagent.training.runs.stage import OnUpdate, Stage
from stepagent.training.trees.compat import unwrap

log = logging.getLogger(__name__)


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
    keep_optimiser: bool = False,
) -> None:
    """Trains the policy in place, resuming from the newest complete checkpoint of the stage.

    `make_trainer` is one of TRL's trainers with its arguments, data and collator. Nothing of the
    trainer stays on the policy's model. After Ctrl-C or SIGTERM it ends the current update, writes
    a checkpoint (unless it was the last update) and raises KeyboardInterrupt. With `keep_optimiser`
    AdamW starts with the newest moments of an earlier stage, where there are any, and its own are
    kept for later ones.
    """
    twin = sharding.Twin(policy.model)
    callback = _Callback(stage, twin, after_update)
    callbacks = [callback, _Moments(stage)] if keep_optimiser else [callback]
    trainer = make_trainer(model=twin.model, processing_class=policy.tokenizer, callbacks=callbacks)
    done, checkpoint = _newest(stage.checkpoint)
    trl_checkpoints.adapt(trainer, policy, checkpoint)
    stage.resume_at(done)
    trainer.remove_callback(PrinterCallback)
    twin.model.train()
    try:
        with (
            stage.times.of("updates"),
            checkpoint_clock(stage.checkpoint_seconds) as callback.clock,
            callback.bars,
        ):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if callback.clock.interrupted:  # in the last update, of which there is no checkpoint
                raise KeyboardInterrupt
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


class EpochSampler(Sampler[int]):
    """An order of the samples for each epoch: a function of the seed and the epoch alone.

    So a resumed training takes the same batches as an uninterrupted one. It asks the trainer, as
    `set_epoch` does not reach the sampler of a resumed loader of several processes.
    """

    def __init__(self, trainer: Any, samples: int, lengths: Sequence[int] | None = None):
        """`lengths`: in tokens, one for each sample; similar ones then share an update's batch."""
        self._trainer, self._samples, self._lengths = trainer, samples, lengths

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[int]:
        args, epoch = self._trainer.args, int(self._trainer.state.epoch or 0)
        if self._lengths is None:  # as accelerate's own sampler
            generator = torch.Generator().manual_seed(args.seed + epoch)
            return iter(torch.randperm(self._samples, generator=generator).tolist())
        # What the trainer would draw from the global generator if nothing else drew from it: for
        # each epoch a seed of the loader's and an order.
        generator = torch.Generator().manual_seed(args.seed)
        update = args.train_batch_size * args.gradient_accumulation_steps * processes.count()
        order: list[int] = []
        for _ in range(epoch + 1):
            torch.empty((), dtype=torch.int64).random_(generator=generator)
            order = get_length_grouped_indices(self._lengths, update, generator=generator)
        return iter(order)


_DISK_ERRORS = ("PytorchStreamWriter failed", "No space left", "I/O error")
"""How torch and safetensors, each with its own exception, report a full disk."""


def _newest(folder: Path) -> tuple[int, Path | None]:
    """The update count and path of the newest complete checkpoint, whose `trainer_state.json` is
    written last. A damaged one is reported and left aside."""
    checkpoints: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            state = parse_json(read_text(path))
            if not 0 < state["global_step"] <= state["max_steps"]:
                raise ValueError(f"update {state['global_step']} of {state['max_steps']}")
            _check_files(path.parent)
            checkpoints.append((int(state["global_step"]), path.parent))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s) and left aside", path.parent, error)
    return max(checkpoints) if checkpoints else (0, None)


def _check_files(checkpoint: Path) -> None:
    """Raises ValueError, OSError or SafetensorError where weights or states are missing or cut.

    DeepSpeed has folders, whose contents are left to it.
    """
    weights, moments = (
        ("trained", "optimiser") if in_shards(checkpoint) else ("*model*", "optimizer*")
    )
    for part in (weights, moments, "scheduler.pt"):
        if not any(checkpoint.glob(part)) and not any(checkpoint.glob("global_step*")):
            raise ValueError(f"{part.strip('*')} is missing")
    for path in checkpoint.rglob("*.safetensors"):
        with safe_open(path, "pt"):
            pass
    for path in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.bin")):
        try:
            with zipfile.ZipFile(path) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"{path.name}: {broken}")
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path.name}: {error}") from None


@contextlib.contextmanager
def plain(model: Any) -> Iterator[None]:
    """While a trainer is at work: the model as it acts, without the trainer's own forward. The
    trainer's random numbers stay what they would have been."""
    base = unwrap(model)
    forward = vars(base).pop("forward", None)
    try:
        with evaluating(model), torch.random.fork_rng():
            yield
    finally:
        if forward is not None:
            base.forward = forward


class _Callback(TrainerCallback):
    """Passes figures to the stage, asks for checkpoints by the clock, and stops a run whose loss is
    not a number."""

    clock: CheckpointClock
    _move: OnUpdate

    def __init__(self, stage: Stage, twin: sharding.Twin, after_update: AfterUpdate | None):
        self._stage, self._twin, self._after_update = stage, twin, after_update
        self._tokens = 0.0
        self.bars = contextlib.ExitStack()
        """Closes the progress bar, which begins with the training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._twin.release()
        bar = self._stage.progress(state.max_steps, "updates")
        self._move = self.bars.enter_context(bar)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        # Before the checkpoint: a run that resumes behind it finds what comes of this.
        if self._after_update and self._after_update(state.global_step):
            control.should_training_stop = True
        return control

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
        # Here and not in `on_step_end`, which is earlier: what comes in between is not lost.
        # And none of the last update: the trainer would resume from it with one more.
        if self.clock.due() and not control.should_training_stop:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.clock.written()


class _Moments(TrainerCallback):
    """AdamW's moments, from one stage to the next."""

    def __init__(self, stage: Stage):
        self._stage = stage

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        before = self._stage.moments_before
        if before and not state.global_step:  # else the checkpoint has its own
            load_moments(before, optimizer)

    def on_train_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        save_moments(self._stage.artifacts / MOMENTS, optimizer)


_LOGGED = {
    **{n: n for n in ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")},
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}
"""The trainer's name of a figure → its name in `metrics.jsonl`."""
