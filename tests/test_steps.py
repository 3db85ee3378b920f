"""Histories untangled from packed rows, step after step, and back; the recurrence over them against torch's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from reeltalk.data.batch import pack
from reeltalk.models.recurrence import gru_states
from reeltalk.models.steps import Steps, slices


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
def test_entries_lie_step_after_step_and_come_back(lengths: list[int]) -> None:
    segment_RL = packed_rows(lengths)
    entry_RL = torch.arange(segment_RL.numel()).view(segment_RL.shape)
    steps = Steps.of(segment_RL)
    expected = [sum(length > step for length in lengths) for step in range(max(lengths, default=0))] or [1]
    assert steps.counts == (expected if any(lengths) else [1])
    entry_P = steps.take(entry_RL)
    is_entry = segment_RL > 0
    assert torch.equal(steps.rows(entry_P[:, None])[..., 0][is_entry], entry_RL[is_entry])
    owner_P = steps.take(segment_RL + 1000 * torch.arange(len(segment_RL))[:, None])
    by_step = [entry_P[now] for now in slices(steps.counts)]
    owners = [owner_P[now] for now in slices(steps.counts)]
    for (earlier, later), (owner, other) in zip(pairwise(by_step), pairwise(owners), strict=True):
        assert torch.equal(earlier[: len(later)] + 1, later), "each history keeps its place"
        assert torch.equal(owner[: len(other)], other)


def test_nothing_but_padding_is_one_entry() -> None:
    steps = Steps.of(torch.zeros(4, 8, dtype=torch.int64))
    assert steps.counts == [1]
    assert steps.rows(torch.ones(len(steps.cell_P), 3)).shape == (4, 8, 3)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("counts", [[4, 3, 3, 1], [2], [1, 1, 1]])
def test_gru_states_and_their_gradients_are_those_of_the_layer(
    counts: list[int], dtype: torch.dtype, layers: int
) -> None:
    torch.manual_seed(0)
    gru = torch.nn.GRU(5, 6, layers, bias=False, dtype=dtype)
    many = sum(counts)
    x_PD = torch.randn(many + 3, 5, dtype=dtype, requires_grad=True)
    inputs = [x_PD, *gru.parameters()]
    expected = gru(PackedSequence(x_PD[:many], torch.tensor(counts)))[0].data
    found = gru_states(gru, x_PD, counts)[:many]
    torch.testing.assert_close(found, expected)
    given = torch.randn_like(expected)
    for x, y in zip(
        torch.autograd.grad(found, inputs, given), torch.autograd.grad(expected, inputs, given), strict=True
    ):
        torch.testing.assert_close(x, y)
