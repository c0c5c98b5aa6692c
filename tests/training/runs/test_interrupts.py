"""Ctrl-C and SIGTERM in training: no update is lost, and nothing differs after the resume."""

import gc
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stepagent import command_line
from stepagent.training import run
from stepagent.training.runs import interrupts
from stepagent.training.runs.metrics import Metrics

ROOT = Path(__file__).parents[3]


@pytest.fixture
def whole(config):
    """A run that nothing interrupts, with checkpoints an hour apart; SFT and both iterations make
    several updates."""
    config.sft.epochs, config.evaluation.limit, config.checkpoint_seconds = 2, 1, 3600.0
    whole = replace(config, output=f"{config.output}-whole")
    return whole, run.run(whole)


def _updates(config):
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [(line["stage"], line["update"]) for line in map(json.loads, lines)]


def _same_policy(one, two):
    one, two = (load_file(Path(c.output) / "final/model.safetensors") for c in (one, two))
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_an_interrupted_run_ends_as_one_that_never_stopped(whole, config, monkeypatch):
    """Interrupted after the first update of SFT (TRL's loop), in its last one, and after the first
    and the last of a later stage (ours)."""
    whole, summary = whole
    updates, log = _updates(whole), Metrics.log
    last = dict(updates)
    stops = [(stage, n) for stage in ("sft", "iteration-2") for n in (1, last[stage])]

    def interrupt(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if (stage, update) in stops[:1]:
            signal.raise_signal(signal.SIGINT if update == 1 else signal.SIGTERM)

    monkeypatch.setattr(Metrics, "log", interrupt)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            run.run(config)
        gc.collect()  # frees the lock on the run's directory, as the end of a process does
        stage, _ = stop = stops.pop(0)
        assert _updates(config)[-1] == stop, "it stops at the end of the update"
        assert any((Path(config.output) / "checkpoints" / stage).iterdir())
    resumed = run.run(config)
    assert _updates(config) == updates, "no update is left out, and none counts twice"
    assert resumed["figures"] == summary["figures"]
    assert resumed["scores"].keys() == summary["scores"].keys()
    assert _same_policy(whole, config)


def test_the_command_says_how_to_resume(config):
    config.sft.epochs, config.checkpoint_seconds, config.evaluation.limit = 500, 3600.0, 1
    file = Path(config.output).with_suffix(".yaml")
    file.write_text(command_line.dump(config))
    metrics = Path(config.output) / "metrics.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "training.run", "--config", str(file)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not metrics.is_file():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "stopping at the end of this update" in errors
    assert errors.endswith("interrupted; the same command continues from here\n")
    assert "Traceback" not in errors
    assert list((Path(config.output) / "checkpoints/sft").glob("checkpoint-*/trainer_state.json"))


def test_the_command_ends_in_the_last_update_of_sft_and_completes_when_given_again(
    config, monkeypatch
):
    """An update in the midst of a pass, where `sft.tokens` ends the training."""
    config.method, config.sft.epochs, config.evaluation.limit = "sft", 1, 1
    tokens = run.run(replace(config, output=f"{config.output}-once"))["budget"]["tokens"]
    config.sft.tokens = round(1.4 * tokens)
    whole = replace(config, output=f"{config.output}-whole")
    run.run(whole)
    last, log = _updates(whole)[-1], Metrics.log
    assert last == ("sft", 7)

    def interrupt(self, stage, update, **figures):
        log(self, stage, update, **figures)
        if (stage, update) == last:
            signal.raise_signal(signal.SIGTERM)

    file = Path(config.output).with_suffix(".yaml")
    file.write_text(command_line.dump(config))
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", interrupt)
        assert run.main(["--config", str(file)]) == 130
    gc.collect()
    assert run.main(["--config", str(file)]) == 0
    assert _updates(config) == _updates(whole)
    assert _same_policy(whole, config)


def test_a_signal_waits_until_the_body_ends():
    before = signal.getsignal(signal.SIGINT)
    steps = []

    def body():
        with interrupts.held() as came:
            steps.append(came())
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)  # as a launcher adds to the Ctrl-C that it got
            steps.append(came())

    with pytest.raises(KeyboardInterrupt):
        body()
    assert steps == [False, True]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_of_a_kind_does_not_wait(number):
    steps = []

    def body():
        with interrupts.held():
            signal.raise_signal(number)
            steps.append("first")
            signal.raise_signal(number)
            steps.append("second")

    with pytest.raises(KeyboardInterrupt):
        body()
    assert steps == ["first"]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts.held() as came:
            signal.raise_signal(signal.SIGTERM)
            assert not came()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_threads_get_no_signals():
    answers = []

    def work():
        with interrupts.held() as came:
            answers.append(came())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_checkpoints_are_due_by_the_clock():
    with interrupts.checkpoint_clock(3600) as clock:
        assert not clock.due()
    with interrupts.checkpoint_clock(0) as clock:
        assert clock.due()
        clock.written()
