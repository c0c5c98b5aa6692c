"""Which models run step trees, and how far."""

from __future__ import annotations

import pytest
import torch

from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from tests.training.toys import SHAPE, TREES, plain_scores, tiny_model


def test_models_that_mix_siblings_are_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM, Qwen3NextConfig, Qwen3NextForCausalLM

    packed = pack([TREES["no branch"]])
    mamba = MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM cannot run step trees"):
        score_trees(mamba, packed)
    with torch.device("meta"):
        hybrid = Qwen3NextForCausalLM(Qwen3NextConfig(num_hidden_layers=4, num_experts=2))
    with pytest.raises(ValueError, match="linear_attention"):
        score_trees(hybrid, packed)


def test_mixed_windows_run_only_up_to_the_window() -> None:
    kinds = ["full_attention", "sliding_attention"]
    changes = {"use_sliding_window": True, "layer_types": kinds}
    tree = TREES["first and last step"]
    model = tiny_model("qwen3", sliding_window=tree.longest_path, **changes)
    expected = plain_scores(model, tree)[0]
    scores = score_trees(model, pack([tree])).log_probs
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    model = tiny_model("qwen3", sliding_window=tree.longest_path - 1, **changes)
    with pytest.raises(ValueError, match="up to"):
        score_trees(model, pack([tree]))


def test_positions_that_stretch_with_the_text_are_refused() -> None:
    tree = TREES["first and last step"]
    size = SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * size}
    rope |= {"short_factor": [1.0] * size, "factor": 4.0}
    limit = tree.longest_path
    model = tiny_model(rope_parameters={**rope, "original_max_position_embeddings": limit})
    expected = plain_scores(model, tree)[0]
    torch.testing.assert_close(
        score_trees(model, pack([tree])).log_probs, expected, atol=1e-4, rtol=0
    )
    model = tiny_model(rope_parameters={**rope, "original_max_position_embeddings": limit - 1})
    with pytest.raises(ValueError, match="longrope"):
        score_trees(model, pack([tree]))
