"""Supervised fine-tuning on the expert's trajectories (section 3.2, eqs. 2 and 3), through TRL.

    L_SFT = -E[ Σ_k log π(w_k | w_<k) · 1(w_k belongs to an action) ]

Every method starts from it. Tokens and masks come from the chat codec's spans; TRL's trainer is
given ready `input_ids` and `labels`, and prepares nothing itself.

Deviations: the loss is the mean over the action tokens of a batch, as all trainers have it, where
eq. 3 has the sum over a trajectory. `assistant_only_loss: false` learns the observations as well;
`select: dev` ends with the pass that agrees best with the expert on dev trajectories, and `tokens`
trains on as many tokens as another method did (the controls `sft-best` and `sft-matched-ROW`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers.trainer_utils import set_seed
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from stepagent.agents.chat import Encoded
from stepagent.eval import agreement
from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.training.config import Config, SftConfig
from stepagent.training.data import Sample
from stepagent.training.methods import Method
from stepagent.training.policy import Policy
from stepagent.training.runs import trl_trainer
from stepagent.training.runs.selection import Selection
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.training_run import TrainingRun
from stepagent.training.trees.compat import unwrap
from stepagent.training.trees.rows import PLAIN, Rows

IGNORED = -100
"""Label of tokens that have no part in the loss (instructions, observations, padding)."""


def learn(run: TrainingRun) -> None:
    """Supervised fine-tuning as the stage `sft`; left out where `sft.epochs` is 0."""
    if not run.config.sft.epochs:
        return
    with fine_tuning(run, "sft") as stage:
        if not stage.done:
            fine_tune(run, stage, run.samples)


@contextmanager
def fine_tuning(run: TrainingRun, name: str) -> Iterator[Stage]:
    """A stage whose body fine-tunes; once it has its policy, the one that was chosen on dev is
    deleted."""
    with run.stage(name) as stage:
        yield stage
    if run.config.sft.select == "dev":
        _selection(run, stage).drop()


def fine_tune(run: TrainingRun, stage: Stage, samples: Sequence[Sample]) -> None:
    """Fine-tunes the run's policy on the samples, to the end or to the pass that is best on dev
    (`sft.select`)."""
    selection = _selection(run, stage) if run.config.sft.select == "dev" else None
    train(stage, run.policy, samples, run.config.sft, selection)
    if selection:
        selection.finish()


def _selection(run: TrainingRun, stage: Stage) -> Selection:
    def read_dev() -> tuple[list[TrajectoryAgreement], int]:
        with trl_trainer.plain(run.policy.model):
            return run.scores.read_dev(run.policy, run.prompt, run.style)

    return Selection(
        stage,
        run.policy,
        read_dev,
        run.config.sft.patience,
        agreement.deciding(run.config.expert.wording),
    )


def check_explorer(config: Config) -> None:
    """Raises ValueError without SFT, for methods that explore with the policy it gives."""
    if not config.sft.epochs:
        raise ValueError(
            f"method {config.method} fine-tunes: sft.epochs must be at least 1, it is 0"
        )


def train(
    stage: Stage,
    policy: Policy,
    samples: Sequence[Sample],
    config: SftConfig,
    selection: Selection | None = None,
) -> None:
    """Fine-tunes the policy in place; resumes from the newest complete checkpoint of the stage.

    `selection` sees the policy after every pass.
    """
    set_seed(stage.seed)
    layout = Rows.of(policy.model, [sample.encoded for sample in samples])
    split = [row for sample in samples for row in layout.split(sample.encoded)]
    rows = [
        {
            "input_ids": row.ids,
            "labels": labels(row, config.assistant_only_loss),
            "joins": [list(join) for join in row.joins],
        }
        for row in split
    ]
    tokens = sum(len(row.ids) for row in split)
    per_pass, last = updates(len(rows), tokens, config)
    settings = trl_trainer.arguments(
        TrlConfig,
        stage,
        policy,
        config,
        max_steps=last if config.tokens else -1,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = partial(
        _Trainer,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        data_collator=Collator(policy.tokenizer.pad_token_id, layout),
    )

    def after_update(done: int) -> bool:
        ends_pass = done % per_pass == 0 or done == last
        return ends_pass and selection is not None and selection.after_pass(done)

    trl_trainer.train(stage, policy, trainer, after_update)


def updates(rows: int, tokens: int, config: SftConfig) -> tuple[int, int]:
    """Updates of a pass over so many rows of so many tokens, and of the entire training: those of
    `epochs` passes, or those that come closest to `config.tokens`."""
    per_pass = -(-rows // config.batch_size)
    if not config.tokens:
        return per_pass, config.epochs * per_pass
    return per_pass, max(1, round(config.tokens * per_pass / tokens))


def labels(encoded: Encoded, assistant_only_loss: bool = True) -> list[int]:
    """The tokens where the agent wrote them, `IGNORED` elsewhere; length of `ids`.

    Without `assistant_only_loss`, all tokens (but the first behind a join: the one before it in the
    row does not predict it).
    """
    ids = encoded.ids
    if not assistant_only_loss:
        behind = {start for start, _ in encoded.joins}
        return [IGNORED if i in behind else token for i, token in enumerate(ids)]
    targets = [IGNORED] * len(ids)
    for start, end in encoded.replies:
        targets[start:end] = ids[start:end]
    return targets


class Collator:
    """Pads a batch on the right: input_ids, attention_mask, labels, each int64 [batch, longest];
    for rows that branch also what `Rows.inputs` gives."""

    def __init__(self, pad_token_id: int, layout: Rows = PLAIN):
        self.pad_token_id, self.layout = pad_token_id, layout

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
        sizes = [len(row["input_ids"]) for row in rows]
        inputs = self.layout.inputs([row.get("joins", ()) for row in rows], sizes)
        return {"input_ids": ids, "attention_mask": mask, "labels": targets, **inputs}


def labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of labels (rows, length): the positions whose next token has one, (rows, most of any row),
    and these labels. Shorter rows are filled up with position 0 and the label `IGNORED`."""
    places = [row.ne(IGNORED).nonzero().flatten() for row in labels[:, 1:]]
    kept = pad_sequence(places, batch_first=True)
    targets = [row[place + 1] for row, place in zip(labels, places, strict=True)]
    return kept, pad_sequence(targets, batch_first=True, padding_value=IGNORED)


class _Trainer(SFTTrainer):
    """Groups trajectories by length over the batch of all processes."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As TRL's. Without Triton that computes logits at all positions; here the head reads
        those alone whose next token has a label."""
        kept, targets = labelled(inputs["labels"])

        def at_labels(_: Any, __: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            index = kept[..., None].expand(-1, -1, hidden.shape[-1]).to(hidden.device)
            output.last_hidden_state = hidden.gather(1, index)
            return output

        hook = unwrap(model).base_model.register_forward_hook(at_labels)
        try:
            inputs = {**inputs, "shift_labels": targets}
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            hook.remove()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        return trl_trainer.EpochSampler(self, len(lengths), lengths)


METHOD = Method(learn, stages=lambda config: 0)
