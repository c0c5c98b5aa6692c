"""The small Llama from scratch: same weights from the same seed, and a head start at copying."""

import torch

from stepagent.training import tiny
from stepagent.training.config import TinyConfig
from stepagent.training.tiny import build_model, build_tokenizer

CONFIG = TinyConfig(hidden_size=64, layers=2, heads=4, context=128)
TOKENIZER = build_tokenizer(["an orange box"], 300, 128)


def test_the_seed_decides_the_weights():
    one, same, other = (build_model(CONFIG, TOKENIZER, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_names_are_the_same_tokens_in_brackets():
    texts = ["Where is Rome? I search[Rome] and find[ Rome ] or [[x], [\u00e9 ["] * 3
    tokenizer = build_tokenizer(texts, 400, 128)
    rome = tokenizer(" Rome")["input_ids"]
    assert tokenizer("search[Rome")["input_ids"][-len(rome) :] == rome
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"]) == texts[0]


def seen_over_unseen() -> float:
    """By how much an untrained model prefers tokens it has seen to others, in deviations."""
    preferences = []
    for seed in range(8):
        model = build_model(CONFIG, TOKENIZER, seed).eval()
        ids = torch.randperm(len(TOKENIZER), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            logits = model(input_ids=ids[None, :20]).logits[0, -1]
        seen, unseen = logits[ids[:19]], logits[ids[20:]]  # the last one, at hand, left out
        preferences.append(float((seen.mean() - unseen.mean()) / unseen.std()))
    return sum(preferences) / len(preferences)


def test_untrained_it_prefers_what_it_has_seen(monkeypatch):
    copying = seen_over_unseen()
    monkeypatch.setattr(tiny, "start_copying", lambda model: None)
    assert copying > 0.2 > seen_over_unseen()
