"""The policy: what is trained, in which type, and that saving and loading lose nothing."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stepagent.agents.generation import Decoding, why_uncacheable
from stepagent.agents.models import ModelError
from stepagent.training.config import LoraSettings, PolicyConfig, ReflectionConfig, TinyConfig
from stepagent.training.policy import Policy
from stepagent.training.runs.validation import check_step_trees
from stepagent.training.trees.packing import pack
from stepagent.training.trees.sampling import Sampling, practice
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree

TEXTS = ["Thought: the lamp is dark.\nAction: open door", "You see a table and 12 apples."] * 4
CONVERSATION = [
    {"role": "system", "content": "You are in a house."},
    {"role": "user", "content": "You see a door."},
    {"role": "assistant", "content": "Thought: out.\nAction: open door"},
    {"role": "user", "content": "The door is open."},
    {"role": "assistant", "content": "Action: go"},
]


def config(**changes: object) -> PolicyConfig:
    tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=512)
    fixed = {"dtype": "float32", "device": "cpu", "max_new_tokens": 16, "tiny": tiny}
    return PolicyConfig(**{"model": "tiny", **fixed, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    Policy.tiny(config(), TEXTS, seed=0).save(path)
    return path


def tree_of(policy: Policy) -> StepTree:
    encoded = policy.codec.encode(CONVERSATION)
    branches = (
        Branch(0, tuple(policy.codec.reply_ids("Action: wait"))),
        Branch(1, tuple(policy.codec.reply_ids("Action: look"))),
    )
    return StepTree(tuple(encoded.ids), tuple(encoded.replies), branches)


def log_probs(policy: Policy) -> torch.Tensor:
    return score_trees(policy.model, pack([tree_of(policy)], policy.device)).log_probs


def move(policy: Policy) -> None:
    """Another value for every trained weight."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def test_a_saved_policy_comes_back(saved: Path, tmp_path: Path) -> None:
    policy = Policy.load(config(), saved)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in policy.model.parameters())
    before = log_probs(policy).detach()
    move(policy)
    assert not torch.allclose(log_probs(policy), before)
    policy.save(tmp_path / "moved")
    expected = log_probs(policy).detach()
    again = Policy.load(config(), tmp_path / "moved")
    torch.testing.assert_close(log_probs(again), expected, atol=0, rtol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "moved", use_safetensors=True)
    assert plain.num_parameters() == policy.model.num_parameters()
    policy.load_weights(saved)
    torch.testing.assert_close(log_probs(policy), before, atol=0, rtol=0)


def test_same_seed_same_weights() -> None:
    one, two, other = (Policy.tiny(config(), TEXTS, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(log_probs(one), log_probs(two), atol=0, rtol=0)
    assert not torch.allclose(log_probs(one), log_probs(other))


def test_lora_trains_float32_on_a_bfloat16_base(saved: Path, tmp_path: Path) -> None:
    settings = config(dtype="bfloat16", lora=LoraSettings(r=4, alpha=8))
    policy = Policy.load(settings, saved)
    kinds = {(p.requires_grad, p.dtype) for p in policy.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    before = log_probs(policy).detach()
    log_probs(policy).sum().backward()
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)

    move(policy)
    moved = log_probs(policy).detach()
    assert not torch.allclose(moved, before)
    policy.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    fresh = Policy.load(settings, saved)
    fresh.load_weights(tmp_path / "adapter")
    torch.testing.assert_close(log_probs(fresh), moved, atol=0, rtol=0)


def test_all_weights_are_computed_with_in_bfloat16_and_kept_in_float32(saved: Path) -> None:
    """Autocast over float32 masters: in step trees as one by one, in practice, in a copy."""
    exact, policy = (Policy.load(config(dtype=d), saved) for d in ("float32", "bfloat16"))
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    difference = (log_probs(policy) - log_probs(exact)).abs()
    assert 0 < difference.max() < 0.1
    tree = tree_of(policy)
    state, reply = tree.state(1), tree.expert(1)
    ids = torch.tensor([[*state, *reply]])
    logits = policy.model(input_ids=ids, use_cache=False).logits
    assert logits.dtype == torch.bfloat16
    alone = logits[0].float().log_softmax(-1)[torch.arange(len(state) - 1, ids.shape[1] - 1), reply]
    assert float(log_probs(policy)[1].detach()) == pytest.approx(
        float(alone.sum().detach()), abs=0.1
    )
    log_probs(policy).sum().backward()
    assert {p.grad.dtype for p in policy.model.parameters()} == {torch.float32}
    sampling = Sampling(2, Decoding(1.0, 1.0, 4), policy.eos_ids)
    assert len(practice(policy.model, tree, sampling, seed=0)) == 2
    other = copy.deepcopy(policy.model)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert other(input_ids=ids).logits.abs().max() == 0
    assert policy.model(input_ids=ids).logits.abs().max() > 0
    assert not why_uncacheable(policy.model.eval())
    with pytest.raises(ValueError, match="input_ids"):
        policy.model()
    assert not torch.is_autocast_enabled("cpu"), "an error leaves autocast, too"


def test_bfloat16_outlives_trls_trainers(saved: Path) -> None:
    """They replace the model's forward, which is taken away behind them."""
    policy = Policy.load(config(dtype="bfloat16"), saved)
    vars(policy.model).pop("forward", None)
    assert policy.model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16


def test_a_saved_adapter_is_trained_on(saved: Path, tmp_path: Path) -> None:
    policy = Policy.load(config(lora=LoraSettings(r=4)), saved)
    move(policy)
    expected = log_probs(policy).detach()
    policy.save(tmp_path / "adapter")
    again = Policy.load(config(), tmp_path / "adapter")
    assert again.has_adapter
    torch.testing.assert_close(log_probs(again), expected, atol=1e-6, rtol=0)
    trained = {name for name, p in again.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_changes_no_gradient(saved: Path, rank: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        settings = config(lora=LoraSettings(r=rank), gradient_checkpointing=checkpointing)
        torch.manual_seed(0)
        policy = Policy.load(settings, saved)
        move(policy)
        policy.model.train()
        log_probs(policy).sum().backward()
        grads = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


def test_practice_ends_at_the_end_of_turn(saved: Path) -> None:
    policy = Policy.load(config(), saved)
    encoded = policy.codec.encode(CONVERSATION)
    sampling = Sampling(30, Decoding(1.0, 1.0, 30), policy.eos_ids)
    drawn = practice(policy.model, encoded, sampling, seed=0)
    assert policy.codec.end_of_turn_id in policy.eos_ids
    endings = [ids[-1] in policy.eos_ids for replies in drawn for ids in replies]
    assert any(endings), "a uniform policy says the end of turn once in about 300 tokens"
    for replies in drawn:
        for ids in replies:
            assert not set(ids[:-1]) & policy.eos_ids


def test_says_whether_step_trees_can_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.load(config(), saved)
    assert policy.no_step_trees == ""
    assert policy.model.config._attn_implementation == "step_tree"
    monkeypatch.setattr(type(policy.model), "_is_stateful", True, raising=False)
    recurrent = Policy.load(config(), saved)
    assert "recurrent state" in recurrent.no_step_trees
    with pytest.raises(ValueError, match="method implicit: LlamaForCausalLM cannot run step trees"):
        check_step_trees("implicit", recurrent, [], ReflectionConfig())


def test_figures_of_a_policy(saved: Path) -> None:
    whole = Policy.load(config(), saved)
    lora = Policy.load(config(lora=LoraSettings(r=2)), saved)
    assert whole.context == 512
    assert lora.saved_bytes() < whole.saved_bytes()
    assert "all weights" in whole.describe()
    assert "LoRA of rank 2" in lora.describe()


def test_what_cannot_be_trained_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Policy\.tiny"):
        Policy.load(config())
    with pytest.raises(ModelError, match="max_new_tokens = 512"):
        Policy.load(config(max_new_tokens=512), saved)
    policy = Policy.load(config(), saved)
    policy.tokenizer.chat_template = None
    policy.save(tmp_path / "mute")
    (tmp_path / "mute" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has no chat template"):
        Policy.load(config(), tmp_path / "mute")


@pytest.mark.slow
def test_smollm2_ends_its_turns_with_its_end_of_text() -> None:
    try:
        policy = Policy.load(config(model="smollm2", lora=LoraSettings(r=2)))
    except ModelError as error:
        pytest.skip(str(error))
    ends = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.codec.end_of_turn_id == ends
    assert policy.eos_ids == {ends}
    assert policy.codec.has_system_role
    assert policy.context == 8192
    assert torch.isfinite(log_probs(policy)).all()
