"""Two processes of one run against one process of the same."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepagent import command_line
from stepagent.agents.models import load_model
from stepagent.training import run
from stepagent.training.policy import Policy
from stepagent.training.runs import processes, sharding
from stepagent.training.runs.processes import interleave
from stepagent.training.runs.trl_trainer import micro_batches
from tests import toy_env

ROOT = Path(__file__).parents[3]


def test_one_process_is_the_main_one():
    assert processes.is_main()
    assert processes.share([1, 2, 3], lambda x: x * x) == [1, 4, 9]
    with processes.main_first():
        processes.wait()


def test_interleave():
    items = list(range(7))
    for count in (1, 2, 3, 9):
        assert interleave([items[r::count] for r in range(count)], 7) == items


ACCELERATE = Path(run.__file__).with_name("configs") / "accelerate"


def _command(count, kind):
    """What starts `count` processes, as a user would; one is started without accelerate."""
    if count == 1:
        return [sys.executable]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", port]
    file = str(ACCELERATE / f"{kind}.yaml")
    return [*command, "--config_file", file, "--num_processes", str(count)]


def _launch(config, count=1, kind="ddp", die_at=None):
    """Runs the configuration, or until it dies; returns what it printed. With `die_at`, if only
    "", or under FSDP that includes each update that is logged."""
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(command_line.dump(config))
    own = kind == "fsdp" or die_at is not None
    module = "tests.training.runs.fsdp_on_cpu" if own else "training.run"
    command = [*_command(count, kind), "-m", module, "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"DIE_AT": die_at} if die_at else {})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if die_at:
        assert done.returncode == 9 or "exitcode  : 9" in done.stderr, done.stderr[-4000:]
    else:
        assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_processes_know_of_each_other(tmp_path):
    path = tmp_path / "ask.py"
    path.write_text(
        "from stepagent.training.runs import processes as p\nprint(p.gather((p.rank(), p.count())))"
    )
    command = [*_command(2, "ddp"), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.count("[(0, 2), (1, 2)]") == 2, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ("cuda:1", {}, "CUDA_VISIBLE_DEVICES=1"),
        ("cpu", {"ACCELERATE_MIXED_PRECISION": "bf16"}, "float32"),
        ("cpu", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "version 2"),
        (
            "cpu",
            {
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
            },
            "must be false",
        ),
    ],
)
def test_launches_that_would_train_something_else_are_refused(
    config, monkeypatch, device, environment, message
):
    config.policy.device = device
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        run.run(config)


def test_deepspeed_cannot_take_our_own_loop(monkeypatch):
    sharding.check_own_loop("implicit")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="implicit cannot be trained under DeepSpeed"):
        sharding.check_own_loop("implicit")


def test_a_batch_that_processes_cannot_share_is_refused(config, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(ValueError, match="4 cannot be shared by 3 processes"):
        micro_batches(config.sft)


def _settings(config, method):
    config.method, config.env, config.env_args = method, toy_env.ID, {"size": 6}
    config.checkpoint_seconds, config.evaluation.limit = 1e9, 2
    config.policy.max_new_tokens, config.evaluation.every_iteration = 4, False
    config.expert.limit = 4  # accelerate fills an epoch's last update up to the processes
    config.sft.batch_size, config.sft.microbatch_size, config.sft.epochs = 4, 2, 3
    config.reflection.iterations, config.reflection.learning_rate = 1, 1e-4
    config.reflection.batch_size = 16  # three trees in one update, one in the other
    config.inverse.discriminator.batch_size, config.preference.iterations = 16, 1
    config.ppo.entropy = 0.01  # moves even who earns nothing
    config.sft.learning_rate = 1e-4
    config.preference.learning_rate, config.preference.batch_size = 1e-4, 4
    config.rollouts.temperature = 1.0  # so weak an agent, if greedy, writes beyond the context
    judge = config.inverse.discriminator
    judge.max_accuracy, judge.chance_margin = 1.1, -1.0
    return config


def _equal(tmp_path):
    """Both runs made the same updates and end with the same weights, which are not SFT's."""
    one, two = ([json.loads(x) for x in (tmp_path / r / "metrics.jsonl").read_text().splitlines()]
                for r in ("one", "two"))  # fmt: skip
    assert [(x["stage"], x["update"]) for x in one] == [(x["stage"], x["update"]) for x in two]
    for first, second in zip(one, two, strict=True):
        for name in ("loss", "grad_norm"):
            assert first[name] == pytest.approx(second[name], rel=2e-3, abs=2e-4), (name, first)
    final = "final/model.safetensors"
    one, two = load_file(tmp_path / "one" / final), load_file(tmp_path / "two" / final)
    sft = load_file(tmp_path / "one" / "policies" / "sft" / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-3, msg=name)
    moved = max(float((one[name] - sft[name]).abs().max()) for name in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert moved > 10 * apart


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "inverse", "ppo", "dpo", "eto", "nat"])
def test_two_processes_give_what_one_gives(config, tmp_path, method):
    config = _settings(config, method)
    _launch(replace(config, output=str(tmp_path / "one")))
    _launch(replace(config, output=str(tmp_path / "two")), 2)
    _equal(tmp_path)


@pytest.mark.slow
def test_a_judge_whose_words_are_an_output_layer_of_their_own(config, tmp_path):
    """With all weights trained (rank 0): DDP refuses parameters without a gradient, and a judge
    says no words."""
    config = _settings(config, "inverse")
    judge = Policy.tiny(config.policy, ["add 1 2 3 The number is"], seed=1)
    judge.model.config.tie_word_embeddings = False
    judge.model.lm_head.weight = torch.nn.Parameter(judge.model.lm_head.weight.detach().clone())
    judge.save(tmp_path / "judge")
    loaded = load_model(str(tmp_path / "judge"), torch.float32, "cpu")
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    config.inverse.discriminator.backbone = str(tmp_path / "judge")
    config.inverse.discriminator.rank = 0
    _launch(replace(config, output=str(tmp_path / "one")))
    _launch(replace(config, output=str(tmp_path / "two")), 2)
    _equal(tmp_path)
    weights = load_file(tmp_path / "two/artifacts/iteration-1/discriminator.safetensors")
    assert not any("lm_head" in name for name in weights)
    before = loaded.get_input_embeddings().weight
    [after] = [w for name, w in weights.items() if "embed_tokens" in name]
    assert not torch.equal(before, after), "its backbone learned"


@pytest.mark.slow
def test_two_processes_share_the_episodes_of_step_values(config, tmp_path):
    config = _settings(config, "implicit")
    config.reflection.weights, config.reflection.equal = "value", "effect"
    config.reflection.value_rollouts = 2
    _launch(replace(config, output=str(tmp_path / "one")))
    _launch(replace(config, output=str(tmp_path / "two")), 2)
    _equal(tmp_path)
    folder = tmp_path / "two/artifacts/iteration-1"
    assert len(list(folder.glob("values-0.[01].jsonl"))) == 2
    one, two = (
        json.loads((tmp_path / name / "summary.json").read_text())["figures"]["iteration-1"]
        for name in ("one", "two")
    )
    for name in ("value_episodes", "value_steps", "pairs_without_value", "same_by_effect"):
        assert one[name] == two[name], name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["implicit", "inverse", "dpo"])
def test_shards_give_what_one_process_gives(config, tmp_path, method):
    config = _settings(config, method)
    _launch(replace(config, output=str(tmp_path / "one")))
    _launch(replace(config, output=str(tmp_path / "two")), 2, "fsdp")
    _equal(tmp_path)


@pytest.mark.slow
def test_shards_resume_after_a_kill(config, tmp_path):
    config = _settings(config, "implicit")
    _launch(replace(config, output=str(tmp_path / "one")))
    config.checkpoint_seconds = 0.0  # shards are gathered and written after every update
    fsdp = replace(config, output=str(tmp_path / "two"))
    _launch(fsdp, 2, "fsdp", die_at="sft:3")
    out = _launch(fsdp, 2, "fsdp", die_at="iteration-1:2")
    assert out.split("logs ")[1].startswith("sft:3"), "SFT resumes from its checkpoint"
    out = _launch(fsdp, 2, "fsdp")
    assert out.split("logs ")[1].startswith("iteration-1:2")
    _equal(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "counts"), [("fsdp", (2, 1, 2)), ("fsdp", (1, 2, 1)), ("ddp", (2, 1, 2))]
)
def test_another_number_of_processes_goes_on(kind, counts, config, tmp_path):
    """Killed in SFT, which TRL trains, and again in the iteration. `counts`: the processes of each
    of its three starts."""
    config = _settings(config, "implicit")
    config.sft.epochs, config.reflection.epochs = 5, 2
    # AdamW's first step is the gradient's sign, which rounding turns where it is nearly 0.
    config.reflection.learning_rate = 1e-5
    _launch(replace(config, output=str(tmp_path / "one")))
    config.checkpoint_seconds = 0.0
    config = replace(config, output=str(tmp_path / "two"))
    _launch(config, counts[0], kind, die_at="sft:3")
    shards = list((tmp_path / "two/checkpoints/sft").glob("*/trained/*.safetensors"))
    assert len(shards) == (2 if kind == "fsdp" and counts[0] == 2 else 0)
    out = _launch(config, counts[1], kind, die_at="iteration-1:2")
    assert out.split("logs ")[1].startswith("sft:3"), "SFT resumes from its checkpoint"
    out = _launch(config, counts[2], kind, die_at="")
    assert out.split("logs ")[1].startswith("iteration-1:2")
    one, two = (
        [json.loads(x)["loss"] for x in (tmp_path / r / "metrics.jsonl").read_text().splitlines()]
        for r in ("one", "two")
    )
    assert len(one) == 9
    assert one == pytest.approx(two, abs=1e-5)
