import pytest
import torch

from stepagent.training.config import OptimiserConfig
from stepagent.training.loop import TrainingDiverged, _share, batches, optimise
from stepagent.training.rundir import RunDir


def _setting(tmp_path, name="run"):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    config = OptimiserConfig(
        learning_rate=0.1, schedule="constant", warmup_ratio=0, max_grad_norm=9
    )
    return model, config, RunDir(tmp_path / name, "")


def _loss(model, item):
    x, count = item
    value = (model(torch.full((1, 3), x)) ** 2).sum()
    return value * count, {"seen": float(count)}


def test_an_update_is_one_adamw_step_on_the_mean_over_samples(tmp_path):
    model, config, rundir = _setting(tmp_path)
    twin = torch.nn.Linear(3, 1)
    twin.load_state_dict(model.state_dict())
    optimise(model, [[(1.0, 3), (2.0, 1)]], _loss, lambda i: i[1], config, rundir, "s")
    optimiser = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0)
    loss = (3 * twin(torch.ones(1, 3)) ** 2 + twin(torch.full((1, 3), 2.0)) ** 2).sum() / 4
    loss.backward()
    optimiser.step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-7)


def test_goes_on_from_a_checkpoint_with_the_same_weights(tmp_path):
    plan = [[(1.0, 1)], [(2.0, 1)], [(0.5, 1)], [(1.5, 1)]]
    whole, config, rundir = _setting(tmp_path, "whole")
    optimise(whole, plan, _loss, lambda i: i[1], config, rundir, "s")

    model, config, rundir = _setting(tmp_path, "cut")

    def stop(done, figures):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise(model, plan, _loss, lambda i: i[1], config, rundir, "s",
                 checkpoint_seconds=0, on_update=stop)  # fmt: skip
    rundir.close()
    model, config, rundir = _setting(tmp_path, "cut")
    made = []
    optimise(model, plan, _loss, lambda i: i[1], config, rundir, "s",
             on_update=lambda done, figures: made.append(done))  # fmt: skip
    assert made == [3, 4], "the updates before the checkpoint are not made again"
    assert torch.equal(model.weight, whole.weight)
    assert rundir.metrics.path.read_text().count('"update"') == 4


def test_a_callback_may_end_the_training(tmp_path):
    model, config, rundir = _setting(tmp_path)
    plan = [[(1.0, 1)]] * 5
    optimise(
        model, plan, _loss, lambda i: i[1], config, rundir, "s", on_update=lambda done, _: done == 2
    )
    assert rundir.metrics.path.read_text().count('"update"') == 2


def test_processes_run_equally_many_items():
    shares = [_share("abcde", rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    counted = sorted(item for share in shares for item, weight in share if weight)
    assert counted == list("abcde")


def test_there_is_no_dropout(tmp_path):
    """Else a run that goes on would draw other masks, and ratios would not begin at 1."""
    _, config, rundir = _setting(tmp_path)
    model, seen = torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.Linear(3, 1)), []

    def loss(model, item):
        seen.append(model[0](torch.ones(100)))
        return (model(torch.ones(1, 3)) ** 2).sum(), {}

    optimise(model, [[1]], loss, lambda i: 1, config, rundir, "s")
    assert torch.equal(seen[0], torch.ones(100))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model, config, rundir = _setting(tmp_path)
    with pytest.raises(TrainingDiverged, match="learning rate"):
        optimise(model, [[(float("nan"), 1)]], _loss, lambda i: i[1], config, rundir, "s")


def test_batches_take_whole_items_until_full():
    assert batches([3, 2, 4, 1], 4, lambda n: n) == [[3, 2], [4], [1]]
    assert batches([], 4, lambda n: n) == []
