"""The choice among a training's passes, by figures worked out by hand."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from stepagent.eval.agreement import TrajectoryAgreement
from stepagent.training.runs.directory import RunDirectory
from stepagent.training.runs.selection import Selection, smallest_difference
from stepagent.training.runs.stage import Stage


def _rows(matches: str, loss: float = 1.0) -> list[TrajectoryAgreement]:
    """A trajectory of one step for each letter; `y` where it matches."""
    return [TrajectoryAgreement(f"t/{i}", (loss,), (m == "y",)) for i, m in enumerate(matches)]


@pytest.fixture
def stage(tmp_path):
    console = Console(file=io.StringIO(), width=400)
    return Stage("sft", RunDirectory(tmp_path, "{}"), console=console)


def _passes(selection: Selection, readings) -> list[bool]:
    """Goes through passes of ten updates; the policy's first bias-free weight says which it is."""
    ends = []
    for number, rows in enumerate(readings, 1):
        _mark(selection.policy).data.fill_(float(number))
        selection.read_dev = lambda rows=rows: (rows, 0)
        ends.append(selection.after_pass(10 * number))
    return ends


def _mark(policy) -> torch.Tensor:
    return policy.model.model.norm.weight


def test_the_best_pass_is_kept_and_training_ends_when_none_is_better(stage, policy):
    selection = Selection(stage, policy, lambda: ([], 0), patience=2)
    readings = [_rows("ynnn"), _rows("yynn"), _rows("yynn", loss=0.5), _rows("yynn"), _rows("ynnn")]
    assert _passes(selection, readings) == [False, False, False, False, True]
    selection.finish()
    assert _mark(policy)[0] == 3.0, "as many matches as pass 2, at a lower loss"
    assert stage.figures["chosen_pass"] == 3
    assert stage.figures["dev_step_match"] == 0.5
    # Against passes 1 and 5 one of four steps differs: 2.80 standard errors of 0.25.
    text = stage.console.file.getvalue()
    assert "50.0% of the steps of 4 dev trajectories" in text
    assert "differences of 70.0 points between passes would show" in text
    assert "passes 1, 2, 4, 5 may be as good: TOO FEW trajectories to choose by" in text
    selection.drop()
    assert not (stage.artifacts / "best").exists()


def test_where_wordings_vary_the_loss_alone_decides(stage, policy):
    """A step match is the luck of a wording then; that of pass 1 is the highest."""
    selection = Selection(stage, policy, lambda: ([], 0), patience=1, measure="loss")
    readings = [_rows("yyyy", loss=2.0), _rows("nnnn", loss=1.0), _rows("yynn", loss=1.5)]
    assert _passes(selection, readings) == [False, False, True]
    selection.finish()
    assert stage.figures["chosen_pass"] == 2
    # All trajectories differ alike, so any difference would be seen, and no pass is a draw.
    assert stage.figures["dev_sees"] == 0.0
    assert stage.figures["dev_draw"] == 0.0
    text = stage.console.file.getvalue()
    assert "1.000 nats per step of 4 dev trajectories" in text
    assert "differences" not in text
    assert "no other pass is as good" in text


def test_a_draw_is_among_the_figures(stage, policy):
    selection = Selection(stage, policy, lambda: ([], 0), patience=0)
    _passes(selection, [_rows("ynnn"), _rows("yynn")])
    selection.finish()
    assert stage.figures["dev_draw"] == 1.0
    assert stage.figures["dev_sees"] == pytest.approx(2.8016 * 0.25, abs=1e-4)


def test_passes_that_a_killed_run_has_measured_do_not_count_before_they_come_again(stage, policy):
    selection = Selection(stage, policy, lambda: ([], 0), patience=1)
    assert _passes(selection, [_rows("ynnn"), _rows("yyyn")]) == [False, False]
    # Killed here, with a checkpoint from before the first pass.
    assert _passes(selection, [_rows("ynnn")]) == [False]
    assert _passes(selection, [_rows("ynnn"), _rows("yyyn"), _rows("ynnn")]) == [False, False, True]
    selection.finish()
    assert _mark(policy)[0] == 2.0


def test_a_pass_that_is_better_on_every_trajectory_is_told_apart(stage, policy):
    selection = Selection(stage, policy, lambda: ([], 0), patience=0)
    _passes(selection, [_rows("nnnnnnnn"), _rows("yyyyyyyy")])
    selection.finish()
    assert "no other pass is as good" in stage.console.file.getvalue()


def test_passes_that_all_agree_alike_say_nothing_of_what_could_be_seen(stage, policy):
    selection = Selection(stage, policy, lambda: ([], 0), patience=0)
    _passes(selection, [_rows("yynn"), _rows("yynn")])
    selection.finish()
    text = stage.console.file.getvalue()
    assert "0.0 points" not in text
    assert "pass 2 may be as good: the choice is a draw" in text


def test_a_dev_split_without_two_trajectories_is_refused(stage, policy):
    selection = Selection(stage, policy, lambda: (_rows("y"), 4), patience=0)
    with pytest.raises(ValueError, match=r"has 1 expert trajectories to choose by \(4 left out\)"):
        selection.after_pass(10)


def test_the_smallest_difference_is_280_standard_errors():
    one, two = ({r.task_id: r for r in _rows(letters)} for letters in ("nnnn", "ynnn"))
    # Differences 1, 0, 0, 0: variance 0.25, error sqrt(0.25 / 4) = 0.25; z: 1.960 + 0.842.
    assert smallest_difference(one, two) == pytest.approx(2.8016 * 0.25, abs=1e-4)
    assert smallest_difference(one, one) == 0
