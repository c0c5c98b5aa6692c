import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file

from stepagent.training.config import OptimiserConfig
from stepagent.training.runs.directory import MOMENTS, RunDirectory
from stepagent.training.runs.optimise import TrainingDiverged, _share, optimise
from stepagent.training.runs.schedule import Schedule, batches
from stepagent.training.runs.stage import Stage

CONFIG = OptimiserConfig(learning_rate=0.1, schedule="constant", warmup_ratio=0, max_grad_norm=9)


def _model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def _stage(tmp_path, name="run", **options):
    return Stage("s", RunDirectory(tmp_path / name, ""), **options)


def _schedule(*updates, until=None):
    return Schedule(updates, lambda item: item[1], until)


def _loss(model, item):
    x, count = item
    value = (model(torch.full((1, 3), x)) ** 2).sum()
    return value * count, {"seen": float(count)}


def _logged(stage):
    return stage.directory.metrics.path.read_text().count('"update"')


def test_an_update_is_one_adamw_step_on_the_mean_over_samples(tmp_path):
    model, twin = _model(), torch.nn.Linear(3, 1)
    twin.load_state_dict(model.state_dict())
    optimise(_stage(tmp_path), model, _schedule([(1.0, 3), (2.0, 1)]), _loss, CONFIG)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    loss = (3 * twin(torch.ones(1, 3)) ** 2 + twin(torch.full((1, 3), 2.0)) ** 2).sum() / 4
    loss.backward()
    optimiser.step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-7)


def test_figures_may_be_means_over_something_else(tmp_path):
    """By hand, (sum of right ones, pairs, samples): 1 of 2 and 3 of 4; none; 0 of 5. In the update
    without a pair there is nothing to log, and the stage's mean is over the two others."""

    def loss(model, item):
        right, pairs, _ = item
        return model(torch.ones(1, 3)).sum() ** 2, {"right": right, "pairs": pairs}

    stage = _stage(tmp_path)
    updates = [(1.0, 2.0, 7), (3.0, 4.0, 9)], [(0.0, 0.0, 8)], [(0.0, 5.0, 5)]
    schedule = Schedule(updates, lambda item: item[2], per={"right": "pairs"})
    means = optimise(stage, _model(), schedule, loss, CONFIG)
    lines = [json.loads(line) for line in stage.directory.metrics.path.read_text().splitlines()]
    assert [line.get("right") for line in lines] == [pytest.approx(4 / 6), None, 0.0]
    assert means["right"] == pytest.approx(4 / 6 / 2)
    assert not any("pairs" in figures for figures in (*lines, means))


def test_resumes_from_a_checkpoint_with_the_same_weights(tmp_path):
    updates = [[(1.0, 1)], [(2.0, 1)], [(0.5, 1)], [(1.5, 1)]]
    uninterrupted = _model()
    optimise(_stage(tmp_path, "whole"), uninterrupted, _schedule(*updates), _loss, CONFIG)

    def stop(done, figures):
        if done == 3:
            raise KeyboardInterrupt

    stage = _stage(tmp_path, "cut", checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        optimise(stage, _model(), _schedule(*updates, until=stop), _loss, CONFIG)
    stage.directory.close()
    model, stage, updates_made = _model(), _stage(tmp_path, "cut"), []

    def record(done, figures):
        updates_made.append(done)
        return False

    optimise(stage, model, _schedule(*updates, until=record), _loss, CONFIG)
    assert updates_made == [3, 4], "the updates before the checkpoint are not made again"
    assert torch.equal(model.weight, uninterrupted.weight)
    assert _logged(stage) == 4


def test_a_schedule_may_end_early(tmp_path):
    stage = _stage(tmp_path)
    schedule = _schedule(*[[(1.0, 1)]] * 5, until=lambda done, figures: done == 2)
    optimise(stage, _model(), schedule, _loss, CONFIG)
    assert _logged(stage) == 2


def test_an_early_end_is_decided_by_averages_that_a_resume_keeps(tmp_path):
    seen = []

    def stop_at(update):
        def until(done, recent):
            seen.append((done, recent["accuracy"]))
            if done == update:
                raise KeyboardInterrupt

        return until

    def loss(model, item):
        return _loss(model, item)[0], {"accuracy": 1.0}

    updates = [[(1.0, 1)]] * 4
    for update in (2, 9):
        stage = _stage(tmp_path, checkpoint_seconds=0)
        with contextlib.suppress(KeyboardInterrupt):
            optimise(stage, _model(), _schedule(*updates, until=stop_at(update)), loss, CONFIG)
        stage.directory.close()
    # An accuracy of 1 in every update; update 2 is made twice, once before it was kept.
    assert seen == [(n, pytest.approx(1 - 0.9**n)) for n in (1, 2, 2, 3, 4)]


def test_a_stage_that_is_done_is_not_trained_again(tmp_path):
    with pytest.raises(RuntimeError, match=r"stage\.done"):
        optimise(_stage(tmp_path, done=True), _model(), _schedule([(1.0, 1)]), _loss, CONFIG)


@pytest.mark.parametrize("part", ["", "judge"])
def test_moments_are_kept_from_the_first_stage_on_and_outlive_one_without_any(tmp_path, part):
    directory, model = RunDirectory(tmp_path / "run", ""), _model()
    earlier, steps = (), []
    for name in ("first", "nothing to learn", "third"):
        stage = Stage(name, directory, keep_optimiser=not part, earlier=earlier)
        training = stage.part(part, keep_optimiser=True) if part else stage
        if name != "nothing to learn":
            optimise(training, model, _schedule([(1.0, 1)], [(2.0, 1)]), _loss, CONFIG)
            steps.append(load_file(training.artifacts / MOMENTS)["0.step"])
        earlier += (name,)
    assert steps == [2, 4]


def test_moments_are_not_kept_unasked(tmp_path):
    stage = _stage(tmp_path, earlier=("sft",))
    optimise(stage, _model(), _schedule([(1.0, 1)]), _loss, CONFIG)
    assert not (stage.artifacts / MOMENTS).exists()


def test_processes_run_equally_many_items():
    shares = [_share("abcde", rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    counted = sorted(item for share in shares for item, weight in share if weight)
    assert counted == list("abcde")


def test_there_is_no_dropout(tmp_path):
    """Else a resumed run would draw other masks, and ratios would not begin at 1."""
    model, seen = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Linear(3, 1)), []

    def loss(model, item):
        seen.append(model[0](torch.ones(100)))
        return (model(torch.ones(1, 3)) ** 2).sum(), {}

    optimise(_stage(tmp_path), model, _schedule([(1.0, 1)]), loss, CONFIG)
    assert torch.equal(seen[0], torch.ones(100))


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    with pytest.raises(TrainingDiverged, match="learning rate"):
        optimise(_stage(tmp_path), _model(), _schedule([(float("nan"), 1)]), _loss, CONFIG)


def test_batches_take_whole_items_until_full():
    assert batches([3, 2, 4, 1], 4, lambda n: n) == [[3, 2], [4], [1]]
    assert batches([], 4, lambda n: n) == []
