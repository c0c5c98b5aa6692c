"""Engines draw while the trainer works: scores what came back, or makes updates."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

import pytest

from stepagent.training import run
from stepagent.training.config import SamplerConfig
from stepagent.training.methods import implicit
from stepagent.training.runs.metrics import Metrics
from stepagent.training.sampler.vllm import VllmSampler
from tests.servers import running
from tests.training.sampler.runs import losses, practised, scores
from tests.training.sampler.vllm_stub import VllmStub

WAIT = 240
"""Seconds after which what should have happened meanwhile has not."""


@pytest.fixture
def config(config, tmp_path):
    """A greedy run of the trainer alone has been made; now the same on an engine."""
    config.reflection.temperature = 0.0
    config.evaluation.every_iteration = False
    return config


def _on_engine(config, monkeypatch, tmp_path, name="engines"):
    """The run on an engine from here on, which the context starts."""
    stub = VllmStub(Path(config.output) / "base")
    config.output = str(tmp_path / name)
    config.sampler = SamplerConfig(urls=[stub.address], concurrency=1)
    return stub, running(stub, monkeypatch)


def _waits(stub, event, when):
    """The stub answers prompts once the event has come, where `when()` says so; returns a list of
    whether it came."""
    came = []

    def generate(body):
        if "seed" in body["sampling_params"] or when():
            came.append(event.wait(WAIT))
        return VllmStub.on_inference_v1_generate(stub, body)

    stub.on_inference_v1_generate = generate
    return came


def test_the_trainer_scores_what_is_back_while_engines_draw_the_rest(config, monkeypatch, tmp_path):
    """And the run is that of the trainer alone, and that without overlap."""
    config.reflection.iterations = 1
    run.run(config)
    local = practised(config), losses(config), scores(config)
    stub, serving = _on_engine(config, monkeypatch, tmp_path)
    scored, reference = threading.Event(), implicit.reference

    def score(policy, tree):
        scored.set()
        return reference(policy, tree)

    monkeypatch.setattr(implicit, "reference", score)
    file = Path(config.output) / "practice" / "iteration-1.jsonl"
    with serving:
        came = _waits(stub, scored, lambda: file.is_file() and file.stat().st_size)
        run.run(config)
        assert all(came)
        assert came
        assert (practised(config), losses(config), scores(config)) == (
            local[0],
            pytest.approx(local[1], abs=1e-3),
            local[2],
        )
        times = json.loads((Path(config.output) / "summary.json").read_text())["times"]
        assert times["iteration-1"].keys() >= {
            "seconds_waiting",
            "seconds_scoring",
            "seconds_updates",
        }
        overlapped = practised(config), losses(config)
        monkeypatch.setattr(VllmSampler, "is_remote", False)
        config.output = str(tmp_path / "alternating")
        run.run(config)
        assert (practised(config), losses(config)) == overlapped


def test_engines_practise_for_the_next_iteration_during_updates(config, monkeypatch, tmp_path):
    """And the run is that in which the trainer draws the same before its updates; also where it is
    killed in the middle."""
    config.reflection.off_policy_iterations, config.reflection.iterations = 1, 3
    run.run(config)
    local = practised(config), losses(config), scores(config)
    stub, serving = _on_engine(config, monkeypatch, tmp_path)
    updated, log = threading.Event(), Metrics.log
    killed = []

    def logged(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if stage == "iteration-1":
            updated.set()
        if stage == "iteration-2" and not killed:
            killed.append(update)
            raise KeyboardInterrupt

    monkeypatch.setattr(Metrics, "log", logged)
    practice = Path(config.output) / "practice" / "iteration-2.jsonl"
    with serving:
        came = _waits(stub, updated, practice.is_file)
        with contextlib.suppress(KeyboardInterrupt):
            run.run(config)
        assert killed
        assert all(came)
        assert came
        run.run(config)
    assert practised(config) == local[0]
    assert losses(config) == pytest.approx(local[1], abs=1e-3)
    assert scores(config) == local[2]
    by = [json.loads(text.splitlines()[0]).get("policy") for text in practised(config)]
    assert by == [None, "sft", "iteration-1"]
