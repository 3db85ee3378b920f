"""Histories untangled from packed rows: each from its first entry on, and back to where it was."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reeltalk.data.batch import pack
from reeltalk.models.segments import Segments


def packed_rows(lengths: list[int]) -> Tensor:
    """Segments of histories of these lengths, packed as a batch packs them."""
    sizes = np.array(lengths, dtype=np.int64)
    packing = pack(sizes, np.zeros_like(sizes))
    segment_RL = torch.zeros(packing.num_rows, packing.item_columns, dtype=torch.int64)
    for window, length in enumerate(lengths):
        first = int(packing.item_column[window])
        segment_RL[int(packing.row[window]), first : first + length] = int(packing.segment[window])
    return segment_RL


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 40), max_size=60))
def test_a_running_sum_starts_anew_with_each_history(lengths: list[int]) -> None:
    """And numbers come back to the entries that they were taken from."""
    segment_RL = packed_rows(lengths)
    entry_RL = torch.arange(segment_RL.numel()).view(segment_RL.shape)
    segments = Segments.of(segment_RL)
    grids = segments.grids(entry_RL)
    came_back, summed = (
        segments.rows([x[..., None] for x in grid])[..., 0] for grid in (grids, [x.cumsum(0) for x in grids])
    )
    is_entry = segment_RL > 0
    assert torch.equal(came_back[is_entry], entry_RL[is_entry])
    is_earlier = entry_RL[:, None, :] <= entry_RL[:, :, None]
    is_same = segment_RL[:, None, :] == segment_RL[:, :, None]
    expected_RL = (entry_RL[:, None, :] * (is_earlier & is_same)).sum(-1)
    assert torch.equal(summed[is_entry], expected_RL[is_entry])


def test_grids_waste_little() -> None:
    """Where one grid as long as the longest history would be four times the entries."""
    lengths = np.random.default_rng(0).geometric(0.1, 512).clip(max=50)
    grids = Segments.of(packed_rows(lengths.tolist())).cells
    assert len(lengths) * 50 > 4 * lengths.sum()
    assert sum(cell.numel() for cell in grids) < 1.75 * lengths.sum()


def test_nothing_but_padding_is_one_grid() -> None:
    segments = Segments.of(torch.zeros(4, 8, dtype=torch.int64))
    assert [cell.shape[0] for cell in segments.cells] == [4]
    assert segments.rows([torch.ones(4, 16, 3)]).shape == (4, 8, 3)
