"""The benchmark of a template that drops thoughts: fewer tokens, the same loss."""

import pytest

from stepagent.training.benchmarks.rewritten_history import encode, rows
from tests.agents.tiny_models import make_model, make_tokenizer
from tests.training.test_rewritten_history import PROMPT, trajectories


def test_both_sides_have_the_same_loss():
    tokenizer = make_tokenizer()
    trajectory = trajectories("Qwen3", steps=3)[0]
    encoded = encode(trajectory, tokenizer, PROMPT)
    assert len(encoded.joins) == 2
    speed, loss = rows(make_model("llama", len(tokenizer)), encoded, 1)
    plain = sum(len(encoded.alone(step).ids) for step in range(3))
    assert f"3 steps ({len(encoded.ids)} tokens packed, {plain} plain)" in speed.name
    assert len(encoded.ids) < plain / 2
    assert loss.ours == pytest.approx(loss.baseline, abs=1e-4)
