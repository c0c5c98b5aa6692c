"""Practice and episodes on engines: what they give, and what becomes of a run when they fail."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import requests
import torch

from stepagent.agents.generation import Decoding
from stepagent.training import run
from stepagent.training.config import LoraSettings, SamplerConfig
from stepagent.training.policy import Policy
from stepagent.training.sampler import engine as engine_module
from stepagent.training.sampler import fleet as fleet_module
from stepagent.training.sampler.fleet import NoEngine
from stepagent.training.sampler.interface import Job
from stepagent.training.sampler.local import LocalSampler
from stepagent.training.sampler.version import SamplerError, digest, prefix_of
from stepagent.training.sampler.vllm import States, VllmSampler, serve_command
from stepagent.training.trees.sampling import Sampling
from tests.servers import running
from tests.training.sampler.runs import losses, practised, scores
from tests.training.sampler.vllm_stub import VllmStub
from tests.training.toys import random_tree

PROBE = list(range(5, 30))
GREEDY = Sampling(1, Decoding(max_new_tokens=6), eos_ids={0})
DRAWN = Sampling(3, Decoding(1.0, 0.9, max_new_tokens=6), eos_ids={0})


@pytest.fixture
def base(policy, tmp_path):
    policy.save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapted(policy, base):
    """A policy with an adapter that changes what it says."""
    policy.config.lora = LoraSettings(r=4)
    policy = Policy.load(policy.config, base)
    _move(policy)
    return policy


def _move(policy):
    """As an update does."""
    with torch.no_grad():
        for number, weights in enumerate(p for p in policy.model.parameters() if p.requires_grad):
            torch.manual_seed(number)
            weights.add_(0.2 * torch.randn(weights.shape))


@pytest.fixture
def start(base, monkeypatch):
    """Starts a stub and returns it."""
    monkeypatch.setattr(fleet_module, "RETRY_SECONDS", 0.05)
    with contextlib.ExitStack() as stack:

        def start():
            stub = VllmStub(base)
            stack.enter_context(running(stub, monkeypatch))
            return stub

        yield start


@pytest.fixture
def make(tmp_path):
    """Makes a sampler of these stubs; what it reports is in `sampler.reports`."""
    samplers = []

    def make(*stubs, states=None, **options):
        options = {"timeout": 120.0, "patience": 120.0, "concurrency": 4} | options
        config = SamplerConfig(urls=[s.address for s in stubs], **options)
        reports = []
        states = states or States(longest=20, probe=PROBE)
        sampler = VllmSampler(config, str(tmp_path / "run"), states, reports.append)
        sampler.reports = reports
        samplers.append(sampler)
        return sampler

    yield make
    for sampler in samplers:
        sampler.close()


def _jobs(count=3):
    trees = [random_tree(seed, 3, []) for seed in range(count)]
    return [Job(tree, 7 + i) for i, tree in enumerate(trees)]


def _local(policy, sampling):
    sampler = LocalSampler()
    sampler.publish(policy)
    return list(sampler.draw(_jobs(), sampling))


# Versions ---------------------------------------------------------------------------------------


def test_an_adapter_gets_a_new_name_for_new_weights_and_the_old_one_is_unloaded(
    adapted, start, make, tmp_path
):
    stub = start()
    sampler = make(stub)
    first = sampler.publish(adapted)
    assert list(stub.adapters) == [first]
    assert list(sampler.draw(_jobs(), GREEDY)) == _local(adapted, GREEDY)
    assert sampler.publish(adapted) == first
    _move(adapted)
    second = sampler.publish(adapted)
    assert second != first
    assert list(stub.adapters) == [second]
    assert len(stub.calls("/v1/load_lora_adapter")) == 2, "nothing is loaded twice"
    folders = [p.name for p in (tmp_path / "run" / "published").iterdir() if p.is_dir()]
    assert folders == [second]
    assert list(sampler.draw(_jobs(), GREEDY)) == _local(adapted, GREEDY)


def test_full_weights_are_reloaded_in_place(policy, start, make):
    stub = start()
    sampler = make(stub)
    for _ in range(2):
        _move(policy)
        name = sampler.publish(policy)
        assert (stub.version, stub.is_paused) == (name, False)
        assert list(sampler.draw(_jobs(), GREEDY)) == _local(policy, GREEDY)
    paths = [path for path, _ in stub.seen]
    assert paths.count("/reset_prefix_cache") == paths.count("/collective_rpc") == 2


def test_a_name_is_the_weights_and_the_run(policy, base):
    before = digest(policy)
    assert digest(Policy.load(policy.config, base)) == before
    with torch.no_grad():
        policy.model.model.norm.weight[3] += 1e-6
    assert digest(policy) != before
    assert prefix_of("/a/x y") != prefix_of("/b/x y")
    assert prefix_of("/a/x y").startswith("x-y-")


# Replies ----------------------------------------------------------------------------------------


def test_each_state_and_k_has_a_seed_of_its_own_and_keeps_it(adapted, start, make):
    stub = start()
    sampler = make(stub)
    sampler.publish(adapted)
    drawn = list(sampler.draw(_jobs(), DRAWN))
    seeds = [body["sampling_params"].get("seed") for body in stub.calls("/inference/v1/generate")]
    assert len(set(seeds) - {None}) == 3 * 3 * 3
    again = make(stub, concurrency=1)
    again.publish(adapted)
    assert list(again.draw(_jobs(), DRAWN)) == drawn
    assert any(len(set(map(tuple, row))) > 1 for replies in drawn for row in replies)


def test_a_reply_is_cut_where_the_trainer_says(policy, start, make):
    """Whatever an engine gives behind it."""
    sampler = make(start())
    sampler.publish(policy)
    full = next(iter(sampler.draw(_jobs(1), GREEDY)))[0][0]
    second = Sampling(1, GREEDY.decoding, {0}, stopped=lambda ids: len(ids) == 2)
    assert next(iter(sampler.draw(_jobs(1), second)))[0][0] == full[:2]


def test_engines_share_the_load_and_a_trajectory_stays_at_one(adapted, start, make):
    stubs = [start(), start()]
    sampler = make(*stubs, concurrency=2)
    sampler.publish(adapted)
    assert list(sampler.draw(_jobs(), GREEDY)) == _local(adapted, GREEDY)
    prompts = [
        {tuple(body["token_ids"]) for body in stub.calls("/inference/v1/generate")} - {tuple(PROBE)}
        for stub in stubs
    ]
    for job in _jobs():
        states = {tuple(job.encoded.state(i)) for i in range(3)}
        assert any(states <= asked for asked in prompts)
    assert all(prompts), "both were asked"


# Engines that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_an_engine_that_dies_in_mid_practice_is_taken_up_again(kind, policy, adapted, start, make):
    """Its weights are those that it was started with, or its adapters gone: neither may answer."""
    chosen = adapted if kind == "adapter" else policy
    _move(chosen)
    stub = start()
    sampler = make(stub, concurrency=2)
    sampler.publish(chosen)
    stub.dies_after = 4
    drawn = sampler.draw(_jobs(), GREEDY)
    rows = [next(drawn)]
    stub.restart()
    rows += drawn
    assert rows == _local(chosen, GREEDY)
    assert any("is away (status 502)" in line for line in sampler.reports)
    assert any("serves run-" in line for line in sampler.reports)


def test_the_others_do_the_work_of_one_that_is_dead(adapted, start, make):
    one, other = start(), start()
    sampler = make(one, other)
    sampler.publish(adapted)
    one.is_dead = True
    assert list(sampler.draw(_jobs(), GREEDY)) == _local(adapted, GREEDY)


def test_an_engine_that_hangs_is_out(adapted, start, make):
    one, other = start(), start()
    sampler = make(one, other, timeout=15.0)
    sampler.publish(adapted)
    one.delay = 60.0
    assert list(sampler.draw(_jobs(), GREEDY)) == _local(adapted, GREEDY)
    assert any("has not answered within 15 s" in line for line in sampler.reports)


def test_somebody_elses_version_is_refused(policy, start, make):
    """Two runs that publish full weights to one engine would practise with each other's."""
    stub = start()
    sampler = make(stub, patience=0.5)
    sampler.publish(policy)
    stub.on_update_weight_version = lambda body: (200, {"success": True})
    stub.version = "other-run-1"
    with pytest.raises(NoEngine, match="answered with other-run-1, not run-"):
        list(sampler.draw(_jobs(1), GREEDY))


def test_no_engine_stops_the_run_after_its_patience(adapted, start, make):
    stub = start()
    sampler = make(stub, patience=0.3)
    stub.is_dead = True
    with pytest.raises(NoEngine, match=r"no engine has served the policy for 0\.3 s .*away"):
        sampler.publish(adapted)
    stub.restart()
    sampler.publish(adapted)
    stub.is_dead = True
    with pytest.raises(NoEngine, match="same command again"):
        list(sampler.draw(_jobs(), GREEDY))


def test_no_server_at_all(adapted, make):
    class Nobody:
        address = "http://127.0.0.1:9"

    sampler = make(Nobody, patience=0.0)
    with pytest.raises(NoEngine, match="cannot be reached"):
        sampler.publish(adapted)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve /" in sampler.reports[0]
    assert sampler.reports[0].endswith("--enable-scale-out --enable-lora --max-lora-rank 8")


# Engines that cannot serve the policy -----------------------------------------------------------


def _with(**changes):
    def change(stub):
        for name, value in changes.items():
            setattr(stub, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(max_lora_rank=2), "rank 4 is greater.*a higher --max-lora-rank"),
        (_with(takes_adapters=False), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        (_with(max_model_len=24), "takes at most 24 tokens.*--max-model-len 25"),
        (lambda stub: _shake(stub.weights), "another model than the run's"),
        (_with(on_inference_v1_generate=lambda body: (403, {"error": "off"})), "refuses .off"),
        (_with(on_inference_v1_generate=lambda body: (200, {"choices": []})), "unlike vLLM"),
        (_with(on_inference_v1_generate=lambda body: (404, {"detail": "Not Found"})), "≥ 0.32"),
        (_with(on_v1_models=lambda body: (401, {"error": "key"})), "VLLM_API_KEY"),
    ],
)
def test_an_engine_that_cannot_serve_the_policy_is_known_before_training(
    change, message, adapted, start, make
):
    stub = start()
    change(stub)
    if message.startswith("another"):
        stub.on_v1_load_lora_adapter = lambda body: _load(stub, body["lora_name"])
    with pytest.raises(SamplerError, match=message):
        make(stub).publish(adapted)


def _shake(model):
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_()


def _load(stub, name):
    stub.adapters[name] = "", stub.weights
    return 200, b"Success"


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_folder_that_the_engine_does_not_see(kind, policy, adapted, start, make):
    stub = start()
    for name in ("on_v1_load_lora_adapter", "on_collective_rpc"):
        real = getattr(stub, name)
        setattr(stub, name, lambda body, real=real: real(_elsewhere(body)))
    chosen = adapted if kind == "adapter" else policy
    with pytest.raises(SamplerError, match="the same folder under the same path"):
        make(stub).publish(chosen)
    assert not stub.is_paused


def _elsewhere(body):
    return json.loads(json.dumps(body).replace("/published/", "/elsewhere/"))


def test_full_weights_need_a_server_that_takes_them(policy, start, make):
    stub = start()
    stub.takes_weights = False
    with pytest.raises(SamplerError, match="VLLM_SERVER_DEV_MODE=1"):
        make(stub).publish(policy)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("use_dora", True, "DoRA"),
        ("bias", "all", "bias: all"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("init_lora_weights", "pissa", "changes the base"),
    ],
)
def test_settings_that_vllm_cannot_load_are_named_without_asking_it(
    setting, value, message, adapted, make
):
    class Nobody:
        address = "http://127.0.0.1:9"

    setattr(adapted.model.peft_config["default"], setting, value)
    with pytest.raises(SamplerError, match=message):
        make(Nobody).publish(adapted)


def test_the_folder_cannot_be_written(adapted, start, make, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((SamplerError, OSError), match="file"):
        make(start(), shared=str(tmp_path / "file")).publish(adapted)


def test_the_key_goes_into_requests(monkeypatch, adapted, start, make):
    monkeypatch.setenv("VLLM_API_KEY", "secret-1")
    stub = start()
    sampler = make(stub)
    sampler.publish(adapted)
    assert {h.get("Authorization") for h in stub.headers} == {"Bearer secret-1"}
    assert "secret-1" not in " ".join(sampler.reports)


def test_the_command_for_full_weights(policy, base):
    command = serve_command(Policy.load(policy.config, base))
    assert command == f"VLLM_SERVER_DEV_MODE=1 vllm serve {base} --enable-scale-out"


# Runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_on_engines_is_the_run_of_the_trainer_alone(rank, config, start, tmp_path):
    """Greedy: the same practice, losses, episodes and scores; the engine dies on the way."""
    config.reflection.temperature, config.policy.lora.r = 0.0, rank
    config.policy.lora.alpha = 8
    run.run(config)
    local = practised(config), losses(config), scores(config)
    stub = start()
    stub.serve(Path(config.output) / "base")
    config.output = str(tmp_path / "engines")
    config.sampler = SamplerConfig(urls=[stub.address], concurrency=4)
    died = []

    def dies(body):
        if len(died) == 0 and len(stub.calls("/inference/v1/generate")) > 30:
            died.append(stub.restart())
            return 502, b""
        return VllmStub.on_inference_v1_generate(stub, body)

    stub.on_inference_v1_generate = dies
    run.run(config)
    assert died
    assert practised(config) == local[0]
    assert losses(config) == pytest.approx(local[1], abs=1e-3)
    assert scores(config) == local[2]
    folders = list((Path(config.output) / "published").glob("*/"))
    assert len(folders) <= 1, "earlier versions are deleted"


def test_a_run_goes_on_where_it_stopped_for_want_of_an_engine(config, start, tmp_path):
    config.reflection.temperature, config.reflection.iterations = 0.0, 1
    run.run(config)
    local = practised(config), losses(config)
    stub = start()
    stub.serve(Path(config.output) / "base")
    config.output = str(tmp_path / "engines")
    config.sampler = SamplerConfig(urls=[stub.address], concurrency=1, patience=0.2)
    config.evaluation.every_iteration = False
    stub.dies_after = 9
    with pytest.raises(NoEngine):
        run.run(config)
    assert 0 < len(practised(config)[0].splitlines()) < len(local[0][0].splitlines())
    stub.restart()
    other = start()  # at another address, which a run may have when it is taken up again
    other.serve(stub.base)
    config.sampler.urls = [other.address]
    run.run(config)
    assert (practised(config), losses(config)) == (local[0], pytest.approx(local[1], abs=1e-3))


def test_episodes_of_its_own_on_engines(config, start, tmp_path):
    """Greedy episodes of ETO, and the tokens that it learns from."""
    config.method, config.preference.iterations, config.rollouts.temperature = "eto", 1, 0.0
    run.run(config)
    played = (Path(config.output) / "rollouts" / "iteration-1-0.jsonl").read_text()
    stub = start()
    stub.serve(Path(config.output) / "base")
    config.output = str(tmp_path / "engines")
    config.sampler = SamplerConfig(urls=[stub.address])
    run.run(config)
    assert _steps(Path(config.output) / "rollouts" / "iteration-1-0.jsonl") == _steps_of(played)


def _steps(path):
    return _steps_of(path.read_text())


def _steps_of(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return sorted((line["task_id"], line["seed"], json.dumps(line["steps"])) for line in lines)


@pytest.mark.parametrize("urls", [["localhost:8000"], ["ftp://x"]])
def test_an_address_that_is_none(config, urls):
    config.sampler.urls = urls
    with pytest.raises(ValueError, match="http:// or https://"):
        run.check(config)


def test_requests_time_out(monkeypatch):
    def hangs(*args, **options):
        raise requests.Timeout

    monkeypatch.setattr(requests.Session, "request", hangs)
    with engine_module.session() as own, pytest.raises(engine_module.EngineGone, match="7 s"):
        engine_module.Engine("http://h:1/v1/", 7.0)._call(own, "GET", "/v1/models")
