"""Estimates against numbers worked out by hand."""

from stepagent.training.config import LoraSettings
from stepagent.training.policy import Policy
from stepagent.training.runs.estimates import Estimate, estimate


def test_all_weights_and_an_adapter(policy, tmp_path):
    count = sum(p.numel() for p in policy.model.parameters())
    vocabulary = len(policy.tokenizer)
    needs = estimate(policy, tokens=100, disk=7)
    assert needs.state == count * 4 + count * 12
    # 2 layers of width 32 in float32, 16 tensors each; logits
    assert needs.activations == 100 * (2 * 32 * 4 * 16 + vocabulary * 12)
    policy.save(tmp_path)
    policy.config.lora, policy.config.dtype = LoraSettings(r=2), "bfloat16"
    policy.config.gradient_checkpointing = True
    adapted = Policy.load(policy.config, tmp_path)
    trained = sum(p.numel() for p in adapted.model.parameters() if p.requires_grad)
    needs = estimate(adapted, tokens=100, disk=7)
    assert needs.state == count * 2 + trained * 4 + trained * 12
    assert needs.activations == 100 * (2 * 32 * 2 + vocabulary * 12)


def test_the_line_that_is_printed():
    text = Estimate(state=14_500_000_000, activations=2_600_000_000, disk=900_000_000).text(10**12)
    assert text.startswith("needs about 17.1 GB of memory in an update (14.5 GB of weights")
    assert text.endswith("up to 900.0 MB on disk (1000.0 GB free)")
