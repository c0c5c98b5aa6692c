"""Step trees against the plain way: every (state, action) pair in a sequence of its own."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stepagent.training.attention import TreePlan
from stepagent.training.tree import Branch, StepTree, pack, score_trees, split_tree

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny_model(kind: str = "llama", **changes: object) -> PreTrainedModel:
    """A small random model in float32, with weights large enough that attention matters."""
    torch.manual_seed(0)
    shape = {**SHAPE, "initializer_range": 0.2, **changes}
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**{"sliding_window": None, **shape})).eval()
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def random_tree(seed: int, steps: int, branch_steps: list[int]) -> StepTree:
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(96) for _ in range(rng.randint(low, high)))

    ids = tokens(5, 9)
    replies = []
    for _ in range(steps):
        ids += tokens(2, 6)
        reply = tokens(1, 5)
        replies.append((len(ids), len(ids) + len(reply)))
        ids += (*reply, 7)
    return StepTree(ids, tuple(replies), tuple(Branch(step, tokens(1, 6)) for step in branch_steps))


def actions(tree: StepTree) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (state, action) of a tree, numbered as `PackedTrees` does."""
    pairs = [(tree.ids[:start], tree.ids[start:end]) for start, end in tree.replies]
    return pairs + [(tree.ids[: tree.replies[b.step][0]], b.ids) for b in tree.branches]


def plain_scores(model: PreTrainedModel, tree: StepTree) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [A] and the hidden states [A, 2, hidden] (end of state, of action), one by one."""
    sums, hidden = [], []
    for state, action in actions(tree):
        ids = torch.tensor([state + action])
        out = model(ids, output_hidden_states=True, use_cache=False)
        log_probs = out.logits[0].log_softmax(-1)
        at = torch.arange(len(state) - 1, ids.shape[1] - 1)
        sums.append(log_probs[at, ids[0, at + 1]].sum())
        hidden.append(out.hidden_states[-1][0, [len(state) - 1, -1]])
    return torch.stack(sums), torch.stack(hidden)


TREES = {
    "no branch": random_tree(1, 3, []),
    "first and last step": random_tree(2, 4, [0, 3]),
    "several at one step": random_tree(3, 4, [2, 2, 2, 0]),
    "unordered, every step": random_tree(4, 5, [4, 0, 3, 1, 2, 0]),
    "one step": random_tree(5, 1, [0, 0]),
}


def gradients(model: PreTrainedModel) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("name", [*TREES, "all packed"])
def test_equals_the_plain_way(kind: str, name: str) -> None:
    model = tiny_model(kind)
    trees = list(TREES.values()) if name == "all packed" else [TREES[name]]
    plain = [plain_scores(model, tree) for tree in trees]
    expected = torch.cat([sums for sums, _ in plain])
    hidden = torch.cat([states for _, states in plain])
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    expected_gradient = gradients(model)

    scores = score_trees(model, pack(trees), hidden=True)
    (scores.log_probs * weights).sum().backward()
    torch.testing.assert_close(scores.log_probs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.state_hidden, hidden[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.action_hidden, hidden[:, 1], atol=1e-4, rtol=1e-4)
    gradient = gradients(model)
    assert (gradient - expected_gradient).norm() <= 1e-3 * expected_gradient.norm()


def test_scores_by_tree_and_by_pair() -> None:
    model = tiny_model()
    trees = [TREES["unordered, every step"], TREES["no branch"], TREES["several at one step"]]
    scores = score_trees(model, pack(trees))
    per_tree = scores.per_tree()
    for tree, (steps, branches) in zip(trees, per_tree, strict=True):
        expected = plain_scores(model, tree)[0]
        torch.testing.assert_close(torch.cat([steps, branches]), expected, atol=1e-4, rtol=0)
    chosen = [
        steps[b.step] for t, (steps, _) in zip(trees, per_tree, strict=True) for b in t.branches
    ]
    torch.testing.assert_close(scores.chosen, torch.stack(chosen))
    torch.testing.assert_close(scores.rejected, torch.cat([b for _, b in per_tree]))
    assert scores.token_log_probs.shape == scores.packed.target.shape


def test_a_branch_like_the_expert_scores_like_the_expert() -> None:
    tree = random_tree(6, 3, [])
    copies = tuple(Branch(i, tree.ids[start:end]) for i, (start, end) in enumerate(tree.replies))
    scores = score_trees(tiny_model(), pack([StepTree(tree.ids, tree.replies, copies * 2)]))
    torch.testing.assert_close(scores.chosen, scores.rejected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [4, 9])
def test_sliding_window_is_applied_on_every_path(window: int) -> None:
    model = tiny_model("mistral", sliding_window=window)
    trees = list(TREES.values())
    expected = torch.cat([plain_scores(model, tree)[0] for tree in trees])
    full = score_trees(tiny_model("mistral"), pack(trees)).log_probs
    scores = score_trees(model, pack(trees)).log_probs
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)
    assert (scores - full).abs().max() > 0.1, "the window changed nothing: the test is void"


def test_chunked_branches_equal_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, packed = tiny_model("qwen3"), pack(list(TREES.values()))
    whole = score_trees(model, packed).log_probs
    monkeypatch.setattr("stepagent.training.tree.CHUNK_TOKENS", 3)
    torch.testing.assert_close(score_trees(model, packed).log_probs, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [None, 7])
def test_mask_matches_its_definition(window: int | None) -> None:
    trees = [TREES["several at one step"], TREES["first and last step"]]
    packed = pack(trees, multiple_of=128)
    assert packed.input_ids.shape[1] % 128 == 0
    expected = torch.zeros(packed.input_ids.shape[1], packed.input_ids.shape[1], dtype=torch.bool)
    for start, trunk_end, branches in packed.spans:
        paths = [list(range(start, trunk_end))]
        paths += [[*range(start, start + seen), *range(a, b)] for a, b, seen in branches]
        for path in paths:
            for i, q in enumerate(path):
                seen = path[: i + 1] if window is None else path[max(0, i + 1 - window) : i + 1]
                expected[q, seen] = True
    real = int((packed.tree_id >= 0).sum())
    dense = packed.dense_mask(window)[0, 0]
    assert torch.equal(dense[:real, :real], expected[:real, :real])
    assert not dense[:real, real:].any()
    assert dense.any(dim=1).all(), "a row that sees nothing would turn into NaN"


@pytest.mark.parametrize("window", [None, 7])
def test_block_mask_is_the_same_rule(window: int | None) -> None:
    packed = pack(list(TREES.values()), multiple_of=128)
    block = packed.block_mask(window)
    size = packed.input_ids.shape[1]
    assert block.shape == (1, 1, size, size)
    dense = torch.zeros(size, size, dtype=torch.bool)
    rule = packed.mask_mod(window)
    zero = torch.tensor(0)
    for q in range(size):
        dense[q] = rule(zero, zero, torch.tensor(q), torch.arange(size))
    assert torch.equal(dense, packed.dense_mask(window)[0, 0])
    tiles = dense.view(size // 128, 128, size // 128, 128).any(dim=3).any(dim=1)
    assert torch.equal(block.to_dense()[0, 0].bool(), tiles)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_flex_attention_agrees(kind: str) -> None:
    """FlexAttention has no backward on a CPU; its forward there follows the block mask."""
    model, packed = tiny_model(kind), pack(list(TREES.values()), multiple_of=128)
    with torch.no_grad():
        blocks = score_trees(model, packed, attention="blocks").log_probs
        flex = score_trees(model, packed, attention="flex").log_probs
    torch.testing.assert_close(flex, blocks, atol=1e-4, rtol=0)


def test_padding_and_gradient_checkpointing_change_nothing() -> None:
    model, trees = tiny_model().train(), [TREES["unordered, every step"]]
    score_trees(model, pack(trees)).log_probs.sum().backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    scores = score_trees(model, pack(trees, multiple_of=64))
    scores.log_probs.sum().backward()
    torch.testing.assert_close(gradients(model), expected, atol=1e-5, rtol=1e-4)


def test_lora_adapters_get_the_same_gradients() -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tree = TREES["several at one step"]
    expected = plain_scores(model, tree)[0]
    expected.sum().backward()
    expected_gradient = gradients(model)
    scores = score_trees(model, pack([tree]))
    scores.log_probs.sum().backward()
    torch.testing.assert_close(scores.log_probs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(gradients(model), expected_gradient, atol=1e-4, rtol=1e-3)


def test_only_action_tokens_reach_the_head() -> None:
    model, packed = tiny_model(), pack([TREES["first and last step"]])
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, out: rows.append(out.shape[1]))
    score_trees(model, packed)
    assert rows == [len(packed.target)]
    assert len(packed.target) < packed.input_ids.shape[1]


def test_generate_still_works_once_switched() -> None:
    model, ids = tiny_model(), torch.arange(1, 9)[None]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    before = model.generate(ids, **options)
    score_trees(model, pack([TREES["no branch"]]))
    assert model.config._attn_implementation == "step_tree"
    assert torch.equal(model.generate(ids, **options), before)


def test_split_keeps_every_pair_within_the_budget() -> None:
    model, tree = tiny_model(), random_tree(8, 6, [5, 0, 0, 1, 3, 4, 4, 2, 5])
    limit = tree.trunk_length + 9
    parts = split_tree(tree, limit)
    assert len(parts) > 1
    assert all(part.length <= limit for part in parts)
    kept = sorted(b.ids for part in parts for b in part.branches)
    assert kept == sorted(b.ids for b in tree.branches)
    pairs = {}
    for part in parts:
        scores = score_trees(model, pack([part]))
        for branch, chosen, rejected in zip(
            part.branches, scores.chosen, scores.rejected, strict=True
        ):
            pairs[branch] = (chosen.item(), rejected.item())
    scores = score_trees(model, pack([tree]))
    for branch, chosen, rejected in zip(tree.branches, scores.chosen, scores.rejected, strict=True):
        assert pairs[branch] == pytest.approx((chosen.item(), rejected.item()), abs=1e-4)
    assert split_tree(tree, tree.length) == [tree]


def test_trimmed_drops_the_steps_behind_the_last_branch() -> None:
    tree = random_tree(9, 5, [1, 0])
    trimmed = tree.trimmed()
    assert trimmed.replies == tree.replies[:2]
    assert trimmed.ids == tree.ids[: tree.replies[1][1]]
    full, short = (score_trees(tiny_model(), pack([t])) for t in (tree, trimmed))
    torch.testing.assert_close(full.chosen, short.chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(full.rejected, short.rejected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("replies", "branches", "says"),
    [
        (((0, 2),), (), "step 0 spans"),
        (((2, 4), (3, 5)), (), "step 1 spans"),
        (((2, 2),), (), "step 0 spans"),
        (((2, 9),), (), "step 0 spans"),
        (((2, 4),), (Branch(1, (3,)),), "on step 1, the trunk has 1"),
        (((2, 4),), (Branch(0, ()),), "branch 0"),
    ],
)
def test_bad_trees_are_refused(replies: tuple, branches: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StepTree((1, 2, 3, 4, 5), replies, branches)


def test_what_cannot_run_is_refused() -> None:
    tree = random_tree(10, 3, [0])
    with pytest.raises(ValueError, match="trunk alone has"):
        split_tree(StepTree(tree.ids, tree.replies), 10)
    with pytest.raises(ValueError, match="over the limit of 10"):
        split_tree(tree, 10)
    with pytest.raises(ValueError, match="at least one tree"):
        pack([])
    short = tiny_model(max_position_embeddings=16)
    with pytest.raises(ValueError, match="the model's context is 16"):
        score_trees(short, pack([tree]))


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


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_the_blocks_reach_every_attention_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that swallowed the plan would fall back on the dense mask: right, but slow."""
    layers = []
    attend = TreePlan.attend

    def spy(self: TreePlan, layer: int, *args: object) -> torch.Tensor:
        layers.append(layer)
        return attend(self, layer, *args)

    monkeypatch.setattr(TreePlan, "attend", spy)
    score_trees(tiny_model(kind), pack([TREES["one step"]]))
    assert layers == [0, 1]


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
