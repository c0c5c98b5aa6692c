"""Pre-training on environment text: its walks, its resume, its measures."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stepagent.agents.chat import ChatCodec
from stepagent.envs import make
from stepagent.training.config import TinyConfig
from stepagent.training.pretrain import corpus, measure
from stepagent.training.pretrain.command import Config, pretrain
from stepagent.training.pretrain.induction import ROPE_THETA, start_with_induction
from stepagent.training.pretrain.optimise import Optimiser, _end_with_copies, train
from stepagent.training.tiny import build_model, build_tokenizer

SHAPE = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=400, context=512)
HOTPOT = "stepagent/HotpotQA-v0"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["go to desk 1", "You arrive at desk 1."], 300, 512)


def test_a_walk_plays_train_tasks_and_names_no_expert(tmp_path):
    parts = corpus.collect({HOTPOT: 0.01}, tmp_path, 0, lambda *_: None)
    env = make(HOTPOT, split="train")
    questions = [messages[0]["content"] for messages in corpus.documents(parts["HotpotQA-v0"][0])]
    first = {env.reset(seed=0, options={"task_id": task})[0] for task in env.tasks}
    assert questions
    plain = [q for q in questions if q.startswith("Question:")]
    assert set(plain) <= first


def test_a_killed_collection_resumes_with_the_same_text(tmp_path):
    once = corpus.collect({HOTPOT: 0.15}, tmp_path / "once", 0, lambda *_: None)

    def kill(name, size, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.collect({HOTPOT: 0.15}, tmp_path / "twice", 0, kill)
    twice = corpus.collect({HOTPOT: 0.15}, tmp_path / "twice", 0, lambda *_: None)
    assert len(once["HotpotQA-v0"]) > 1
    for a, b in zip(once["HotpotQA-v0"], twice["HotpotQA-v0"], strict=True):
        assert a.read_text() == b.read_text()


def test_sigterm_ends_a_collection(tmp_path):
    """Also while the walker waits for the simulator, which it does most of the time."""
    output = tmp_path / "run"
    words = ["--output", str(output), "--sources", '{"stepagent/ScienceWorld-v0": 50.0}']
    command = [sys.executable, "-m", "stepagent.training.pretrain", *words]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not any(c.name() == "java" for c in psutil.Process(process.pid).children(True)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3.0)
        process.terminate()
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert "the same command continues from here" in (tmp_path / "log").read_text()
    assert not list((output / "corpus").glob("ScienceWorld-v0/*")), "no part is half written"


def test_rare_endings():
    """Actions that end an episode are drawn for mistakes only."""
    walker, rng = corpus.Walker(mistakes=0.05), np.random.default_rng(0)
    drawn = [walker._draw(["finish[a]", "search[b]", "search[c]"], rng) for _ in range(400)]
    assert 0 < sum(action == "finish[a]" for action in drawn) < 40
    assert {"search[b]", "search[c]"} <= set(drawn)


@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_killed_training_ends_with_the_same_weights(tokenizer, tmp_path, killed_after):
    tokens = np.random.default_rng(0).integers(10, len(tokenizer), 500).astype(np.uint16)
    config = Optimiser(tokens=6 * 2 * 32 / 1e6, sequence=32, batch_size=2, checkpoint_seconds=0.0)

    def run(folder, stop_after=0):
        model = build_model(SHAPE, tokenizer, seed=0)

        def on_update(done, figures):
            if done == stop_after:
                raise KeyboardInterrupt

        try:
            train(model, tokens, config, folder, on_update)
        except KeyboardInterrupt:
            return None
        return model.state_dict()

    whole = run(tmp_path / "once")
    assert run(tmp_path / "twice", killed_after) is None
    again = run(tmp_path / "twice")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_sequences_end_with_rows_that_repeat():
    config = Optimiser(sequence=40, batch_size=2, copying=8)
    ids, text = torch.zeros(2, 41, dtype=torch.int64), 0
    lengths = set()
    for update in range(30):
        changed = ids.clone()
        learned = _end_with_copies(changed, config, update, 400)
        for sequence, mask in zip(changed, learned, strict=True):
            length = int((sequence != text).sum()) // 2
            row, repetition = sequence[-2 * length :].split(length)
            assert row.equal(repetition)
            assert row.min() >= 50
            assert mask.tolist() == [True] * (41 - 2 * length) + [False] * (length + 1) + [True] * (
                length - 1
            )
            lengths.add(length)
    assert lengths == set(range(1, 9))
    again = ids.clone()
    _end_with_copies(again, config, 29, 400)
    assert again.equal(changed), "a resumed training reads the same rows"


def test_too_little_text_is_said(tokenizer, tmp_path):
    model = build_model(SHAPE, tokenizer, seed=0)
    with pytest.raises(ValueError, match="the corpus has 10 tokens, a sequence 1024"):
        train(model, np.zeros(10, np.uint16), Optimiser(), tmp_path, lambda *_: None)


def test_which_tokens_are_observations(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "cd"},
    ]
    ids = torch.tensor(ChatCodec(tokenizer).encode(messages).ids[:-1])
    counted = measure._observations(ids, tokenizer)
    assert tokenizer.decode(ids[counted]) == "cd<|end|>"


def test_copying_is_measured_by_what_follows():
    class Copies:
        """Predicts the token that followed the present one when it last occurred."""

        config = type("config", (), {"vocab_size": 50_000})

        def __call__(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 50_000)
            for row, ids in enumerate(input_ids.tolist()):
                seen = {}
                for at, token in enumerate(ids):
                    logits[row, at, seen.get(token, 0)] = 1.0
                    if at + 1 < len(ids):
                        seen[token] = ids[at + 1]
            return type("output", (), {"logits": logits})

    assert measure.copying_accuracy(Copies(), lengths=(8,))[8] > 0.9


def test_from_walks_to_a_model_that_loads(tmp_path):
    config = Config(
        output=str(tmp_path / "run"),
        sources={HOTPOT: 0.1},
        shape=SHAPE,
        optimiser=Optimiser(tokens=0.004, sequence=64, batch_size=4),
    )
    folder = pretrain(config, Console(quiet=True))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ChatCodec(tokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert "HotpotQA-v0" in (folder / "README.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert results["sources"]["HotpotQA-v0"]["tokens"] > 0
    assert str(tmp_path) not in (folder / "config.yaml").read_text()
    config.seed = 1
    with pytest.raises(ValueError, match="of another pre-training"):
        pretrain(config, Console(quiet=True))


def llama(layers):
    shape = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 4}
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA}
    config = LlamaConfig(vocab_size=800, num_hidden_layers=layers, **shape, rope_parameters=rope)
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


def test_it_begins_as_a_model_that_copies():
    model = llama(layers=2)
    assert measure.copying_accuracy(model, [64])[64] < 0.01
    start_with_induction(model)
    assert measure.copying_accuracy(model, [64])[64] > 0.2  # 0.76 at nano's width


def test_what_copies_goes_on_copying(tmp_path):
    """Without rows that repeat, the first updates on other text unlearn it."""
    text = np.random.default_rng(0).integers(100, 120, 5000).astype(np.uint16)
    accuracies = []
    for copying in (0, 32):
        model = llama(layers=2)
        start_with_induction(model)
        size = {"tokens": 0.08, "sequence": 128, "batch_size": 4}
        schedule = Optimiser(**size, learning_rate=3e-4, copying=copying)
        train(model, text, schedule, tmp_path / str(copying), lambda *_: None)
        accuracies.append(measure.copying_accuracy(model, [64])[64])
    assert accuracies[0] < 0.1 < 0.2 < accuracies[1], accuracies


def test_what_copies_needs_two_layers():
    with pytest.raises(ValueError, match="two layers"):
        start_with_induction(llama(layers=1))
