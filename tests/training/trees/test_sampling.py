"""Practice from a shared trajectory against `generate` on each state."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stepagent.agents.generation import Decoding
from stepagent.training.trees import sampling
from stepagent.training.trees.packing import pack
from stepagent.training.trees.sampling import Sampling, practice, practices, together
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree
from tests.training.toys import random_tree, rewriting_tree, tiny_model

EOS = 11


def greedy_alone(model: PreTrainedModel, tree: StepTree, longest: int) -> list[list[list[int]]]:
    """What `generate` says in each state, one state at a time."""
    replies = []
    for step in range(len(tree.replies)):
        state = torch.tensor([tree.state(step)])
        out = model.generate(
            state,
            attention_mask=torch.ones_like(state),
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        replies.append([out[0, state.shape[1] :].tolist()])
    return replies


def draw(model: PreTrainedModel, tree: StepTree, **changes: object) -> list[list[list[int]]]:
    options = {"k": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "eos_ids": {EOS}}
    options |= {"seed": 5, **changes}
    decoding = Decoding(options["temperature"], options["top_p"], options["max_new_tokens"])
    ends = {name: options[name] for name in ("stopped",) if name in options}
    drawing = Sampling(options["k"], decoding, options["eos_ids"], **ends)
    return practice(model, tree, drawing, options["seed"])


def biased(kind: str = "llama", **changes: object) -> PreTrainedModel:
    """A tiny model whose replies end now and then."""
    model = tiny_model(kind, **changes)
    with torch.no_grad():
        model.lm_head.weight[EOS] *= 1.5
    return model


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 6}),
        ("qwen3", {}),
    ],
)
def test_greedy_equals_generate(kind: str, changes: dict) -> None:
    model = biased(kind, **changes)
    for tree in (random_tree(21, 12, []), rewriting_tree(21, 12, [], anew=5)):
        expected = greedy_alone(model, tree, 40)
        lengths = {len(replies[0]) for replies in expected}
        assert len(lengths) > 2, "all replies end together: rows that leave are not tested"
        assert draw(model, tree, k=1, temperature=0.0, max_new_tokens=40) == expected


def test_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tree = biased(), random_tree(22, 9, [])
    whole = draw(model, tree)
    monkeypatch.setattr(sampling, "MAX_ROWS", 4)
    assert draw(model, tree) == whole
    monkeypatch.setattr(sampling.Decode, "block_rows", 3)
    assert draw(model, tree) == whole


SIZES = 2 * 2 * 2 * 16 * 4
"""Bytes of a token's keys and values: both, layers, key heads, width, float32."""


@pytest.mark.parametrize("rows", [256, 40, 7])
@pytest.mark.parametrize("changes", [{}, {"kind": "mistral", "sliding_window": 6}])
def test_trajectories_that_are_decoded_together_change_nothing(
    changes: dict, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = biased(**changes)
    trees = [random_tree(31, 4, []), rewriting_tree(32, 5, [], anew=3), random_tree(33, 1, [])]
    trees += [StepTree(trees[0].ids, ()), random_tree(34, 9, [])]
    alone = [draw(model, tree, seed=seed) for seed, tree in enumerate(trees)]
    assert len({len(ids) for row in alone for replies in row for ids in replies}) > 4
    monkeypatch.setattr(sampling, "MAX_ROWS", rows)
    drawing = Sampling(3, Decoding(1.0, 1.0, 12), {EOS})
    jobs = [(tree, seed) for seed, tree in enumerate(trees)]
    assert practices(model, jobs, drawing) == alone
    assert practices(model, [], drawing) == []


@pytest.mark.parametrize("kind", ["gpt2", "dynamic"])
def test_a_neighbour_at_the_end_of_its_context_changes_nothing(kind: str) -> None:
    """Rows that have ended there are decoded on for a while, behind the positions that exist."""
    if kind == "gpt2":
        config = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64)
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    else:
        rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        model = tiny_model(max_position_embeddings=64, rope_parameters=rope)
    rng = random.Random(0)
    trees = [
        StepTree(tuple(rng.randrange(96) for _ in range(size + 1)), ((size, size + 1),))
        for size in (*range(20, 29), 62)
    ]
    drawing = Sampling(1, Decoding(1.0, 1.0, 20), {EOS})
    alone = [practice(model, tree, drawing, seed) for seed, tree in enumerate(trees)]
    assert len(alone[-1][0][0]) == 2
    assert practices(model, list(zip(trees, range(10), strict=True)), drawing) == alone


def test_memory_is_that_of_the_keys_as_they_are_kept() -> None:
    """On a CPU in float32, whatever the weights are."""
    model = tiny_model()
    assert sampling._bytes_per_token(model) == SIZES
    assert sampling._bytes_per_token(model.to(torch.bfloat16)) == SIZES
    assert sampling._bytes_per_token(tiny_model("qwen3")) == SIZES


def test_as_many_are_decoded_together_as_rows_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, drawing = tiny_model(), Sampling(2, Decoding(1.0, 1.0, 10), {EOS})
    empty = StepTree(random_tree(35, 1, []).ids, ())
    trees = [random_tree(35 + i, n, []) for i, n in enumerate((1, 2, 3, 1, 5, 1))]
    tokens = [tree.replies[-1][0] + 2 * 10 * len(tree.replies) for tree in trees]

    def groups(rows: int = 256, tokens: int = 10**6) -> list[list[int]]:
        monkeypatch.setattr(sampling, "MAX_ROWS", rows)
        monkeypatch.setattr(sampling, "MAX_BYTES", tokens * SIZES)
        return [list(group) for group in together(model, trees, drawing)]

    assert groups() == [[0, 1, 2, 3, 4, 5]]
    assert groups(rows=6) == [[0, 1], [2], [3], [4], [5]]
    assert groups(rows=8) == [[0, 1], [2, 3], [4], [5]]
    assert groups(tokens=1) == [[i] for i in range(6)]
    assert groups(tokens=sum(tokens[:3])) == [[0, 1, 2], [3, 4], [5]]
    assert groups(tokens=sum(tokens[:3]) - 1)[0] == [0, 1]
    assert list(together(model, [], drawing)) == []
    assert list(together(model, [empty, trees[0], empty], drawing)) == [range(3)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("changes", [{}, {"kind": "mistral", "sliding_window": 6}])
def test_looking_at_the_rows_now_and_then_changes_nothing(
    temperature: float, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: rows go on behind their end until they are looked at."""
    model, tree = biased(**changes), random_tree(22, 9, [])
    options = {"k": 3 if temperature else 1, "temperature": temperature}
    options["stopped"] = lambda ids: ids[-1] % 7 == 3
    each = draw(model, tree, **options)
    lengths = {len(ids) for replies in each for ids in replies}
    assert len(lengths) > 2, "all replies end together"
    for count in (2, 5, 100):
        monkeypatch.setattr(sampling, "_unseen_tokens", lambda device, count=count: count)
        assert draw(model, tree, **options) == each


def test_draws_depend_on_seed_state_and_number_alone() -> None:
    model, tree = biased(), random_tree(23, 6, [])
    whole = draw(model, tree)
    assert draw(model, tree) == whole
    assert draw(model, tree, seed=6) != whole
    assert draw(model, tree, k=2) == [replies[:2] for replies in whole]
    assert draw(model, StepTree(tree.ids, tree.replies[:4])) == whole[:4]
    cut = draw(model, tree, max_new_tokens=3)
    assert cut == [[ids[:3] for ids in replies] for replies in whole]
    assert len({tuple(ids) for replies in whole for ids in replies}) > 10


def test_samples_follow_the_policy() -> None:
    """First-token frequencies of 1,000 draws against the model's probabilities."""
    model, tree = tiny_model(), random_tree(24, 1, [])
    state = torch.tensor([tree.ids[: tree.replies[0][0]]])
    for temperature in (1.0, 2.0):
        drawn = draw(model, tree, k=1000, max_new_tokens=1, temperature=temperature)[0]
        expected = (model(state).logits[0, -1] / temperature).softmax(-1)
        counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=96) / 1000
        bound = 5 * (expected * (1 - expected) / 1000).sqrt() + 1e-3
        assert ((counts - expected).abs() < bound).all()


def test_top_p_keeps_the_likeliest() -> None:
    model, tree = tiny_model(), random_tree(25, 1, [])
    state = torch.tensor([tree.ids[: tree.replies[0][0]]])
    chance, order = model(state).logits[0, -1].softmax(-1).sort(descending=True)
    allowed = set(order[: int((chance.cumsum(0) < 0.5).sum()) + 1].tolist())
    drawn = draw(model, tree, k=500, max_new_tokens=1, top_p=0.5)[0]
    assert {ids[0] for ids in drawn} <= allowed
    assert len(allowed) < 90


def test_sampled_replies_are_likelier_than_their_permutations() -> None:
    """Rows must not read each other's tokens: a reply belongs to the state it was drawn in."""
    model, tree = biased(), random_tree(26, 8, [])
    replies = draw(model, tree, k=4)
    own = StepTree(
        tree.ids,
        tree.replies,
        tuple(Branch(i, tuple(r)) for i, rs in enumerate(replies) for r in rs),
    )
    foreign = StepTree(
        tree.ids,
        tree.replies,
        tuple(Branch((i + 3) % 8, tuple(r)) for i, rs in enumerate(replies) for r in rs),
    )
    with torch.no_grad():
        sums = [score_trees(model, pack([t])).rejected.mean().item() for t in (own, foreign)]
    assert sums[0] > sums[1] + 5


def test_replies_stop_at_the_end_of_the_context() -> None:
    tree = random_tree(27, 4, [])
    room = 4
    model = tiny_model(max_position_embeddings=tree.replies[-1][0] + room)
    drawn = draw(model, tree, eos_ids=set(), max_new_tokens=12, k=2)
    assert [len(ids) for ids in drawn[-1]] == [room, room]
    assert all(len(ids) == 12 for ids in drawn[0])
    full = tiny_model(max_position_embeddings=tree.replies[-1][0])
    with pytest.raises(ValueError, match="context"):
        draw(full, tree)


def test_a_reply_ends_where_it_is_stopped() -> None:
    """As in acting, where an agent is stopped at an observation that it invents."""
    model, tree = tiny_model(), random_tree(27, 3, [])
    free = draw(model, tree, eos_ids=set(), max_new_tokens=8, k=2)
    stopped = draw(
        model, tree, eos_ids=set(), max_new_tokens=8, k=2, stopped=lambda ids: len(ids) == 3
    )
    assert stopped == [[reply[:3] for reply in row] for row in free]


def test_bad_settings_are_refused() -> None:
    model, tree = tiny_model(), random_tree(28, 2, [])
    for changes in ({"k": 0}, {"k": 2, "temperature": 0.0}, {"top_p": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ValueError, match=r"k is|needs"):
            draw(model, tree, **changes)
    assert (
        practice(model, StepTree(tree.ids, ()), Sampling(1, Decoding(1.0, 1.0, 3), {EOS}), 0) == []
    )


def test_a_model_in_training_is_left_in_training() -> None:
    model, tree = tiny_model(attention_dropout=0.5), random_tree(29, 2, [])
    evaluated = draw(model, tree)
    model.train()
    assert draw(model, tree) == evaluated
    assert model.training


def test_bfloat16_runs() -> None:
    model, tree = biased().to(torch.bfloat16), random_tree(30, 5, [])
    drawn = draw(model, tree)
    assert all(1 <= len(ids) <= 12 for replies in drawn for ids in replies)


@pytest.mark.slow
def test_greedy_equals_generate_on_smollm2() -> None:
    pytest.importorskip("gguf")
    from stepagent.agents.chat import ChatCodec
    from stepagent.agents.models import ModelError, load_model, load_tokenizer

    try:
        model, tokenizer = load_model("smollm2", "float32"), load_tokenizer("smollm2")
    except ModelError as error:
        pytest.skip(str(error))
    codec = ChatCodec(tokenizer)
    messages = [{"role": "system", "content": "You help in a kitchen. Say what to do next."}]
    for thing in ("an apple", "a wet spoon", "three eggs", "a cold stove", "an empty pan"):
        messages.append({"role": "user", "content": f"There is {thing} on the table."})
        messages.append(
            {"role": "assistant", "content": f"Thought: I need it.\nAction: take {thing}"}
        )
    encoded = codec.encode(messages)
    expected = []
    for start, _ in encoded.replies:
        out = model.generate(
            torch.tensor([encoded.ids[:start]]), max_new_tokens=24, do_sample=False
        )
        expected.append([out[0, start:].tolist()])
    greedy = Sampling(1, Decoding(0.0, 1.0, 24), {codec.end_of_turn_id})
    assert practice(model, encoded, greedy, seed=0) == expected
