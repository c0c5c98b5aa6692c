"""An adapter folded into its base."""

import pytest
import torch

from stepagent.agents import trained
from stepagent.agents.models import load_model, load_tokenizer
from stepagent.envs.react import PromptStyle
from stepagent.training import merge
from stepagent.training.config import LoraSettings
from stepagent.training.policy import Policy


@pytest.fixture
def adapter(policy, tmp_path):
    policy.save(tmp_path / "base")
    policy.config.lora = LoraSettings(r=4)
    adapted = Policy.load(policy.config, tmp_path / "base")
    with torch.no_grad():
        for weights in adapted.model.parameters():
            if weights.requires_grad:
                weights.add_(0.1)
    adapted.save(tmp_path / "adapter")
    return adapted


def test_a_merged_model_says_what_the_adapter_says(adapter, tmp_path):
    out = tmp_path / "merged"
    trained.write(tmp_path / "adapter", PromptStyle(thoughts=False), 9, {})
    assert merge.main([str(tmp_path / "adapter"), "--out", str(out), "--dtype", "float32"]) == 0
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    merged = load_model(out, "float32", "cpu")
    assert not hasattr(merged, "peft_config")
    expected = adapter.model.eval()(input_ids=ids).logits
    assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    assert load_tokenizer(out).chat_template == adapter.tokenizer.chat_template
    assert trained.options_of(str(out)) == trained.options_of(str(tmp_path / "adapter")) != {}
    with pytest.raises(ValueError, match="exists"):
        merge.merge(merge.Config(tmp_path / "adapter", out))


def test_what_holds_no_adapter(adapter, tmp_path, capsys):
    assert merge.main([str(tmp_path / "base"), "--out", str(tmp_path / "x")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
