"""Step trees against the plain way: every (state, action) pair in a sequence of its own."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from stepagent.training.trees.attention import TreePattern
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees
from stepagent.training.trees.tree import Branch, StepTree
from tests.training.toys import TREES, plain_scores, random_tree, tiny_model


def gradients(model: PreTrainedModel) -> torch.Tensor:
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return gradient


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
    sizes = [n for tree in trees for n in (len(tree.replies), len(tree.branches))]
    parts = scores.log_probs.split(sizes)
    per_tree = list(zip(parts[::2], parts[1::2], strict=True))
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
    monkeypatch.setattr("stepagent.training.trees.packing.CHUNK_TOKENS", 3)
    torch.testing.assert_close(score_trees(model, packed).log_probs, whole, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_the_blocks_reach_every_attention_layer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that swallowed the plan would fall back on the dense mask: right, but slow."""
    layers = []
    attend = TreePattern.attend

    def spy(self: TreePattern, layer: int, *args: object) -> torch.Tensor:
        layers.append(layer)
        return attend(self, layer, *args)

    monkeypatch.setattr(TreePattern, "attend", spy)
    score_trees(tiny_model(kind), pack([TREES["one step"]]))
    assert layers == [0, 1]
