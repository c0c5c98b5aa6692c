"""Checkpoints in shards: what one process makes of them, and of damaged ones."""

from __future__ import annotations

import logging

import pytest
import torch

from stepagent.training.runs import checkpoints, sharding
from stepagent.training.runs.checkpoints import (
    DamagedState,
    Position,
    load_moments,
    load_training_state,
    save_training_state,
)
from stepagent.training.runs.directory import MOMENTS


def _training():
    """A model and its optimiser after two updates."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for x in (1.0, 2.0):
        (model(torch.full((1, 3), x)) ** 2).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, optimiser


def _new():
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


@pytest.fixture
def in_shards(monkeypatch):
    """Tensors count as sharded, so that a process writes what it holds as shards: here, all."""
    monkeypatch.setattr(sharding, "are_sharded", lambda tensors: True)


def test_a_state_in_shards_is_that_in_files(tmp_path, in_shards, monkeypatch):
    model, optimiser = _training()
    save_training_state(tmp_path / "shards", model, optimiser, Position(update=2))
    monkeypatch.undo()
    save_training_state(tmp_path / "files", model, optimiser, Position(update=2))
    names = {p.name for p in (tmp_path / "shards").iterdir()}
    assert names == {"trained", "optimiser", "random.safetensors", "position.json"}
    assert (tmp_path / "files" / MOMENTS).is_file()
    states = []
    for kind in ("shards", "files"):
        other, stepper = _new()
        assert load_training_state(tmp_path / kind, other, stepper, 9).update == 2
        assert torch.equal(other.weight, model.weight)
        states.append(stepper.state_dict()["state"])
    for one, two, own in zip(*(s.values() for s in states), optimiser.state.values(), strict=True):
        assert one.keys() == two.keys() == own.keys()
        assert all(torch.equal(one[k], two[k]) and torch.equal(one[k], own[k]) for k in own)


@pytest.mark.parametrize("part", ["trained", "optimiser"])
@pytest.mark.parametrize("damage", ["cut", "empty folder", "of another model"])
def test_damaged_shards_start_the_stage_again(part, damage, tmp_path, in_shards, caplog):
    model, optimiser = _training()
    save_training_state(tmp_path / "state", model, optimiser, Position(update=2))
    [file] = (tmp_path / "state" / part).iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "empty folder":
        file.unlink()
    other = torch.nn.Linear(4 if damage == "of another model" else 3, 2)
    before, stepper = other.weight.clone(), torch.optim.AdamW(other.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING):
        assert load_training_state(tmp_path / "state", other, stepper, 9) == Position()
    assert "its stage starts again" in caplog.text
    assert torch.equal(other.weight, before)
    assert not stepper.state


def test_moments_of_the_stage_before_are_read_from_shards(tmp_path, in_shards):
    _, optimiser = _training()
    checkpoints.save_moments(tmp_path / MOMENTS, optimiser)
    _, stepper = _new()
    load_moments(tmp_path / MOMENTS, stepper)
    saved, loaded = optimiser.state_dict()["state"], stepper.state_dict()["state"]
    assert all(torch.equal(saved[i][k], loaded[i][k]) for i in saved for k in saved[i])
    [file] = (tmp_path / "optimiser").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(DamagedState, match="keep_optimiser"):
        load_moments(tmp_path / MOMENTS, stepper)


def test_a_disk_that_cannot_be_written_is_named(tmp_path, in_shards, monkeypatch):
    model, optimiser = _training()

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.save", full)
    with pytest.raises(OSError, match="cannot write"):
        save_training_state(tmp_path / "state", model, optimiser, Position(update=2))
    assert not list(tmp_path.iterdir())
