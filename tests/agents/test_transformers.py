"""The transformers agent against the plain way: same replies, far fewer tokens read."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("torch")


from agents.plain import PlainGenerator
from agents.transformers import TransformersAgent
from envs.react import cut
from tests.agents.conftest import make_model, say, turn

SYSTEM = "Answer with a thought and an action. " * 12
OBSERVATIONS = [
    "You see a red apple on the table.",
    "The door is open.",
    "",
    "You are in the kitchen; on the stove stands a pot with water, and beside it lie a knife, "
    "two spoons, a thermometer and a lighter. The window is shut.",
    "Nothing happens.",
    "Räume: 厨房 🔥 and\nnew lines\n\nObservation: quoted",
]


def agent_for(model: Any, tokenizer: Any, **options: Any) -> TransformersAgent:
    return TransformersAgent(model, tokenizer, **{"max_new_tokens": 10, "batch_size": 4, **options})


def plain_for(model: Any, tokenizer: Any, **options: Any) -> TransformersAgent:
    """The same agent, made to call `generate` on every whole conversation."""
    agent = agent_for(model, tokenizer, **options)
    agent._generator = PlainGenerator(model, ends=agent._ends, stops=["\nObservation:"],
                                      tokenizer=tokenizer, batch_size=1)
    return agent


def play(agent: TransformersAgent, episodes: int = 6, seed: int = 3) -> dict[int, list[str]]:
    """Episodes of different lengths that join and leave the batch; the replies of each."""
    draw = random.Random(seed)
    left = {key: draw.randint(1, 4) for key in range(episodes)}
    talks = {key: say(f"Task {key}. {draw.choice(OBSERVATIONS)}", system=SYSTEM) for key in left}
    replies: dict[int, list[str]] = {key: [] for key in left}
    while left:
        # Up to five of the open episodes, in any order: more than there are slots.
        now = draw.sample(sorted(left), k=min(len(left), draw.randint(1, 5)))
        given = agent.act([turn(key, talks[key], seed=key) for key in now])
        for key, reply in zip(now, given, strict=True):
            replies[key].append(cut(reply))
            talks[key] += say("", cut(reply), draw.choice(OBSERVATIONS))[1:]
            talks[key][-2]["role"], talks[key][-1]["role"] = "assistant", "user"
            left[key] -= 1
            if not left[key]:
                del left[key]
                agent.forget(key)
    return replies


@pytest.mark.parametrize(("kind", "changes"), [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"attn_implementation": "eager"}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 24}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    ("qwen3", {}),
    ("gpt2", {}),
])
def test_same_replies_as_plain_generate(kind: str, changes: dict[str, Any], tokenizer: Any):
    model = make_model(kind, len(tokenizer), **changes)
    ours, plain = agent_for(model, tokenizer), plain_for(model, tokenizer)
    assert not ours.plain_because
    found, wanted = play(ours), play(plain)
    assert found == wanted
    assert len({reply for replies in found.values() for reply in replies}) > 10  # not all the same
    counted = ours.statistics()
    assert counted["tokens_generated"] == plain.statistics()["tokens_generated"]
    assert counted["tokens_kept"] + counted["tokens_read"] == plain.statistics()["tokens_read"]
    assert counted["tokens_read"] < plain.statistics()["tokens_read"] / 3


def test_chunks_and_growth_change_nothing(tokenizer: Any):
    model = make_model("llama", len(tokenizer))
    ours = agent_for(model, tokenizer)
    ours._generator._chunk, ours._generator._floor = 24, 8
    assert play(ours) == play(plain_for(model, tokenizer))
