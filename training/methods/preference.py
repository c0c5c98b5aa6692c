"""Preferences between whole trajectories, through TRL's `DPOTrainer`: for `dpo`, `spin` and `eto`.

    L = -E[ log σ( β log π_θ(τ⁺) / π_ref(τ⁺) - β log π_θ(τ⁻) / π_ref(τ⁻) ) ]

log π(τ) sums over the tokens that the agent wrote; instructions and observations are masked out by
our own collator, since the two trajectories of a pair share no more than their first observation
and TRL's "prompt and completion" does not fit them. The reference is the policy entering the stage;
its log-probabilities are computed beforehand and kept in a file, so that no second model is held.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import set_seed
from trl import DPOConfig, DPOTrainer

from stepagent.envs.core import checksum
from stepagent.envs.trajectory import Trajectory
from stepagent.files import is_file, parse_json, read_text, write_text
from stepagent.training.config import PreferenceConfig
from stepagent.training.data import Sample
from stepagent.training.methods import rollouts
from stepagent.training.policy import Policy
from stepagent.training.runs import processes, trl_trainer
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.runs.validation import check_paths
from stepagent.training.trees.rows import PLAIN, Rows
from stepagent.training.trees.scoring import score_tree
from stepagent.training.trees.tree import StepTree


@dataclass(frozen=True)
class Pair:
    """Two trajectories of one task, the first preferred."""

    chosen: Sample
    rejected: Sample

    @property
    def differs(self) -> bool:
        """Whether the two say anything different; else the pair has no gradient."""
        return self.chosen.encoded.ids != self.rejected.encoded.ids

    @property
    def digest(self) -> str:
        """Of what the two say."""
        return checksum(json.dumps([self.chosen.encoded.ids, self.rejected.encoded.ids]))


def check_pairs(
    run: TrainingRun, pairs: Sequence[Pair] = (), experts: Sequence[Sample] = ()
) -> None:
    """Raises ValueError where the model cannot score the pairs that are known, or the expert's
    trajectories that will be in others, or the processes cannot share an update's pairs."""
    known = [sample for pair in pairs if pair.differs for sample in (pair.chosen, pair.rejected)]
    check_paths(run.config.method, run.policy, [*experts, *known])
    trl_trainer.micro_batches(run.config.preference)


def against_expert(
    run: TrainingRun, episodes: Sequence[Sequence[Trajectory]]
) -> tuple[list[Pair], dict[str, float]]:
    """The expert's trajectories, each preferred to the agent's episodes on its task; figures."""
    pairs, left_out = [], 0
    for expert, trajectories in zip(run.samples, episodes, strict=True):
        usable, lost = rollouts.encode(run, trajectories)
        pairs += [Pair(expert, agent) for agent in usable]
        left_out += lost
    rewards = [pair.rejected.trajectory.reward for pair in pairs]
    return pairs, {
        "episodes_left_out": float(left_out),
        "agent_reward": sum(rewards) / max(1, len(rewards)),
    }


def learn_pairs(
    stage: Stage, policy: Policy, pairs: Sequence[Pair], config: PreferenceConfig
) -> dict[str, float]:
    """Trains on the pairs; returns figures.

    Pairs of equal trajectories are dropped and counted. Where none is left the policy stays as it
    is, and a note says so.
    """
    useful = [pair for pair in pairs if pair.differs]
    equal = len(pairs) - len(useful)
    if useful:
        stage.note(f"{len(useful)} pairs, {equal} more without a difference")
        train(stage, policy, useful, config)
    else:
        stage.note(
            f"none of {len(pairs)} pairs has a difference to learn from; the policy stays as it is"
        )
    return {"pairs": float(len(useful)), "pairs_without_difference": float(equal)}


def of_iteration(config: PreferenceConfig, number: int) -> PreferenceConfig:
    """The settings of an iteration, counted from 1: β and learning rate change after the first."""
    if number == 1:
        return config
    return replace(config, beta=config.later_beta, learning_rate=config.later_learning_rate)


def train(stage: Stage, policy: Policy, pairs: Sequence[Pair], config: PreferenceConfig) -> None:
    """Trains the policy in place; resumes from the newest complete checkpoint of the stage.

    The reference is the policy as it is passed in (its log-probabilities are written down at the
    first call).
    """
    set_seed(stage.seed)
    layout = Rows.of(policy.model, [s.encoded for p in pairs for s in (p.chosen, p.rejected)])
    if not layout.packed:
        raise ValueError(
            "the model's chat template rewrites history, so that a trajectory branches, and the "
            f"model cannot read it in one pass ({policy.no_step_trees or 'its windows differ'}): "
            "take another model, or `policy.template.history_thoughts: keep`"
        )
    rows = [
        {**_row("chosen", pair.chosen), **_row("rejected", pair.rejected), **reference}
        for pair, reference in zip(pairs, _references(stage, policy, pairs), strict=True)
    ]
    settings = trl_trainer.arguments(
        DPOConfig,
        stage,
        policy,
        config,
        beta=config.beta,
        loss_type="sigmoid",
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    trainer = partial(
        _Trainer,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=Collator(policy.tokenizer.pad_token_id, layout),
    )
    adapters = set(getattr(policy.model, "peft_config", ()))
    try:
        trl_trainer.train(stage, policy, trainer, keep_optimiser=config.keep_optimiser)
    finally:
        for extra in set(getattr(policy.model, "peft_config", ())) - adapters:
            policy.model.delete_adapter(extra)  # TRL's copy of the adapter, for a reference


class Collator:
    """Pads a batch of pairs on the right, the chosen ones in its first half.

    Gives input_ids, attention_mask and completion_mask (the agent's tokens), int64 [2 n, longest],
    and the reference's log-probabilities, float32 [n]; for rows that branch also what
    `Rows.inputs` gives.
    """

    def __init__(self, pad_token_id: int, layout: Rows = PLAIN):
        self.pad_token_id, self.layout = pad_token_id, layout

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
        batch: dict[str, Any] = {"input_ids": ids, "attention_mask": attention}
        batch["completion_mask"] = completion
        sizes = [len(row[f"{side}_ids"]) for row, side in sides]
        batch |= self.layout.inputs([row.get(f"{side}_joins", ()) for row, side in sides], sizes)
        for side in ("chosen", "rejected"):
            batch[f"ref_{side}_logps"] = torch.tensor([row[f"ref_{side}_logps"] for row in rows])
        return batch


class _Trainer(DPOTrainer):
    """TRL's trainer on rows that are ready: tokens, masks and reference log-probabilities."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # For sharded policies TRL would load a reference model, which is not needed here.
        self._sharded, self.is_fsdp_enabled = self.is_fsdp_enabled, False

    def train(self, *args: Any, **options: Any) -> Any:
        self.is_fsdp_enabled = self._sharded
        return super().train(*args, **options)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return trl_trainer.EpochSampler(self, len(rows))

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _row(side: str, sample: Sample) -> dict[str, Any]:
    joins = [list(join) for join in sample.encoded.joins]
    ids = sample.encoded.ids
    return {f"{side}_ids": ids, f"{side}_mask": mask(sample), f"{side}_joins": joins}


def mask(sample: Sample) -> list[int]:
    """1 for the sample's tokens that the agent wrote, 0 elsewhere; length of `ids`."""
    is_reply = [0] * len(sample.encoded.ids)
    for start, end in sample.encoded.replies:
        is_reply[start:end] = [1] * (end - start)
    return is_reply


def _references(stage: Stage, policy: Policy, pairs: Sequence[Pair]) -> list[dict[str, float]]:
    """log π_ref of both trajectories of each pair, under the policy as it is at the first call.

    Raises DamagedState where the file of an earlier start is of other pairs, or cannot be read.
    """
    path = stage.artifacts / "reference.json"
    if not is_file(path):
        references = processes.share(pairs, lambda pair: _reference(policy, pair))
        if processes.is_main():
            write_text(path, json.dumps(references))
        processes.wait()
    try:
        references = parse_json(read_text(path))
        if len(references) != len(pairs):
            raise ValueError(f"{len(references)} of {len(pairs)} pairs")
        for row, pair in zip(references, pairs, strict=True):
            if row.pop("pair", None) not in (None, pair.digest):  # None: of an earlier version
                raise DamagedState(
                    f"{path} holds log-probabilities of other pairs than the run has now: delete "
                    "the run's directory, or choose another `output`"
                )
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedState(
            f"{path} is damaged ({error}), and the policy that it was computed with may be gone: "
            "delete the run's directory, or choose another `output`"
        ) from None
    return references


def _reference(policy: Policy, pair: Pair) -> dict[str, Any]:
    log_probs: dict[str, Any] = {"pair": pair.digest}
    for side, sample in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        scores = score_tree(policy.model, StepTree.of(sample.encoded), policy.device)
        log_probs[f"ref_{side}_logps"] = float(scores.token_log_probs.sum())
    return log_probs
