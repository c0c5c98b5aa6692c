"""Preferences between whole trajectories, through TRL's `DPOTrainer`: for `dpo`, `spin` and `eto`.

    L = -E[ log σ( β log π_θ(τ⁺) / π_ref(τ⁺) - β log π_θ(τ⁻) / π_ref(τ⁻) ) ]

log π(τ) sums over the tokens that the agent wrote; instructions and observations are masked out by
our own collator, since the two trajectories of a pair share no more than their first observation
and TRL's "prompt and completion" does not fit them. The reference is the policy entering the stage,
its log-probabilities taken beforehand and kept in a file, so that no second model is held.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import set_seed
from trl import DPOConfig, DPOTrainer

from stepagent.files import write_text
from stepagent.training import processes
from stepagent.training.config import PreferenceConfig
from stepagent.training.dataset import Sample
from stepagent.training.policy import Policy
from stepagent.training.rundir import RunDir
from stepagent.training.session import Session
from stepagent.training.trainer import arguments, common_arguments, run_trainer
from stepagent.training.tree import StepTree, pack, score_trees


@dataclass(frozen=True)
class Pair:
    """Two trajectories of one task, the first preferred."""

    chosen: Sample
    rejected: Sample

    @property
    def differs(self) -> bool:
        """Whether the two say anything different; else the pair has no gradient."""
        return self.chosen.encoded.ids != self.rejected.encoded.ids


class Collator:
    """Pads a batch of pairs on the right, the chosen ones in its first half.

    Gives input_ids, attention_mask and completion_mask (the agent's tokens), int64 [2 n, longest],
    and the reference's log-probabilities, float32 [n].
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sides = [(row, side) for side in ("chosen", "rejected") for row in rows]
        longest = max(len(row[f"{side}_ids"]) for row, side in sides)
        ids = torch.full((len(sides), longest), self.pad_token_id)
        attention = torch.zeros((len(sides), longest), dtype=torch.long)
        completion = torch.zeros((len(sides), longest), dtype=torch.long)
        for i, (row, side) in enumerate(sides):
            n = len(row[f"{side}_ids"])
            ids[i, :n] = torch.tensor(row[f"{side}_ids"])
            attention[i, :n] = 1
            completion[i, :n] = torch.tensor(row[f"{side}_mask"])
        found = {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}
        for side in ("chosen", "rejected"):
            found[f"ref_{side}_logps"] = torch.tensor([row[f"ref_{side}_logps"] for row in rows])
        return found


class _Trainer(DPOTrainer):
    """TRL's trainer on rows that are ready: tokens, masks and reference log-probabilities."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Sharded policies make TRL load a reference model, which it is spared here.
        self._sharded, self.is_fsdp_enabled = self.is_fsdp_enabled, False

    def train(self, *args: Any, **options: Any) -> Any:
        self.is_fsdp_enabled = self._sharded
        return super().train(*args, **options)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def stage(
    session: Session, name: str, pairs: Sequence[Pair], config: PreferenceConfig
) -> dict[str, float]:
    """Trains on the pairs as (part of) a stage of the run; returns figures.

    Pairs that say the same twice are dropped and counted. Where none is left the policy stays as it
    is, and a note says so.
    """
    useful = [pair for pair in pairs if pair.differs]
    same = len(pairs) - len(useful)
    found = {"pairs": float(len(useful)), "pairs_without_difference": float(same)}
    if not useful:
        session.note(
            f"{name}: none of {len(pairs)} pairs has a difference to learn from; the policy stays "
            "as it is"
        )
        return found
    session.note(f"{name}: {len(useful)} pairs, {same} more without a difference")
    updates = -(-len(useful) // config.batch_size) * config.epochs
    with session.progress(name, updates, "updates") as move:
        train(
            session.policy,
            useful,
            config,
            session.rundir,
            name,
            session.config.seed,
            session.config.checkpoint_seconds,
            move,
        )
    return found


def iteration(config: PreferenceConfig, number: int) -> PreferenceConfig:
    """The settings of an iteration, counted from 1: β and learning rate change after the first."""
    if number == 1:
        return config
    return replace(config, beta=config.later_beta, learning_rate=config.later_learning_rate)


def train(
    policy: Policy,
    pairs: Sequence[Pair],
    config: PreferenceConfig,
    rundir: RunDir,
    stage: str,
    seed: int,
    checkpoint_seconds: float,
    on_update: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Trains the policy in place; goes on from the newest whole checkpoint of the stage.

    The reference is the policy as it is handed over (it is written down at the first call).
    """
    set_seed(seed)
    rows = [
        {
            "chosen_ids": pair.chosen.encoded.ids,
            "chosen_mask": mask(pair.chosen),
            "rejected_ids": pair.rejected.encoded.ids,
            "rejected_mask": mask(pair.rejected),
            **reference,
        }
        for pair, reference in zip(pairs, _references(policy, pairs, rundir, stage), strict=True)
    ]
    settings = arguments(
        DPOConfig,
        **common_arguments(policy, config, rundir.checkpoint(stage), seed),
        beta=config.beta,
        loss_type="sigmoid",
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    adapters = set(getattr(policy.model, "peft_config", ()))
    try:
        run_trainer(
            _Trainer,
            settings,
            Dataset.from_list(rows),
            Collator(policy.tokenizer.pad_token_id),
            policy,
            rundir,
            stage,
            checkpoint_seconds,
            on_update,
        )
    finally:
        for extra in set(getattr(policy.model, "peft_config", ())) - adapters:
            policy.model.delete_adapter(extra)  # TRL's copy of the adapter, for a reference


def mask(sample: Sample) -> list[int]:
    """1 for the sample's tokens that the agent wrote, 0 elsewhere; length of `ids`."""
    found = [0] * len(sample.encoded.ids)
    for start, end in sample.encoded.replies:
        found[start:end] = [1] * (end - start)
    return found


def _references(
    policy: Policy, pairs: Sequence[Pair], rundir: RunDir, stage: str
) -> list[dict[str, float]]:
    """log π_ref of both trajectories of each pair, under the policy as it is at the first call."""
    path = rundir.helpers(stage) / "reference.json"
    if not path.is_file():
        found = processes.share(pairs, lambda pair: _reference(policy, pair))
        if rundir.main:
            write_text(path, json.dumps(found))
        processes.wait()
    return json.loads(path.read_text())


@torch.no_grad()
def _reference(policy: Policy, pair: Pair) -> dict[str, float]:
    found = {}
    for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        tree = StepTree(tuple(sample.encoded.ids), tuple(sample.encoded.replies))
        scores = score_trees(policy.model, pack([tree], policy.device))
        found[f"ref_{side}_logps"] = float(scores.token_log_probs.sum())
    return found
