"""Supervised fine-tuning on the expert's trajectories (section 3.2, eqs. 2 and 3), through TRL.

    L_SFT = -E[ Σ_k log π(w_k | w_<k) · 1(w_k belongs to an action) ]

Every method starts from it. Tokens and masks come from the chat codec's spans; TRL's trainer is
handed ready `input_ids` and `labels`, and prepares nothing itself.

Deviations: the loss is the mean over the action tokens of a batch, as all trainers have it, where
eq. 3 has the sum over a trajectory. `assistant_only_loss: false` learns the observations as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import set_seed
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from stepagent.training import processes
from stepagent.training.config import SftConfig
from stepagent.training.dataset import Sample
from stepagent.training.policy import Policy
from stepagent.training.rundir import RunDir
from stepagent.training.trainer import arguments, common_arguments, run_trainer

if TYPE_CHECKING:
    from stepagent.training.session import Session

IGNORED = -100
"""Label of tokens that have no part in the loss (instructions, observations, padding)."""


def learn(session: Session) -> None:
    """Supervised fine-tuning as the stage `sft` of a run; left out where `sft.epochs` is 0."""
    if session.config.sft.epochs:
        session.stage("sft", lambda: stage(session, "sft", session.samples))
        if session.config.evaluation.every_iteration or session.config.method == "sft":
            session.score("sft")


def stage(session: Session, name: str, samples: Sequence[Sample]) -> None:
    """Fine-tunes the session's policy on the samples, as (part of) a stage of that name."""
    config = session.config.sft
    updates = math.ceil(len(samples) / config.batch_size) * config.epochs
    with session.progress(name.upper(), updates, "updates") as move:
        train(
            session.policy,
            samples,
            config,
            session.rundir,
            name,
            session.config.seed,
            session.config.checkpoint_seconds,
            move,
        )


def labels(sample: Sample, assistant_only_loss: bool = True) -> list[int]:
    """The sample's tokens where the agent wrote them, `IGNORED` elsewhere; length of `ids`.

    Without `assistant_only_loss`, all its tokens.
    """
    ids = sample.encoded.ids
    if not assistant_only_loss:
        return list(ids)
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
    data = Dataset.from_list(
        [
            {"input_ids": s.encoded.ids, "labels": labels(s, config.assistant_only_loss)}
            for s in samples
        ]
    )
    folder = rundir.checkpoint(stage)
    settings = arguments(
        TrlConfig,
        **common_arguments(policy, config, folder, seed),
        train_sampling_strategy="group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    run_trainer(
        _Trainer,
        settings,
        data,
        Collator(policy.tokenizer.pad_token_id),
        policy,
        rundir,
        stage,
        checkpoint_seconds,
        on_update,
    )


class _Trainer(SFTTrainer):
    """Groups trajectories by length over the whole batch, whatever the number of processes."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGroupedSampler(size * processes.count(), lengths=lengths)
