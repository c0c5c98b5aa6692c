import contextlib
import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from stepagent.agents.chat import ChatCodec
from stepagent.envs.core import checksum
from stepagent.envs.react import Prompt, PromptStyle
from stepagent.envs.trajectory import Step, Trajectory
from stepagent.training import run
from stepagent.training.config import SftConfig, TinyConfig
from stepagent.training.data import encode, select
from stepagent.training.methods import sft
from stepagent.training.methods.sft import IGNORED, Collator, labels
from stepagent.training.runs import trl_trainer
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.selection import Selection
from stepagent.training.runs.stage import Stage
from stepagent.training.runs.trl_trainer import arguments
from stepagent.training.tiny import build_model, build_tokenizer

PROMPT = Prompt("Guess.", (("o", "t", "a"),))


def _trajectory(actions, reward=1.0, error=""):
    steps = tuple(Step(f"obs {i}", "", a) for i, a in enumerate(actions))
    return Trajectory("e", f"t/{actions}", "train", "expert", 0, steps, reward=reward, error=error)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["obs 1 go north open door"] * 9, 300, 256)


def test_labels_are_the_agents_tokens_alone(tokenizer):
    codec = ChatCodec(tokenizer)
    [sample], left_out = encode(
        [_trajectory(["go north", "open door"])], codec, PROMPT, PromptStyle(thoughts=False), 256
    )
    assert left_out == {}
    targets = labels(sample.encoded)
    learned = [i for i, label in zip(sample.encoded.ids, targets, strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "go north<|end|>open door<|end|>"
    assert labels(sample.encoded, assistant_only_loss=False) == sample.encoded.ids
    batch = Collator(pad_token_id=1)(
        [{"input_ids": [5, 6], "labels": [IGNORED, 6]}, {"input_ids": [7], "labels": [7]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6], [7, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 6], [7, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_what_is_left_out_is_counted(tokenizer):
    codec, style = ChatCodec(tokenizer), PromptStyle(False, False, False)
    some = [_trajectory(["go"]), _trajectory([]), _trajectory(["go"] * 90)]
    samples, left_out = encode(some, codec, PROMPT, style, 64)
    assert len(samples) == 1
    assert left_out == {"without_steps": 1, "longer_than_context": 1}
    with pytest.raises(ValueError, match="the model's context 2"):
        encode(some, codec, PROMPT, style, 2)


def test_select():
    some = [_trajectory([str(i)], reward=i / 10) for i in range(11)]
    assert len(select(some, 0, 0.5, seed=0)) == 6
    assert len(select(some, 3, 0.0, seed=0)) == 3
    assert select(some, 3, 0.0, seed=0) == select(some, 3, 0.0, seed=0)
    more = select(some, 5, 0.0, seed=0)
    assert all(trajectory in more for trajectory in select(some, 3, 0.0, seed=0))
    fixed = [replace(t, task_id=f"t/{i}") for i, t in enumerate(some)]
    assert {t.task_id for t in select(fixed, 3, 0.0, seed=None)} == {
        *sorted((t.task_id for t in fixed), key=checksum)[:3]
    }
    with pytest.raises(ValueError, match=r"the best: 1\.00"):
        select(some, 0, 1.5, seed=0)


def test_tiny_models_are_made_by_the_seed(tokenizer):
    config = TinyConfig(hidden_size=32, layers=1, heads=2, vocabulary=300, context=64)
    one, two, three = (build_model(config, tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, three.lm_head.weight)
    assert tokenizer.decode(tokenizer("é 漢 3")["input_ids"]) == "é 漢 3"


@pytest.mark.parametrize(
    ("batch", "micro", "expected"), [(10, 8, 5), (12, 8, 6), (7, 4, 1), (8, 8, 8)]
)
def test_an_update_has_as_many_samples_as_configured(
    batch, micro, expected, config, policy, tmp_path
):
    config.sft.batch_size, config.sft.microbatch_size = batch, micro
    stage = Stage("s", RunDirectory(tmp_path, ""))
    settings = arguments(SFTConfig, stage, policy, config.sft)
    assert settings.per_device_train_batch_size == expected
    assert expected * settings.gradient_accumulation_steps == batch


@pytest.mark.parametrize(("passes", "updates"), [(1.0, 3), (2.4, 7), (0.01, 1)])
def test_updates_come_closest_to_a_number_of_tokens(tokenizer, passes, updates):
    codec, style = ChatCodec(tokenizer), PromptStyle(False, False, False)
    samples, _ = encode(
        [_trajectory(["go"] * n) for n in (1, 2, 3, 1, 2)], codec, PROMPT, style, 256
    )
    tokens = sum(len(sample.encoded.ids) for sample in samples)
    config = SftConfig(batch_size=2, epochs=9, tokens=round(passes * tokens))
    assert sft.updates(5, tokens, config) == (3, updates)
    config.tokens = 0
    assert sft.updates(5, tokens, config) == (3, 27)


def test_sft_on_a_number_of_tokens(config):
    config.method = "sft"
    config.sft.epochs = 2
    one = run.run(replace(config, output=f"{config.output}-passes"))["budget"]
    config.sft.tokens, config.sft.epochs = one["tokens"], 1
    assert run.run(config)["budget"] == {**one, "seconds": pytest.approx(one["seconds"], abs=60)}


def test_sft_ends_with_the_pass_that_is_best_on_dev_and_resumes(config, tmp_path, monkeypatch):
    config.method, config.evaluation.agreement = "sft-best", 4
    config.sft.learning_rate = 3e-2  # so high that the passes differ
    run.run(replace(config, output=str(tmp_path / "whole"), sft=replace(config.sft)))
    folder = tmp_path / "whole/artifacts/sft/dev"
    passes = [json.loads(p.read_text()) for p in sorted(folder.glob("*/agreement.json"))]
    best = min(passes, key=lambda figures: (-figures["step_match"], figures["loss"]))
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["agreement"]["sft"]["loss"] == pytest.approx(best["loss"], abs=1e-5)
    assert summary["figures"]["sft"]["passes"] == len(passes)
    assert not (tmp_path / "whole/artifacts/sft/best").exists()

    after_pass, calls = Selection.after_pass, []

    def killed(self, update):
        ends = after_pass(self, update)
        calls.append(update)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ends

    monkeypatch.setattr(Selection, "after_pass", killed)
    broken = replace(config, output=str(tmp_path / "killed"), sft=replace(config.sft))
    with contextlib.suppress(KeyboardInterrupt):
        run.run(broken)
        pytest.fail("it was not stopped")
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    assert run.run(broken)["agreement"] == summary["agreement"]
    one, two = (load_file(tmp_path / n / "final/model.safetensors") for n in ("whole", "killed"))
    assert all((one[k] == two[k]).all() for k in one)


@pytest.mark.parametrize("at", [8, 11], ids=["within the second pass", "after the second pass"])
def test_sft_that_is_killed_in_a_later_pass_ends_with_the_same_weights(
    config, tmp_path, monkeypatch, caplog, at
):
    config.method, config.sft.epochs, config.evaluation.limit = "sft", 3, 1  # 5 updates a pass
    run.run(replace(config, output=str(tmp_path / "whole")))
    on_step_end, killed = trl_trainer._Callback.on_step_end, []

    def kill(self, args, state, control, **kwargs):
        if state.global_step == at and not killed:
            killed.append(at)
            raise KeyboardInterrupt
        return on_step_end(self, args, state, control, **kwargs)

    monkeypatch.setattr(trl_trainer._Callback, "on_step_end", kill)
    with contextlib.suppress(KeyboardInterrupt):
        run.run(config)
    assert killed
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    with caplog.at_level("WARNING"):
        run.run(config)
    assert "missing keys" not in caplog.text, "of the head, which is the embeddings"
    folders = (tmp_path / "whole", Path(config.output))
    one, two = (load_file(folder / "final/model.safetensors") for folder in folders)
    assert all((one[k] == two[k]).all() for k in one)


def test_the_head_reads_labelled_positions_alone(tokenizer, monkeypatch, tmp_path):
    """Loss, gradients and figures are TRL's own, which computes logits at every position."""
    from trl.trainer import utils

    model = build_model(TinyConfig(32, 2, 2, 300, 64), tokenizer, 0)
    rows = [[5, 6, 7, 8, 9, 4], [5, 9, 7], [5, 5, 6, 6]]
    targets = [[-100, -100, 7, 8, -100, 4], [5, -100, 7], [-100] * 4]  # none in the last row
    data = [{"input_ids": r, "labels": t} for r, t in zip(rows, targets, strict=True)]
    trainer = sft._Trainer(
        model=model,
        args=SFTConfig(
            str(tmp_path),
            dataset_kwargs={"skip_prepare_dataset": True},
            report_to="none",
            use_cpu=True,
            remove_unused_columns=False,
            max_length=None,
        ),
        train_dataset=Dataset.from_list(data),
        data_collator=Collator(1),
        processing_class=tokenizer,
    )
    scored = []
    chunked = utils._ChunkedLogProbFunction.apply
    watched = lambda hidden, *rest: scored.append(len(hidden)) or chunked(hidden, *rest)  # noqa: E731
    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", watched)

    def losses(kind, batch):
        model.zero_grad()
        loss = kind.compute_loss(trainer, model, Collator(1)(batch), num_items_in_batch=4)
        loss.backward()
        figures = trainer._metrics["train"]
        last = {name: figures[name][-1] for name in ("mean_token_accuracy", "entropy")}
        return loss.item(), last, [p.grad.clone() for p in model.parameters()]

    ours, theirs = losses(sft._Trainer, data), losses(SFTTrainer, data)
    assert scored == [9, 15]  # three rows of at most 3 labels; of 5 positions
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
    for one, two in zip(ours[2], theirs[2], strict=True):
        torch.testing.assert_close(one, two)
    assert losses(sft._Trainer, data[2:])[0] == 0, "no label at all"
    assert not model.model._forward_hooks
