"""The mask of packed trees against its definition."""

from __future__ import annotations

import pytest
import torch

from stepagent.training.trees.packing import pack
from tests.training.toys import TREES


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
