import json

import pytest
import torch

from stepagent.agents.chat import Encoded
from stepagent.training import inspection
from stepagent.training.config import PolicyConfig, ReflectionConfig
from stepagent.training.dataset import Sample
from stepagent.training.implicit import draw, loss, plan
from stepagent.training.losses import step_dpo_loss
from stepagent.training.policy import Policy
from stepagent.training.tiny import TinyConfig
from stepagent.training.tree import pack, score_trees

ENCODED = Encoded(ids=[9, 8, 1, 2, 0, 7, 3, 0], replies=[(2, 5), (6, 8)])


@pytest.fixture(scope="module")
def policy():
    config = PolicyConfig(model="tiny", max_new_tokens=5, device="cpu")
    config.tiny = TinyConfig(hidden_size=32, layers=2, heads=2, vocabulary=300, context=64)
    return Policy.tiny(config, ["a b c"], seed=0)


def test_trees_drop_the_experts_own_replies_and_weigh_repeated_ones():
    replies = [[[1, 2, 0], [5, 0], [5, 0]], [[3, 0], [4, 0], [5, 0]]]
    [(tree, weights)], same = inspection.trees(ENCODED, replies, 1000)
    assert same == 2
    assert [(b.step, b.ids) for b in tree.branches] == [(0, (5, 0)), (1, (4, 0)), (1, (5, 0))]
    assert weights == (2, 1, 1)
    assert inspection.trees(ENCODED, [[[1, 2, 0]], [[3, 0]]], 1000) == ([], 2)


def test_inspection_resumes_and_the_reference_is_the_policy_itself(policy, tmp_path):
    samples = [Sample(None, ENCODED)] * 3
    config = ReflectionConfig(practice=3)
    whole, figures = inspection.inspect(policy, samples, config, tmp_path / "a.jsonl", seed=1)
    assert figures["practised"] == 18
    text = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "b.jsonl").write_text(text[: len(text) // 2])  # killed in the middle of a line
    again, _ = inspection.inspect(policy, samples, config, tmp_path / "b.jsonl", seed=1)
    assert again == whole
    assert (tmp_path / "b.jsonl").read_text() == text
    for item in whole:
        scores = score_trees(policy.model, pack([item.tree]))
        assert torch.allclose(scores.chosen, torch.tensor(item.reference_chosen), atol=1e-5)
        assert torch.allclose(scores.rejected, torch.tensor(item.reference_rejected), atol=1e-5)


def test_the_loss_of_a_tree_is_eq_6_over_its_pairs(policy):
    replies = [[[5, 0], [5, 0], [6, 0]], [[4, 0], [4, 0], [4, 4, 0]]]
    [(tree, weights)], _ = inspection.trees(ENCODED, replies, 1000)
    item = inspection.Inspected(tree, weights, (-1.0,) * 4, (-2.0,) * 4)
    total, sums = loss(0.5)(policy.model, item)

    def plain(state, reply):
        ids = torch.tensor([[*state, *reply]])
        logits = policy.model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(logits[len(state) - 1 + i, t] for i, t in enumerate(reply))

    states = ([9, 8], [9, 8, 1, 2, 0, 7])
    experts = ([1, 2, 0], [3, 0])
    chosen, rejected = [], []
    for step, drawn in enumerate(replies):
        for reply in drawn:
            chosen.append(plain(states[step], experts[step]))
            rejected.append(plain(states[step], reply))
    expected = step_dpo_loss(
        torch.stack(chosen),
        torch.stack(rejected),
        torch.full((6,), -1.0),
        torch.full((6,), -2.0),
        0.5,
    )
    assert item.pairs == 6
    assert total.item() == pytest.approx(6 * expected.loss.item(), rel=1e-4)
    assert sums["margin"] == pytest.approx(6 * expected.margin.item(), rel=1e-4)
    anchored, _ = loss(0.5, sft_weight=2.0)(policy.model, item)
    assert anchored.item() == pytest.approx(
        total.item() - 2.0 * sum(c.item() for c in chosen), rel=1e-4
    )


def test_plan_holds_every_pair_once_an_epoch():
    items = [inspection.Inspected(None, (i % 3 + 1,), (), ()) for i in range(20)]
    config = ReflectionConfig(batch_size=5, epochs=2)
    made = plan(items, config, seed=3)
    assert sum(i.pairs for update in made for i in update) == 2 * sum(i.pairs for i in items)
    assert all(sum(i.pairs for i in update) >= 5 for update in made[:1])
    assert made == plan(items, config, seed=3)
    assert made != plan(items, config, seed=4)


def test_draw():
    assert draw([1, 2, 3], 0, 0) == [1, 2, 3]
    assert len(draw(list(range(100)), 10, 0)) == 10
    assert draw(list(range(100)), 10, 0) != draw(list(range(100)), 10, 1)


def test_lines_are_json(policy, tmp_path):
    inspection.inspect(policy, [Sample(None, ENCODED)], ReflectionConfig(), tmp_path / "a.jsonl", 0)
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert {"drawn", "same", "cut", "trees"} == set(line)
