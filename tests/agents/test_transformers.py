"""The transformers agent against naive generation: same replies, far fewer tokens read."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from stepagent.agents import models, packed_attention
from stepagent.agents.core import ModelReply
from stepagent.agents.generation import (
    Decoding,
    _probe,
    can_be_packed,
    choose,
    why_uncacheable,
)
from stepagent.agents.naive_generation import NaiveGenerator
from stepagent.agents.transformers import TransformersAgent
from stepagent.envs.react import cut, parse
from stepagent.training.policy import compute_in_bfloat16
from tests.agents.conversations import say, turn
from tests.agents.tiny_models import TEMPLATE, make_model

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


def naive_for(model: Any, tokenizer: Any, **options: Any) -> TransformersAgent:
    """The same agent, made to call `generate` on every entire conversation."""
    agent = agent_for(model, tokenizer, **options)
    agent._generator = NaiveGenerator(
        model, ends=agent._ends, stops=["\nObservation:"], tokenizer=tokenizer, batch_size=1
    )
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
        answers = agent.act([turn(key, talks[key], seed=key) for key in now])
        for key, reply in zip(now, answers, strict=True):
            replies[key].append(cut(reply))
            talks[key] += say("", cut(reply), draw.choice(OBSERVATIONS))[1:]
            talks[key][-2]["role"], talks[key][-1]["role"] = "assistant", "user"
            left[key] -= 1
            if not left[key]:
                del left[key]
                agent.forget(key)
    return replies


PLAIN = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": None}),
    ("qwen3", {}),
    ("gpt2", {}),
]
PADDED = [
    ("llama", {"attn_implementation": "eager"}),
    ("mistral", {"sliding_window": 24}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
]


@pytest.mark.parametrize(
    ("kind", "changes", "packed"),
    [*[(*p, True) for p in PLAIN], *[(*p, False) for p in (*PLAIN, *PADDED)]],
)
def test_same_replies_as_naive_generation(
    kind: str, changes: dict[str, Any], packed: bool, tokenizer: Any
):
    model = make_model(kind, len(tokenizer), **changes)
    agent, naive = agent_for(model, tokenizer), naive_for(model, tokenizer)
    assert not agent.why_uncached
    assert agent._generator.packed == ((kind, changes) in PLAIN)
    agent._generator.packed = packed
    replies = play(agent)
    assert replies == play(naive)
    assert len({reply for said in replies.values() for reply in said}) > 10  # not all the same
    counted = agent.statistics()
    assert counted["tokens_generated"] == naive.statistics()["tokens_generated"]
    assert counted["tokens_kept"] + counted["tokens_read"] == naive.statistics()["tokens_read"]
    assert counted["tokens_read"] < naive.statistics()["tokens_read"] / 3


def test_chunks_and_growth_change_nothing(tokenizer: Any):
    model = make_model("llama", len(tokenizer))
    agent = agent_for(model, tokenizer)
    agent._generator._chunk, agent._generator._floor = 24, 8
    assert play(agent) == play(naive_for(model, tokenizer))


def stream(agent: TransformersAgent, episodes: int = 9, seed: int = 5) -> dict[int, list[str]]:
    """Episodes that join whenever they come, while others are being answered."""
    draw = random.Random(seed)
    left = {key: draw.randint(1, 4) for key in range(episodes)}
    talks = {key: say(f"Task {key}. {draw.choice(OBSERVATIONS)}", system=SYSTEM) for key in left}
    seen = {key: [draw.choice(OBSERVATIONS) for _ in range(4)] for key in left}
    replies: dict[int, list[str]] = {key: [] for key in left}
    coming = sorted(left)
    while coming or any(left.values()):
        while coming and draw.random() < 0.4:
            key = coming.pop(0)
            agent.submit([turn(key, talks[key], seed=key)])
        for key, reply in agent.poll():
            assert isinstance(reply, str)
            replies[key].append(cut(reply))
            left[key] -= 1
            if left[key]:
                talks[key] += say("", cut(reply), seen[key][left[key]])[1:]
                coming.insert(draw.randint(0, len(coming)), key)
            else:
                agent.forget(key)
    return replies


@pytest.mark.parametrize(
    ("chunk", "floor"), [(2048, None), (24, None), (2048, 64), (24, 8), (2048, 100_000)]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_joining_in_the_middle_changes_no_reply(
    kind: str, chunk: int, floor: int | None, tokenizer: Any
):
    """Whatever the passes: packed (no floor); with padding one for each width, tiny chunks, or all
    in one (as a GPU likes it)."""
    model = make_model(kind, len(tokenizer))
    agent, naive = agent_for(model, tokenizer), naive_for(model, tokenizer)
    assert agent.streaming
    agent._generator._chunk, agent._generator.packed = chunk, floor is None
    agent._generator._floor = floor or 0
    replies = stream(agent)
    expected: dict[int, list[str]] = {}
    draw = random.Random(5)
    turns = {key: draw.randint(1, 4) for key in range(9)}
    talks = {key: say(f"Task {key}. {draw.choice(OBSERVATIONS)}", system=SYSTEM) for key in turns}
    seen = {key: [draw.choice(OBSERVATIONS) for _ in range(4)] for key in turns}
    for key, number in turns.items():
        expected[key] = []
        for left in range(number - 1, -1, -1):
            (reply,) = naive.act([turn(key, talks[key], seed=key)])
            expected[key].append(cut(reply))
            talks[key] += say("", cut(reply), seen[key][left])[1:]
    assert replies == expected
    assert agent._generator._active == agent._generator._queue == []


def test_a_forgotten_turn_is_not_answered(llama: Any, tokenizer: Any):
    agent = agent_for(llama, tokenizer, batch_size=2)
    agent.submit([turn(key, say(f"Number {key}.", system=SYSTEM)) for key in range(3)])
    agent.poll()
    agent.forget(0)
    agent.forget(2)
    replies: dict[Any, Any] = {}
    while 1 not in replies:
        replies |= dict(agent.poll())
    assert set(replies) == {1}
    assert agent.poll() == []


# The cache --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tokenizer: Any) -> Any:
    return make_model("llama", len(tokenizer))


def test_a_shared_beginning_is_read_once(llama: Any, tokenizer: Any):
    agent = agent_for(llama, tokenizer, batch_size=8)
    talks = [say(f"Number {key}.", system=SYSTEM) for key in range(8)]
    size = len(agent.codec.encode(talks[0]).ids)
    agent.act([turn(key, talk) for key, talk in enumerate(talks)])
    counted = agent.statistics()
    assert counted["tokens_read"] < size + 7 * 30
    assert counted["tokens_kept"] > 7 * (size - 30)
    for key in range(8):
        agent.forget(key)
    agent.act([turn("next", say("Another.", system=SYSTEM))])  # a freed slot still holds it
    assert agent.statistics()["tokens_read"] - counted["tokens_read"] < 30


def test_memory_stays_flat_over_many_episodes(llama: Any, tokenizer: Any):
    agent = agent_for(llama, tokenizer, batch_size=3, max_new_tokens=4)
    cache = agent._generator.cache

    def held() -> tuple[int, int, int]:
        tensors = [*cache._keys, *cache._values]
        return sum(t.numel() for t in tensors), len(cache._owner), cache._tokens.size

    sizes = []
    for key in range(40):
        talk = say(f"Task {key}.", system=SYSTEM)
        for _ in range(3):
            (reply,) = agent.act([turn(key, talk)])
            talk = [*talk, *say("-", reply, "Go on.")[1:]]
        if key % 3:
            agent.forget(key)  # some are never forgotten: their slots are taken over
        sizes.append(held())
    assert sizes[-1] == sizes[9]
    assert sizes[-1][1] == 3
    agent.reset()
    assert held() == (0, 0, 0)


def test_forgotten_and_unknown_keys(llama: Any, tokenizer: Any):
    agent = agent_for(llama, tokenizer)
    agent.forget("never seen")
    agent.act([turn("a", say("x"))])
    agent.forget("a")
    agent.forget("a")
    assert agent._generator.cache._owner.count(None) == len(agent._generator.cache._owner)


def test_more_turns_than_slots(llama: Any, tokenizer: Any):
    talks = [say(f"Number {key}.", system=SYSTEM) for key in range(7)]
    turns = [turn(key, talk) for key, talk in enumerate(talks)]
    assert agent_for(llama, tokenizer, batch_size=2).act(turns) == naive_for(llama, tokenizer).act(
        turns
    )


def test_an_interrupted_act_leaves_a_sound_cache(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    agent = agent_for(llama, tokenizer)
    turns = [turn(key, say(f"Number {key}.", system=SYSTEM)) for key in range(4)]
    forward, left = agent.model.forward, [5]

    def failing(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(agent.model, "forward", failing)
    with pytest.raises(KeyboardInterrupt):
        agent.act(turns)
    monkeypatch.undo()
    assert agent.act(turns) == naive_for(llama, tokenizer).act(turns)


@pytest.mark.parametrize("change", ["optimizer", "loading"])
def test_caches_are_dropped_when_the_weights_change(tokenizer: Any, change: str):
    model = make_model("llama", len(tokenizer))
    agent = agent_for(model, tokenizer)
    turns = [turn("a", say("Look.", system=SYSTEM))]
    before, mark = agent.act(turns), agent.fingerprint()["weights"]
    if change == "optimizer":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.3)
        model(input_ids=torch.tensor([[1, 2, 3]])).logits[..., :5].sum().backward()
        optimizer.step()
    else:
        other = make_model("llama", len(tokenizer), seed=9)
        model.load_state_dict(other.state_dict())
    assert agent.act(turns) == naive_for(model, tokenizer).act(turns) != before
    assert agent.fingerprint()["weights"] != mark
    read = agent.statistics()["tokens_read"]
    agent.act(turns)
    assert agent.statistics()["tokens_read"] == read + 1  # and they are kept again from then on


def test_a_policy_in_training_stays_in_training(tokenizer: Any):
    model = make_model("llama", len(tokenizer), attention_dropout=0.5).train()
    agent = agent_for(model, tokenizer)
    turns = [turn("a", say("Look.", system=SYSTEM))]
    first = agent.act(turns)
    agent.reset()
    assert agent.act(turns) == first
    assert model.training
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()  # and can be trained on


# Ends of replies, sampling ----------------------------------------------------------------------


class Parrot:
    """Makes a model generate a fixed text, whatever the prompt: only its logits are replaced."""

    def __init__(self, agent: TransformersAgent, text: str, monkeypatch: pytest.MonkeyPatch):
        ids = agent.codec.reply_ids(text)
        steps: dict[int, int] = {}

        def say_next(logits: Any, decoding: Any, draws: Any) -> list[int]:
            n = steps["n"] = steps.get("n", -1) + 1
            return [ids[min(n, len(ids) - 1)]] * len(logits)

        monkeypatch.setattr("stepagent.agents.generation.choose", say_next)


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Action: go", "Action: go"),
        ("Action: go\nObservation: you go", "Action: go\nObservation:"),
        ("Observation: first: it goes", "Observation: first: it goes"),
    ],
)
def test_where_replies_end(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, text: str, reply: str
):
    agent = agent_for(llama, tokenizer, max_new_tokens=60)
    Parrot(agent, text, monkeypatch)
    assert agent.act([turn("a", say("Look."))]) == [reply]
    if "Action" in text:
        assert cut(reply) == "Action: go"


def test_every_end_token_counts(tokenizer: Any):
    model = make_model("llama", len(tokenizer))
    model.generation_config.eos_token_id = [5, 6]
    agent = agent_for(model, tokenizer)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert agent._ends == {0, 5, 6, end_of_turn}


def test_sampling_depends_on_seed_and_turn_alone(llama: Any, tokenizer: Any):
    hot = {"temperature": 1.5, "top_p": 0.95, "batch_size": 8}
    turns = [turn(key, say(f"Number {key % 3}.", system=SYSTEM), seed=key // 3) for key in range(9)]
    together = agent_for(llama, tokenizer, **hot).act(turns)
    alone = agent_for(llama, tokenizer, **hot)
    assert [alone.act([one])[0] for one in reversed(turns)] == together[::-1]
    assert len(set(together)) == 9  # other seeds, other replies
    assert agent_for(llama, tokenizer).act(turns[:1]) == agent_for(llama, tokenizer).act(turns[3:4])


def test_streamed_replies_are_those_of_a_batch(llama: Any, tokenizer: Any):
    turns = [turn(key, say("Number 1.", system=SYSTEM), seed=key) for key in range(3)]
    agent = agent_for(llama, tokenizer, temperature=1.5)
    batch = agent.act(turns)
    assert len(set(batch)) == 3
    agent.reset()
    agent.submit(turns)
    replies: dict[Any, Any] = {}
    while len(replies) < len(turns):
        replies |= dict(agent.poll())
    assert [replies[t.key] for t in turns] == batch


def test_sampled_tokens_follow_their_probabilities():
    chances = torch.tensor([0.5, 0.2, 0.0, 0.3])
    logits = chances.log().repeat(20000, 1)
    draws = torch.rand(20000, generator=torch.Generator().manual_seed(0)).tolist()
    for top_p, probabilities in [
        (1.0, [0.5, 0.2, 0.0, 0.3]),
        (0.7, [0.625, 0.0, 0.0, 0.375]),
        (0.1, [1.0, 0.0, 0.0, 0.0]),
    ]:
        tokens = choose(logits, Decoding(temperature=1.0, top_p=top_p), draws)
        shares = torch.bincount(torch.tensor(tokens), minlength=4) / 20000
        assert torch.allclose(shares, torch.tensor(probabilities), atol=0.012)
    cold = choose(logits[:200], Decoding(temperature=0.05), draws[:200])
    assert set(cold) == {0}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
    ],
)
def test_bad_decoding(llama: Any, tokenizer: Any, options: dict[str, Any]):
    with pytest.raises(ValueError, match="needs temperature"):
        TransformersAgent(llama, tokenizer, **options)


# Context ----------------------------------------------------------------------------------------


def test_long_conversations_are_cut_and_counted(llama: Any, tokenizer: Any):
    options = {"context": 600, "max_new_tokens": 10}
    agent, naive = agent_for(llama, tokenizer, **options), naive_for(llama, tokenizer, **options)
    talk = say("The task: find it.", system=SYSTEM)
    for number in range(16):
        turns = [turn("a", talk)]
        (reply,) = agent.act(turns)
        assert [reply] == naive.act(turns)
        talk = [*talk, *say("-", cut(reply), f"Observation {number}: " + "a door, " * 6)[1:]]
    cuts = agent.statistics()["prompts_cut"]
    assert 4 < cuts < 16
    assert cuts == naive.statistics()["prompts_cut"]
    assert agent._generator.cache.get_seq_length() <= 600


def test_a_context_that_is_too_short_is_reported_at_once(llama: Any, tokenizer: Any):
    opening = say("Look.", system=SYSTEM)
    agent = agent_for(llama, tokenizer, context=60)
    with pytest.raises(ValueError, match="system message alone"):
        agent.check(opening)
    with pytest.raises(ValueError, match="system message alone"):
        agent.act([turn("a", opening)])
    agent_for(llama, tokenizer).check(opening)
    with pytest.raises(models.ModelError, match="context of 8 tokens"):
        agent_for(llama, tokenizer, context=8)


# Models that are not attention alone ------------------------------------------------------------


def test_other_kinds_of_models_use_naive_generation(tokenizer: Any):
    model = make_model("mamba", len(tokenizer))
    agent = agent_for(model, tokenizer)
    assert "layers other than attention" in agent.why_uncached
    turns = [turn("a", say("Look."))]
    assert agent.act(turns) == agent.act(turns)
    hot = agent_for(model, tokenizer, temperature=1.0)
    assert hot.act(turns) == hot.act(turns)
    assert agent.statistics()["tokens_kept"] == 0


def test_the_check_notices_ignored_positions(llama: Any, monkeypatch: pytest.MonkeyPatch):
    assert why_uncacheable(llama) == ""
    forward = type(llama.model.rotary_emb).forward
    monkeypatch.setattr(
        type(llama.model.rotary_emb),
        "forward",
        lambda self, x, position_ids: forward(
            self, x, torch.arange(x.shape[1])[None].expand(len(x), -1)
        ),
    )
    assert "logits change" in why_uncacheable(llama)


def test_what_is_no_plain_attention_is_not_packed(llama: Any, monkeypatch: pytest.MonkeyPatch):
    assert can_be_packed(llama)
    usual = llama.config._attn_implementation
    monkeypatch.setattr(packed_attention.Packing, "attend", lambda *args: 1 / 0)
    assert not can_be_packed(llama)
    assert llama.config._attn_implementation == usual, "given back after an error, too"
    monkeypatch.undo()
    attend = packed_attention.Packing.attend
    monkeypatch.setattr(packed_attention.Packing, "attend", lambda *args: 1.01 * attend(*args))
    assert not can_be_packed(llama), "another result"
    some = [torch.ones(1, 1, 1, 1)] * 3
    for name in ("softcap", "s_aux"):
        with pytest.raises(ValueError, match="plain attention"):
            packed_attention.packed_attention(None, *some, None, **{name: some[0]})
    with pytest.raises(ValueError, match="did not hand it on"):
        packed_attention.packed_attention(None, *some, None)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("autocast", [True, False])
def test_packed_passes_in_16_bits(kind: str, autocast: bool, tokenizer: Any):
    """Logits as close to those of ordinary passes as padded ones are."""
    model = make_model(kind, len(tokenizer))
    if autocast:
        compute_in_bfloat16(model)
    else:
        model = model.bfloat16()
    packed, padded = (_probe(model, packed=p) for p in (True, False))
    assert packed < 2 * padded + 1e-2
    assert can_be_packed(model)


def test_changing_positions_are_refused(tokenizer: Any):
    model = make_model(
        "llama",
        len(tokenizer),
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    assert "dynamic" in why_uncacheable(model)


# Endings and thinking ---------------------------------------------------------------------------

HEAD = "{{ m['role'] }}\n{% endif %}"
REPLY = "<|im_start|>{% if m['role'] == 'assistant' %}assistant\n"
OPENED, SWITCHED = (
    TEMPLATE.replace(
        "<|im_start|>{{ m['role'] }}\n", REPLY + opening + "{% else %}" + HEAD
    ).replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n" + opening + "{% endif %}"
    )
    for opening in (
        "<think>\n",
        "{% if enable_thinking is defined and not enable_thinking %}"
        "<think>\n\n</think>\n\n{% endif %}",
    )
)


def test_a_reply_that_fills_its_limit_says_so(llama: Any, tokenizer: Any):
    agent = agent_for(llama, tokenizer, max_new_tokens=4)
    replies = agent.act([turn(i, say(text)) for i, text in enumerate(OBSERVATIONS)])
    for reply, text in zip(replies, OBSERVATIONS, strict=True):
        assert isinstance(reply, ModelReply)
        ids = agent.codec.encode(say(text)).ids
        longer = agent_for(llama, tokenizer, max_new_tokens=5).act([turn("a", say(text))])[0]
        assert (reply.ending == "length") == (longer != reply or len(ids) == 0)
    assert "length" in {reply.ending for reply in replies}


def test_a_thought_that_the_prompt_opened_is_one_even_if_it_is_cut(llama: Any, tokenizer: Any):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = OPENED
    agent = agent_for(llama, thinking, max_new_tokens=6)
    reply = agent.act([turn("a", say("x"))])[0]
    assert reply.startswith("<think>\n")
    assert parse(reply).action == ""
    assert agent.codec.is_thinking("hm")
    assert not agent.codec.is_thinking("hm</think>Action: look")
    stop = agent.codec.body_ids("a\nObservation:")
    assert not agent.codec.has_stop(stop)
    assert agent.codec.has_stop(agent.codec.body_ids("hm</think>a\nObservation:"))


def test_the_default_limit_depends_on_whether_the_model_thinks(llama: Any, tokenizer: Any):
    def limit(chat_template: str, **options: Any) -> int:
        other = copy.deepcopy(tokenizer)
        other.chat_template = chat_template
        agent = TransformersAgent(llama, other, **options)
        assert ("template" in agent.fingerprint()) == bool(agent.template)
        return agent.decoding.max_new_tokens

    llama.config.max_position_embeddings, before = 8192, llama.config.max_position_embeddings
    try:
        assert limit(TEMPLATE) == 256
        assert limit(OPENED) == 4096
        assert limit(SWITCHED) == 4096
        assert limit(SWITCHED, enable_thinking=False) == 256
        assert limit(SWITCHED, template={"enable_thinking": False}) == 256
        assert limit(OPENED, max_new_tokens=7) == 7
    finally:
        llama.config.max_position_embeddings = before


def test_arguments_of_the_template_reach_it(llama: Any, tokenizer: Any):
    other = copy.deepcopy(tokenizer)
    other.chat_template = SWITCHED
    agent = agent_for(llama, other, enable_thinking=False)
    text = other.decode(agent.codec.encode(say("x")).ids)
    assert text.endswith("<think>\n\n</think>\n\n")
    assert not agent.codec.opens_thought
