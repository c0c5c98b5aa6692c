import json
from pathlib import Path

import pytest
import torch

from stepagent.agents.chat import Encoded
from stepagent.envs.trajectory import Trajectory
from stepagent.training.config import Config, ReflectionConfig
from stepagent.training.data import Sample, draw
from stepagent.training.methods.implicit import (
    TreePairs,
    anchored,
    check,
    figures,
    loss,
    weights,
    with_reference,
)
from stepagent.training.methods.losses import step_dpo_loss
from stepagent.training.methods.practice import practice_trees, practise, unpractised
from stepagent.training.runs.checkpoints import DamagedState
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.schedule import shuffled
from stepagent.training.runs.stage import Stage
from stepagent.training.trees.packing import pack
from stepagent.training.trees.scoring import score_trees

TRAJECTORY = Trajectory("tests/Guess-v0", "small/1", "train", "expert", 0, ())
ENCODED = Encoded(ids=[9, 8, 1, 2, 0, 7, 3, 0], replies=[(2, 5), (6, 8)])


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path, "")


def test_the_experts_own_replies_are_dropped_and_repeated_ones_weighed():
    replies = [[[1, 2, 0], [5, 0], [5, 0]], [[3, 0], [4, 0], [5, 0]]]
    [practice] = practice_trees(ENCODED, replies, 1000)
    assert practice.draws_of_expert == 2
    branches = practice.tree.branches
    assert [(b.step, b.ids) for b in branches] == [(0, (5, 0)), (1, (4, 0)), (1, (5, 0))]
    assert weights(practice) == (2, 1, 1)
    [copy] = practice_trees(ENCODED, [[[1, 2, 0]], [[3, 0]]], 1000)
    assert (copy.tree.branches, copy.draws_of_expert) == ((), 2)


def _practise(stage, policy, samples):
    rows = practise(stage, policy, samples, ReflectionConfig(practice=3))
    return [practice for row in rows for practice in row]


def test_practice_resumes_and_the_reference_is_the_policy_itself(policy, directory):
    samples = [Sample(TRAJECTORY, ENCODED)] * 3
    first, second = (Stage(name, directory, seed=1) for name in "ab")
    practices = _practise(first, policy, samples)
    assert figures(practices, policy.eos_ids)["practised"] == 18
    pairs = with_reference(first, policy, practices)
    for path in (directory.path / "practice" / "a.jsonl", first.artifacts / "reference.jsonl"):
        text = path.read_text()
        killed = Path(str(path).replace("a.jsonl", "b.jsonl").replace("/a/", "/b/"))
        killed.parent.mkdir(exist_ok=True)
        killed.write_text(text[: len(text) // 2])  # killed in the middle of a line
    again = with_reference(second, policy, _practise(second, policy, samples))
    assert again == pairs
    assert killed.read_text() == text
    practice = [directory.path / "practice" / f"{name}.jsonl" for name in "ab"]
    assert practice[0].read_text() == practice[1].read_text()
    for item in pairs:
        scores = score_trees(policy.model, pack([item.tree]))
        assert torch.allclose(scores.chosen, torch.tensor(item.reference_chosen), atol=1e-5)
        assert torch.allclose(scores.rejected, torch.tensor(item.reference_rejected), atol=1e-5)


def test_a_reference_of_other_pairs_is_refused(policy, directory):
    stage = Stage("a", directory, seed=1)
    practices = _practise(stage, policy, [Sample(TRAJECTORY, ENCODED)])
    [pairs] = with_reference(stage, policy, practices)
    path = stage.artifacts / "reference.jsonl"
    short = [list(pairs.reference_chosen[1:]), list(pairs.reference_rejected[1:])]
    path.write_text(json.dumps(short) + "\n")
    with pytest.raises(DamagedState, match="other numbers of pairs than were practised"):
        with_reference(stage, policy, practices)


def test_the_loss_of_a_tree_is_eq_6_over_its_pairs(policy):
    replies = [[[5, 0], [5, 0], [6, 0]], [[4, 0], [4, 0], [4, 4, 0]]]
    [practice] = practice_trees(ENCODED, replies, 1000)
    item = TreePairs(practice.tree, weights(practice), (-1.0,) * 4, (-2.0,) * 4)
    total, sums = loss(ReflectionConfig(beta=0.5))(policy.model, [item])

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
    assert item.count() == 6
    assert total.item() == pytest.approx(6 * expected.loss.item(), rel=1e-4)
    assert sums["margin"] == pytest.approx(6 * expected.margin.item(), rel=1e-4)
    anchored, _ = loss(ReflectionConfig(beta=0.5, sft_weight=2.0))(policy.model, [item])
    assert anchored.item() == pytest.approx(
        total.item() - 2.0 * sum(c.item() for c in chosen), rel=1e-4
    )


def test_the_anchor_holds_all_states_of_the_practice(policy, directory):
    """By hand: 3 draws in the first state, one of them the expert's, and 3 that are all the
    expert's in the second; then a trajectory without a pair, with one draw in the first state."""
    replies = [[[5, 0], [1, 2, 0], [6, 0]], [[3, 0]] * 3]
    practices = [
        *practice_trees(ENCODED, replies, 1000),
        *practice_trees(ENCODED, [[[1, 2, 0]], []], 1000),
    ]
    pairs = with_reference(Stage("a", directory, seed=1), policy, practices)
    held = anchored(pairs, practices)
    assert [item.count() for item in pairs] == [2]
    assert [item.count() for item in held] == [1.75, 0.25]
    scores = score_trees(policy.model, pack([practices[0].tree]))
    first, second = scores.log_probs[:2].tolist()
    eq_6, _ = loss(ReflectionConfig(beta=0.5))(policy.model, pairs)
    for items, expected in (
        (pairs, eq_6.item() - 2.0 * 2 * first),
        (held, eq_6.item() / 4 - 2.0 * (first + second)),
        (held[1:], -2.0 * first / 4),
    ):
        total, sums = loss(ReflectionConfig(beta=0.5, sft_weight=2.0))(policy.model, items)
        assert total.item() == pytest.approx(expected, rel=1e-4)
    assert set(sums.values()) == {0.0}


def test_a_state_on_two_trees_counts_once(policy, directory):
    encoded = Encoded(ids=[1, 2, 3, 4, 5], replies=[(3, 5)])
    practices = practice_trees(encoded, [[[6, 7, 0], [7, 6, 0], [4, 5], [6, 6, 0]]], 10)
    assert len(practices) > 1
    pairs = with_reference(Stage("a", directory, seed=1), policy, practices)
    held = anchored(pairs, practices)
    assert all(item.count() > 0 for item in held)
    assert sum(item.count() for item in held) == pytest.approx(1)
    assert sum(sum(item.weights) for item in held) == pytest.approx(3 / 4)


def test_the_likelihood_of_all_states_does_not_depend_on_practice(policy, directory):
    """Neither its batches nor its gradient, whatever the agent draws there."""
    drawn = practice_trees(ENCODED, [[[5, 0], [1, 2, 0], [6, 0]], [[3, 0]] * 3], 1000)
    pairs = with_reference(Stage("a", directory, seed=1), policy, drawn)
    config = ReflectionConfig(preference_weight=0.0, sft_weight=2.0, anchor="states")
    rows = []
    for items in (anchored(pairs, drawn), anchored([], unpractised(ENCODED, 1000))):
        policy.model.zero_grad()
        loss(config)(policy.model, items)[0].backward()
        rows.append([p.grad.clone() for p in policy.model.parameters() if p.grad is not None])
        assert [item.count() for item in items] == [2.0]
    assert any(grad.abs().max() > 1e-3 for grad in rows[0])
    for one, other in zip(*rows, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_anchor_without_a_weight_is_refused():
    config = Config(output="unused", env="tests/Guess-v0", method="implicit")
    config.reflection.anchor = "states"
    with pytest.raises(ValueError, match="sft_weight is 0"):
        check(config)
    config.reflection.sft_weight = 0.5
    check(config)
    config.reflection.off_policy_iterations = 1
    with pytest.raises(ValueError, match="counts each state once"):
        check(config)


def test_values_weigh_the_preference_and_not_the_anchor(policy):
    """Two pairs that were drawn 2 and 1 times and weigh 0.25 and 0: by hand 2 · 0.25 · L₁, and the
    anchor of three draws."""
    [practice] = practice_trees(ENCODED, [[[5, 0], [5, 0]], [[4, 0]]], 1000)
    columns = practice.tree, weights(practice), (-1.0, -1.5), (-2.0, -2.5)
    plain, weighed = TreePairs(*columns), TreePairs(*columns, (0.25, 0.0))
    config = ReflectionConfig(beta=0.5)
    scores = score_trees(policy.model, pack([practice.tree]))
    margin = 0.5 * ((scores.chosen[0] + 1.0) - (scores.rejected[0] + 2.0))
    first = -torch.nn.functional.logsigmoid(margin).item()
    total, sums = loss(config)(policy.model, [weighed])
    assert total.item() == pytest.approx(2 * 0.25 * first, rel=1e-4)
    assert sums == pytest.approx(loss(config)(policy.model, [plain])[1])
    anchored, _ = loss(ReflectionConfig(beta=0.5, sft_weight=2.0))(policy.model, [weighed])
    anchor = -2.0 * (2 * scores.chosen[0] + scores.chosen[1]).item()
    assert anchored.item() == pytest.approx(total.item() + anchor, rel=1e-4)
    mixed, _ = loss(config)(policy.model, [weighed, plain])
    alone, _ = loss(config)(policy.model, [plain])
    assert mixed.item() == pytest.approx(total.item() + alone.item(), rel=1e-4)


def test_a_schedule_holds_every_pair_once_per_epoch():
    items = [TreePairs(None, (i % 3 + 1,), (), ()) for i in range(20)]
    config = ReflectionConfig(batch_size=5, epochs=2)

    def updates(seed):
        return shuffled(items, TreePairs.count, config, seed).updates

    first = updates(3)
    assert sum(i.count() for update in first for i in update) == 2 * sum(i.count() for i in items)
    assert all(sum(i.count() for i in update) >= 5 for update in first[:1])
    assert first == updates(3)
    assert first != updates(4)


def test_draw():
    assert draw([1, 2, 3], 0, 0) == [1, 2, 3]
    assert len(draw(list(range(100)), 10, 0)) == 10
    assert draw(list(range(100)), 10, 0) != draw(list(range(100)), 10, 1)


def test_lines_are_json(policy, directory):
    _practise(Stage("a", directory), policy, [Sample(TRAJECTORY, ENCODED)])
    line = json.loads((directory.path / "practice" / "a.jsonl").read_text())
    assert {"task_id", "seed", "replies"} == set(line)
    assert [len(replies) for replies in line["replies"]] == [3, 3]
