"""Where metrics go, what time goes into, and the final policy on the hub."""

from __future__ import annotations

import gc
import json
import signal
import time
from pathlib import Path

import accelerate.tracking
import huggingface_hub
import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import nn

from stepagent.errors import UsageError
from stepagent.training import run
from stepagent.training.policy import Policy
from stepagent.training.runs import model_card
from stepagent.training.runs.metrics import Metrics, check_trackers
from stepagent.training.runs.times import Times, flops_per_token, of_stage, peak_flops


class Recorder(GeneralTracker):
    name, requires_logging_directory = "recorder", True
    runs: list[Recorder] = []

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.run_name, self.logging_dir, self.lines, self.state = run_name, logging_dir, [], "new"
        Recorder.runs.append(self)

    @property
    def tracker(self):
        return self

    def start(self):
        self.state = "started"

    def store_init_configuration(self, values):
        self.options = values

    def log(self, values, step=None, **options):
        self.lines.append((step, values))

    def finish(self):
        self.state = "finished"


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["recorder"])
    Recorder.runs.clear()


def test_trackers_follow_a_run_and_the_hub_gets_its_policy(config, recorder, monkeypatch):
    pushed = {}

    class Api:
        def create_repo(self, name, **options):
            pushed["repository"] = name, options

        def upload_folder(self, *, repo_id, folder_path, **options):
            pushed["files"] = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    config.reflection.iterations, config.evaluation.every_iteration = 1, False
    config.report_to, config.push_to_hub = ["recorder"], "me/agent"
    summary = run.run(config)
    [tracker] = Recorder.runs
    assert (tracker.run_name, tracker.state) == ("run", "finished")
    assert tracker.options["sft.learning_rate"] == config.sft.learning_rate
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    tracked = [v for _, values in tracker.lines for k, v in values.items() if k.endswith("/loss")]
    assert tracked == pytest.approx(losses, abs=1e-6)
    steps = [step for step, _ in tracker.lines]
    assert steps == sorted(steps)
    assert not (Path(config.output) / "tensorboard").exists()
    times = summary["times"]["iteration-1"]
    assert min(times["seconds_practice"], times["seconds_updates"]) > 0
    assert times["tokens_per_second"] > 0
    assert summary["times"]["evaluation"]["seconds_scoring"] > 0
    assert any("iteration-1/seconds_practice" in values for _, values in tracker.lines)
    assert pushed["repository"] == ("me/agent", {"private": True, "exist_ok": True})
    assert {"model.safetensors", "config.yaml", "README.md"} <= set(pushed["files"])
    text = pushed["files"]["README.md"].decode()
    assert text.startswith("---\nlibrary_name: transformers\n")
    score = summary["scores"]["iteration-1"]["reward_mean"]
    assert f"| iteration-1 | {score:.3f} |" in text


def test_a_tracker_that_is_not_there():
    with pytest.raises(UsageError, match=r"'nothing', which is no tracker: choose of .*wandb"):
        check_trackers(["nothing"])
    check_trackers(["tensorboard"])


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    with pytest.raises(UsageError, match="not installed: install wandb"):
        check_trackers(["wandb"])


def test_no_tracker_at_all(tmp_path):
    metrics = Metrics(tmp_path)
    metrics.report_to([], "run", {})
    metrics.log("sft", 1, loss=1.0)
    metrics.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_hub_refuses(tmp_path, monkeypatch):
    class Api:
        def create_repo(self, *args, **options):
            raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(model_card.PushFailed, match=r"not pushed \(no network\).*hf auth login"):
        model_card.push("a/b", tmp_path, "card")


def test_a_card_names_an_adapters_base():
    score = {"reward_mean": 0.5, "reward_ci95": [0.4, 0.6], "success_rate": 0.25, "episodes": 8}
    summary = {
        "method": "implicit",
        "env": "stepagent/ScienceWorld-v0",
        "expert_trajectories": 3,
        "seed": 1,
        "adapter": True,
        "scores": {"sft": score},
    }
    text = model_card.card(summary, "org/base")
    assert "library_name: peft" in text
    assert "base_model: org/base" in text
    assert "| sft | 0.500 | 0.400 to 0.600 | 25% | 8 |" in text
    assert "base_model" not in model_card.card(summary, "tiny")


def test_times_do_not_overlap(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    times = Times()
    with times.of("practice"):
        now[0] = 2.0
        with times.of("waiting"):
            now[0] = 5.0
        now[0] = 6.0
    now[0] = 9.0
    with times.of("updates"):
        now[0] = 13.0
    times.tokens = 100
    report = of_stage(times, flops=6e9, peak=1e12)
    assert {name: report[name] for name in list(report)[:3]} == {
        "seconds_practice": 3.0,
        "seconds_waiting": 3.0,
        "seconds_updates": 4.0,
    }
    assert report["tokens_per_second"] == 25.0
    assert report["share_of_peak"] == 0.15  # 100 · 6 GFLOP in 4 s, of 1 TFLOP/s
    assert times.take() == {}
    with times.of("updates"):
        now[0] = 14.0
    assert "tokens_per_second" not in of_stage(times), "none were read since"


def test_a_resumed_stage_reports_the_tokens_of_the_start_that_ended_it(config, monkeypatch):
    config.method, config.sft.epochs, config.evaluation.limit = "sft", 2, 1
    log = Metrics.log

    def interrupt(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if update == 9:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.run(config)
    gc.collect()  # frees the lock on the run's directory, as the end of a process does
    times = run.run(config)["times"]["sft"]
    last = json.loads((Path(config.output) / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["update"] == 10
    tokens = times["tokens_per_second"] * times["seconds_updates"]
    assert tokens == pytest.approx(last["tokens"], rel=0.02)


def test_a_trained_weight_costs_six_a_frozen_one_four():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False))
    assert flops_per_token(model) == 6 * 10
    model[0].requires_grad_(False)
    assert flops_per_token(model) == 4 * 8 + 6 * 2


def test_the_peak_of_a_cpu_is_what_the_configuration_says(config):
    assert peak_flops(torch.device("cpu")) == 0
    config.reflection.iterations = 0
    first = run.run(config)["times"]["sft"]
    assert "share_of_peak" not in first
    config.output += "-again"
    config.peak_tflops = 0.001
    times = run.run(config)["times"]["sft"]
    policy = Policy.load(config.policy, Path(config.output) / "final")
    expected = times["tokens_per_second"] * flops_per_token(policy.model) / 1e9
    assert times["share_of_peak"] == pytest.approx(expected, rel=0.01)


def test_the_peak_goes_by_the_name_of_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda")) == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    assert peak_flops(torch.device("cuda")) == 0
