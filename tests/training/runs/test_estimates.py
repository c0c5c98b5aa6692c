"""Estimates against numbers worked out by hand, and against what a backward pass keeps."""

import pytest
import torch

from stepagent.training.config import LoraSettings
from stepagent.training.policy import Policy
from stepagent.training.runs.estimates import Estimate, estimate


def test_all_weights_and_an_adapter(policy, tmp_path):
    count = sum(p.numel() for p in policy.model.parameters())
    vocabulary = len(policy.tokenizer)
    needs = estimate(policy, tokens=100, disk=7)
    assert needs.state == count * 4 + count * 12
    # 2 layers of width 32, with MLPs of 85, in float32; logits
    assert needs.activations == 100 * (2 * (9 * 32 + 4 * 85) * 4 + vocabulary * 12)
    policy.save(tmp_path)
    policy.config.lora, policy.config.dtype = LoraSettings(r=2), "bfloat16"
    policy.config.gradient_checkpointing = True
    adapted = Policy.load(policy.config, tmp_path)
    trained = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    needs = estimate(adapted, tokens=100, disk=7)
    assert needs.state == count * 2 + trained * 4 + trained * 12
    assert needs.activations == 100 * (2 * 32 * 2 + vocabulary * 12)


@pytest.mark.parametrize(("dtype", "rank"), [("float32", 0), ("bfloat16", 2), ("bfloat16", 0)])
def test_a_layer_is_about_what_its_backward_pass_keeps(policy, tmp_path, dtype, rank):
    policy.save(tmp_path)
    policy.config.lora, policy.config.dtype = LoraSettings(r=rank), dtype
    loaded = Policy.load(policy.config, tmp_path)
    model, tokens = loaded.model, 64
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=torch.ones((1, tokens), dtype=torch.long)).logits
    body = sum(storage.nbytes() for storage in kept.values())
    head = tokens * len(policy.tokenizer) * 12
    expected = estimate(loaded, tokens, disk=0).activations - head
    assert logits.requires_grad
    assert body == pytest.approx(expected, rel=0.2)


def test_the_line_that_is_printed():
    text = Estimate(state=14_500_000_000, activations=2_600_000_000, disk=900_000_000).text(10**12)
    assert text.startswith("needs about 17.1 GB of memory in an update (14.5 GB of weights")
    assert text.endswith("up to 900.0 MB on disk (1000.0 GB free)")
