"""Supervised fine-tuning on the expert's trajectories (section 3.2, eqs. 2 and 3), through TRL.

    L_SFT = -E[ Σ_k log π(w_k | w_<k) · 1(w_k belongs to an action) ]

Every method starts from it. Tokens and masks come from the chat codec's spans; TRL's trainer is
handed ready `input_ids` and `labels`, and prepares nothing itself.

Deviations: the loss is the mean over the action tokens of a batch, as all trainers have it, where
eq. 3 has the sum over a trajectory.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import set_seed
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from training.config import SftConfig
from training.dataset import Sample
from training.policy import Policy
from training.rundir import RunDir

if TYPE_CHECKING:
    from training.session import Session

IGNORED = -100
"""Label of tokens that have no part in the loss (instructions, observations, padding)."""


def learn(session: Session) -> None:
    """Supervised fine-tuning as the stage `sft` of a run; left out where `sft.epochs` is 0."""
    if session.config.sft.epochs:
        session.stage("sft", lambda: _stage(session))
        if session.config.evaluation.every_iteration or session.config.method == "sft":
            session.score("sft")


def _stage(session: Session) -> None:
    config = session.config.sft
    updates = math.ceil(len(session.samples) / config.batch_size) * config.epochs
    with session.progress("SFT", updates, "updates") as move:
        train(
            session.policy,
            session.samples,
            config,
            session.rundir,
            "sft",
            session.config.seed,
            session.config.checkpoint_seconds,
            move,
        )


def labels(sample: Sample) -> list[int]:
    """The sample's tokens where the agent wrote them, `IGNORED` elsewhere; length of `ids`."""
    ids = sample.encoded.ids
    found = [IGNORED] * len(ids)
    for start, end in sample.encoded.replies:
        found[start:end] = ids[start:end]
    return found


class Collator:
    """Pads a batch on the right: input_ids, attention_mask, labels, each int64 [batch, longest]."""

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_token_id)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        targets = torch.full((len(rows), longest), IGNORED)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            ids[i, :n] = torch.tensor(row["input_ids"])
            mask[i, :n] = 1
            targets[i, :n] = torch.tensor(row["labels"])
        return {"input_ids": ids, "attention_mask": mask, "labels": targets}


def train(
    policy: Policy,
    samples: Sequence[Sample],
    config: SftConfig,
    rundir: RunDir,
    stage: str,
    seed: int,
    checkpoint_seconds: float,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Trains the policy in place; goes on from the newest whole checkpoint of the stage."""
    set_seed(seed)
    data = Dataset.from_list([{"input_ids": s.encoded.ids, "labels": labels(s)} for s in samples])
    folder = rundir.checkpoint(stage)
    done, checkpoint = _newest(folder)
    rundir.metrics.rewind(stage, done)
    micro = min(config.microbatch_size, config.batch_size)
    arguments = _arguments(
        output_dir=str(folder),
        gradient_checkpointing=policy.config.gradient_checkpointing,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=math.ceil(config.batch_size / micro),
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_grad_norm,
        seed=seed,
        data_seed=seed,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=policy.device.type == "cpu",
        bf16=False,
        dataloader_pin_memory=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
    )
    trainer = SFTTrainer(
        model=policy.model,
        args=arguments,
        train_dataset=data,
        data_collator=Collator(policy.tokenizer.pad_token_id),
        processing_class=policy.tokenizer,
        callbacks=[_Log(rundir, stage, checkpoint_seconds, on_update)],
    )
    trainer.remove_callback(PrinterCallback)
    policy.model.train()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    policy.model.eval()


def _arguments(**options: Any) -> TrlConfig:
    """TRL's arguments, without the warning that newer transformers rename one of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return TrlConfig(**options)


def _newest(folder: Path) -> tuple[int, Path | None]:
    """The newest whole checkpoint (`trainer_state.json` is written last) and its update count."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found.append((int(json.loads(path.read_text())["global_step"]), path.parent))
        except (ValueError, KeyError):
            continue  # cut by a kill
    return max(found) if found else (0, None)


class _Log(TrainerCallback):
    """Hands the trainer's figures to the run's metrics, and asks for checkpoints by the clock."""

    def __init__(
        self,
        rundir: RunDir,
        stage: str,
        checkpoint_seconds: float,
        on_update: Callable[[int, dict[str, float]], None] | None,
    ):
        self._rundir, self._stage, self._on_update = rundir, stage, on_update
        self._seconds, self._saved = checkpoint_seconds, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        figures = {k: float(v) for k, v in (logs or {}).items() if k in _LOGGED}
        if "loss" in figures:
            self._rundir.metrics.log(self._stage, state.global_step, **figures)
            if self._on_update:
                self._on_update(state.global_step, figures)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if time.monotonic() - self._saved > self._seconds and state.global_step < state.max_steps:
            control.should_save = True
            self._saved = time.monotonic()
        return control


_LOGGED = ("loss", "grad_norm", "learning_rate", "mean_token_accuracy", "entropy")
