import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from stepagent import agents, command_line
from stepagent.envs import wording
from stepagent.envs.react import PromptStyle
from stepagent.envs.tools import write_call
from stepagent.envs.trajectory import Step, Trajectory, write
from stepagent.files import write_atomically
from stepagent.training import methods, run
from stepagent.training.config import Config
from stepagent.training.methods import METHODS, apply_variant
from stepagent.training.runs.directory import RunDirectory, RunError
from stepagent.training.runs.options import differing
from stepagent.training.runs.training_run import TrainingRun
from tests.envs.guess import GuessEnv
from tests.training.toys import CONFIGS, GUESS, SWEEPS

SINGLE = [p for p in sorted(CONFIGS.glob("*.yaml")) if p.stem not in ("nano", *SWEEPS)]
PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))
MODELS = sorted((CONFIGS / "paper" / "models").glob("*.yaml"))


def _weights(path):
    return load_file(Path(path) / "model.safetensors")


def _equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_whole_run(config):
    config.evaluation.agents = ["random", "expert"]
    summary = run.run(config)
    assert list(summary["scores"]) == ["random", "sft", "iteration-1", "iteration-2", "expert"]
    assert summary["scores"]["expert"]["reward_mean"] == 1.0
    out = Path(config.output)
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "final/model.safetensors"):
        assert (out / name).is_file(), name
    assert list((out / "tensorboard").iterdir())
    assert not list((out / "checkpoints").iterdir()), "checkpoints outlive their stage"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"sft", "iteration-1", "iteration-2"}
    first = next(line for line in lines if line["stage"] == "iteration-1")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4), "at the reference, eq. 6 is log 2"
    assert first["margin"] == pytest.approx(0, abs=1e-4)
    assert not _equal(_weights(out / "base"), _weights(out / "policies/sft"))
    assert not _equal(_weights(out / "policies/sft"), _weights(out / "final"))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for folder in ("final", "policies/sft"):  # an evaluation prompts it as training did
        agent = agents.make_agent(f"hf:{out / folder}", dtype="float32")
        assert agent.style == config.prompt
        assert agent.decoding.max_new_tokens == config.policy.max_new_tokens
    AutoModelForCausalLM.from_pretrained(out / "final")
    assert AutoTokenizer.from_pretrained(out / "final").chat_template
    again = run.run(config)  # everything is there: nothing is done twice
    assert again["scores"] == summary["scores"]
    assert lines == [json.loads(li) for li in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_shows_sft_on_as_many_tokens_beside_its_iterations(config, capsys):
    config.evaluation.matched_sft, config.evaluation.agents = True, ["expert"]
    config.evaluation.agreement, config.reflection.iterations = 4, 1
    summary = run.run(config, Console(width=80))
    assert list(summary["scores"]) == ["sft", "iteration-1", "sft-matched", "expert"]
    control = json.loads((Path(config.output) / "sft-matched/summary.json").read_text())
    sft = json.loads((Path(config.output) / "stages.json").read_text())["budget"]["sft"]
    # Whole updates: within half of one of the tokens that the run was trained on.
    per_update = sft["tokens"] / sft["updates"]
    assert abs(control["budget"]["tokens"] - summary["budget"]["tokens"]) <= per_update
    assert control["budget"]["tokens"] > sft["tokens"]
    assert control["expert_trajectories"] == summary["expert_trajectories"]
    assert control["scores"]["sft"] == summary["scores"]["sft-matched"]
    row = next(li for li in capsys.readouterr().out.splitlines() if "SFT, as many tokens" in li)
    agreement = control["agreement"]["sft"]
    assert row.split()[-1] == f"{agreement['step_match']:.3f}"
    assert run.run(config)["scores"] == summary["scores"]  # nothing is trained again
    with pytest.raises(ValueError, match="matched_sft is for methods that go on from SFT"):
        run.run(replace(config, sft=replace(config.sft, epochs=0)))
    config.method, config.output = "sft", config.output + "-sft"  # its own control
    assert list(run.run(config)["scores"]) == ["sft", "expert"]


def test_thoughts_in_varied_words(config, monkeypatch, tmp_path):
    """The same actions; other thoughts for another seed, in training and on dev."""
    with pytest.raises(ValueError, match="one wording only"):
        run.run(replace(config, expert=replace(config.expert, wording="varied")))
    assert not Path(config.output).exists()
    file = tmp_path / "wordings.yaml"
    file.write_text("- ['It is {n}.', 'My guess is {n}.', 'I say {n}.', '{n} is what I try.']")
    monkeypatch.setattr(wording, "file_of", lambda env: file)
    config.prompt, config.method = PromptStyle(False, False, True), "sft"
    config.expert.wording, config.policy.max_new_tokens = "varied", 20
    config.sft.select, config.evaluation.agreement = "dev", 8
    config.evaluation.limit = 1

    def steps(seed):
        config.seed, config.output = seed, str(tmp_path / f"seed-{seed}")
        run_ = TrainingRun(config, Console(quiet=True))
        run_.directory.close()
        dev = [t.steps[0].thought for t in run_.scores.dev_expert()]
        return [s.trajectory.steps[0] for s in run_.samples], dev

    (one, dev), (other, _) = steps(0), steps(1)
    beginnings = {s.thought.replace(s.action, "n") for s in one}
    assert beginnings == {"It is n.", "My guess is n.", "I say n.", "n is what I try."}
    assert len({thought.strip("0123456789. ") for thought in dev}) > 1
    same_action = [a.thought == b.thought for a, b in zip(one, other, strict=True)]
    assert not all(same_action)
    config.output = str(tmp_path / "run")
    figures = run.run(config)["figures"]["sft"]
    assert {"dev_loss", "chosen_pass"} <= figures.keys()


def test_a_run_with_calls_of_functions(config):
    config.method, config.prompt = "sft", PromptStyle(False, False, False, format="tools")
    config.evaluation.limit, config.policy.max_new_tokens = 2, 40
    summary = run.run(config)
    assert summary["prompt"]["format"] == "tools"
    session = TrainingRun(config, Console(quiet=True))
    sample = session.samples[0]
    start, end = sample.encoded.replies[0]
    reply = session.policy.codec.decode(sample.encoded.ids[start:end])
    assert reply == write_call("act", {"action": sample.trajectory.steps[0].action})
    assert '"act"' in session.policy.codec.decode(sample.encoded.ids[:start])
    session.directory.close()


def test_agreement_with_the_expert_is_measured_after_every_stage(config):
    config.evaluation.agreement, config.reflection.iterations = 3, 1
    summary = run.run(config)
    assert list(summary["agreement"]) == ["sft", "iteration-1"]
    for figures in summary["agreement"].values():
        assert figures["trajectories"] == 3
        assert 0 <= figures["step_match"] <= 1
        assert figures["loss"] > 0
    dev = Path(config.output) / "expert-dev" / "trajectories.jsonl"
    assert {json.loads(line)["split"] for line in dev.read_text().splitlines()} == {"dev"}


def test_same_seed_same_weights_other_seed_others(config, tmp_path):
    config.reflection.iterations = 1
    config.evaluation.limit = 1
    finals = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run.run(replace(config, output=str(tmp_path / name), seed=seed))
        finals.append(_weights(tmp_path / name / "final"))
    assert _equal(finals[0], finals[1])
    assert not _equal(finals[0], finals[2])


def _of_another_environment(folder):
    other = Trajectory("tests/House-v0", "house/1", "train", "expert", 0, (Step("x", "", "go"),))
    write(folder / "pairs.jsonl", [other])


def _pair_of_another_environment(folder):
    messages = [{"role": "user", "content": "x"}], [{"role": "assistant", "content": "y"}]
    row = {"prompt": messages[0], "chosen": messages[1], "rejected": messages[1], "env": "Other-v0"}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")


FILES = {"preference.trajectories": ["pairs.jsonl"]}


@pytest.mark.parametrize(
    ("method", "options", "before", "message"),
    [
        ("sft", {"policy.template": {"history_thoughts": "some"}}, None, "history_thoughts"),
        ("sft", {"policy.template": {"date": "tomorrow"}}, None, "template.date"),
        ("dpo", FILES, None, "pairs.jsonl"),
        ("eto", FILES, _of_another_environment, "House-v0"),
        ("implicit", FILES, None, "pairs.jsonl"),
        ("implicit", FILES, _of_another_environment, "House-v0"),
        ("implicit", FILES, _pair_of_another_environment, "it is of Other-v0"),
        ("sft", {"evaluation.agreement": 3, "evaluation.split": "test"}, "dev", "agreement"),
        ("sft", {"sft.select": "dev"}, "dev", "sft.select"),
        ("sft", {"evaluation.split": "test"}, "test", "evaluation.split"),
    ],
)
def test_what_cannot_work_is_said_before_the_expert_plays(
    config, tmp_path, monkeypatch, method, options, before, message
):
    monkeypatch.chdir(tmp_path)
    config.method = method
    for name, value in options.items():
        *sections, last = name.split(".")
        setattr(functools.reduce(getattr, sections, config), last, value)
    if isinstance(before, str):
        lists = GuessEnv.list_tasks
        without = lambda env: [] if env.split == before else lists(env)  # noqa: E731
        monkeypatch.setattr(GuessEnv, "list_tasks", without)
    elif before:
        before(tmp_path)
    with pytest.raises((ValueError, RunError, FileNotFoundError), match=message):
        run.run(config)
    assert not (Path(config.output) / "expert").exists()


def _command(config):
    path = Path(config.output).with_suffix(".yaml")
    path.write_text(command_line.dump(config))
    return [sys.executable, "-m", "training.run", "--config", str(path)]


@pytest.mark.parametrize(
    ("method", "stage"),
    [("implicit", "sft"), ("implicit", "iteration-2"), ("inverse", "iteration-2")],
)
def test_killed_and_started_again_gives_the_same_weights(
    config, tmp_path, watch_updates, method, stage
):
    config.method, config.sft.epochs = method, 2
    judge = config.inverse.discriminator
    judge.max_accuracy, judge.chance_margin = 1.1, -1.0
    config.evaluation.limit = 1
    whole = replace(config, output=str(tmp_path / "whole"))
    run.run(whole)
    killed = replace(config, output=str(tmp_path / "killed"))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(_command(killed), cwd=root, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.is_file() and metrics.read_text().count(f'"{stage}"') >= 2:
            break
        time.sleep(0.01)
    assert process.poll() is None, "the run was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "policies" / stage).exists()
    assert (tmp_path / "killed" / "checkpoints" / stage).exists()
    updates = watch_updates()
    run.run(killed)
    assert updates[0][0] == stage
    assert updates[0][1] > 1, "the stage resumes from its checkpoint"
    assert _equal(_weights(tmp_path / "whole" / "final"), _weights(tmp_path / "killed" / "final"))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    keys = [(line["stage"], line["update"]) for line in lines]
    assert len(set(keys)) == len(keys), "an update is in metrics.jsonl twice"


def test_only_the_newest_policy_is_kept_if_so_told(config):
    config.keep_policies = False
    run.run(config)
    assert [p.name for p in (Path(config.output) / "policies").iterdir()] == ["iteration-2"]
    run.run(config)


@pytest.mark.parametrize(("stage", "agreement"), [("iteration-1", 0), ("iteration-2", 3)])
def test_a_kill_before_the_stage_is_on_record_costs_no_policy(
    config, monkeypatch, stage, agreement
):
    """The policy that a stage stands on goes only once the stage is done for good."""
    config.keep_policies, config.evaluation.agreement = False, agreement
    save_state = TrainingRun._save_state

    def killed(training_run):
        if training_run.state.done[-1:] == [stage]:
            training_run.directory.close()
            raise KeyboardInterrupt
        save_state(training_run)

    monkeypatch.setattr(TrainingRun, "_save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        run.run(config)
    monkeypatch.setattr(TrainingRun, "_save_state", save_state)
    run.run(config)
    assert [p.name for p in (Path(config.output) / "policies").iterdir()] == ["iteration-2"]


def test_policies_that_are_gone_cannot_be_scored_any_more(config):
    config.keep_policies = config.evaluation.every_iteration = False
    assert list(run.run(config)["scores"]) == ["iteration-2"]
    config.evaluation.every_iteration = True
    assert list(run.run(config)["scores"]) == ["iteration-2"]


def test_scores_of_a_policy_that_is_gone_stay(config):
    """An episode failed, and the policy that could play it again was not kept."""
    config.keep_policies = False
    run.run(config)
    summary = Path(config.output) / "eval/sft/summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"complete": False}))
    assert run.run(config)["scores"]["sft"]["complete"] is False


def test_options_that_change_no_weight_may_change(config):
    config.reflection.iterations = 0
    run.run(config)
    config.evaluation.agents, config.keep_policies, config.rollouts.workers = ["random"], False, 2
    assert "random" in run.run(config)["scores"]


def test_a_path_may_be_written_in_another_way(config, tmp_path, monkeypatch):
    old = command_line.dump(replace(config, output="runs/a"))
    for path in (str(tmp_path / "runs/a"), "./runs/../runs/a", str(tmp_path / "moved")):
        assert not differing(old, command_line.dump(replace(config, output=path)))
    monkeypatch.chdir(tmp_path)
    config.expert.trajectories = "expert.jsonl"
    old = command_line.dump(config)
    config.expert.trajectories = str(tmp_path / "expert.jsonl")
    assert not differing(old, command_line.dump(config))
    config.expert.trajectories = str(tmp_path / "other.jsonl")
    assert list(differing(old, command_line.dump(config))) == ["expert.trajectories"]


def test_trajectories_of_the_split_that_is_scored_are_refused(config, tmp_path):
    from stepagent.training import collect

    path = collect.collect(collect.Config(GUESS, tmp_path / "data", split="test", limit=4))
    config.expert.trajectories = str(path)
    with pytest.raises(RunError, match="4 trajectories of the split 'test'"):
        run.run(config)


def test_a_full_disk_is_an_os_error_whatever_the_library_calls_it(tmp_path):
    from safetensors import SafetensorError

    def full(partial):
        partial.write_text("half")
        raise SafetensorError("I/O error: No space left on device")

    (tmp_path / "there").write_text("before")
    with pytest.raises(OSError, match=r"cannot write .*there: I/O error: No space left"):
        write_atomically(tmp_path / "there", full)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_disk_is_asked_for_what_the_method_keeps(config):
    sizes = {}
    for method in ("sft", "implicit", "spin"):
        config.method, config.output = method, f"{config.output}-{method}"
        config.reflection.iterations, config.preference.iterations = 2, 5
        training_run = TrainingRun(config, Console(quiet=True))
        needed = training_run.bytes_needed(methods.find(method).policies_on_disk(config))
        sizes[method] = needed / training_run.policy.saved_bytes()
        training_run.directory.close()
    assert sizes == {"sft": 1 + 2 + 6, "implicit": 3 + 2 + 6, "spin": 6 + 2 + 6}


def test_the_disk_is_asked_for_the_control_before_the_method_trains(config, monkeypatch):
    config.evaluation.matched_sft, config.reflection.iterations = True, 1
    opened = TrainingRun(config, Console(quiet=True))
    size = opened.policy.saved_bytes()
    opened.directory.close()
    free = (2 + 2 + 6 + 2) * size  # the run's own, and little more
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(RunError, match="GB are free"):
        run.run(config)
    assert not (Path(config.output) / "policies").exists()
    config.evaluation.matched_sft = False
    run.run(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free - 2 * size))
    run.run(config)  # what the first start has written needs no further room


def test_adapters(config, tmp_path):
    config.reflection.iterations = 1
    config.evaluation.limit = 1
    run.run(config)
    lora = replace(config, output=str(tmp_path / "lora"))
    lora.policy = replace(config.policy, model=str(Path(config.output) / "final"))
    lora.policy.lora.r = 4
    run.run(lora)
    final = tmp_path / "lora" / "final"
    assert (final / "adapter_model.safetensors").is_file()
    from stepagent.agents.models import load_model

    assert load_model(final, "float32", "cpu") is not None


def test_another_configuration_is_refused(config):
    config.reflection.iterations = 0
    run.run(config)
    with pytest.raises(RunError, match="seed 0, now 3"):
        run.run(replace(config, seed=3))


def test_an_option_that_did_not_exist_yet_had_its_default(tmp_path):
    def begin(text):
        RunDirectory(tmp_path / "run", text).close()

    begin("seed: 1\nsft: {epochs: 4}\n")
    begin("seed: 1\nsft: {epochs: 4, assistant_only_loss: true}\n")
    with pytest.raises(RunError, match="assistant_only_loss True, now False"):
        begin("seed: 1\nsft: {epochs: 4, assistant_only_loss: false}\n")


def test_two_processes_do_not_share_a_directory(tmp_path):
    first = RunDirectory(tmp_path / "run", "a: 1\n")
    with pytest.raises(RunError, match="another process"):
        RunDirectory(tmp_path / "run", "a: 1\n")
    first.close()
    RunDirectory(tmp_path / "run", "a: 1\n").close()


def test_too_little_disk_space_is_said_first(tmp_path):
    directory = RunDirectory(tmp_path / "run", "")
    with pytest.raises(RunError, match="GB are free"):
        directory.check_space(10**18, "policies and checkpoints")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "stepagent/Nowhere-v0"}, "stepagent/ScienceWorld-v0"),
        ({"expert.trajectories": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"expert.min_reward": 2.0}, "best score 1.00"),
        ({"policy.model": "no/such/model"}, "no/such/model"),
        ({"policy.max_new_tokens": 600}, "context"),
        ({"policy.tiny.context": 14}, "longer context"),
    ],
)
def test_what_is_wrong_is_said_before_training(config, change, message, capsys):
    (key, value), *_ = change.items()
    holder = config
    *path, last = key.split(".")
    for name in path:
        holder = getattr(holder, name)
    setattr(holder, last, value)
    assert run.main(_command(config)[3:]) == 2
    assert message in capsys.readouterr().err


def test_unknown_keys_list_what_exists(config, capsys):
    with pytest.raises(SystemExit):
        run.main([*_command(config)[3:], "--reflection.bta", "0.2"])
    assert "reflection.beta" in capsys.readouterr().err


def test_unknown_methods_list_what_exists(config, capsys):
    assert run.main([*_command(config)[3:], "--method", "reinforce"]) == 2
    assert "implicit" in capsys.readouterr().err


@pytest.mark.parametrize("path", SINGLE, ids=lambda p: p.stem)
def test_every_configuration_can_be_read(path):
    config = command_line.parse(Config, ["--config", str(path)], prog="test")
    assert config.method in METHODS
    assert command_line.dump(config)
    assert isinstance(config.prompt, PromptStyle)


def test_every_method_has_a_laptop_and_a_paper_configuration():
    laptop = {p.stem.removesuffix("-laptop") for p in SINGLE if p.stem.endswith("-laptop")}
    assert laptop == set(METHODS) == {p.stem for p in PAPER}
    for path in [p for p in SINGLE if p.stem.endswith("-laptop")] + PAPER:
        method = path.stem.removesuffix("-laptop")
        assert command_line.parse(Config, ["--config", str(path)], prog="test").method == method


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_the_papers_configurations(path, model):
    files = ["--config", str(path), "--config", str(model)]
    config = command_line.parse(Config, files, prog="test")
    run.check(config)
    assert config.method == path.stem
    assert config.policy.model == yaml.safe_load(model.read_text())["policy"]["model"]
    assert (config.sft.learning_rate, config.sft.batch_size, config.sft.epochs) == (1e-5, 64, 4)
    assert (config.sft.schedule, config.sft.warmup_ratio) == ("cosine", 0.03)
    if config.method in ("implicit", "inverse"):
        reflection = config.reflection
        assert (reflection.learning_rate, reflection.batch_size) == (5e-7, 16)
        assert (reflection.epochs, reflection.practice) == (1, 3)
        assert reflection.iterations == {"implicit": 3, "inverse": 7}[config.method]
        variant = replace(copy.deepcopy(config), method=f"{config.method}-paper")
        apply_variant(variant, ())
        assert variant == config  # to the letter
    preference = config.preference
    if config.method == "eto":
        assert (preference.beta, preference.later_beta) == (0.1, 0.5)
        assert (preference.learning_rate, preference.later_learning_rate) == (1e-6, 5e-7)
    if config.method in ("dpo", "spin"):
        assert (preference.beta, preference.learning_rate) == (0.1, 5e-7)


ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda p: p.stem)
def test_accelerate_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_processes == 8
    assert config.mixed_precision == "no", "trained weights are float32"
    # DeepSpeed takes the trainer's number, and stops where it is given another.
    assert "gradient_accumulation_steps" not in getattr(config, "deepspeed_config", {})
