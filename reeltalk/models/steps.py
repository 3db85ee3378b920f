"""Packed rows untangled: the first entries of all histories, then the second ones, for what runs along a history.

The longest history comes first, so those that have an entry at a step are the first of those that had one before, and a
recurrent layer takes one step for all of them without any padding.

Shapes: R rows, L positions, P entries and a few places more, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

PLACE_ALIGN = 128  # few distinct shapes: matrix libraries keep a kernel for every one


@dataclass(frozen=True)
class Steps:
    """Where the entries of packed histories lie step after step, and back.

    counts: how many histories have an entry at each step, none of them 0. cell_P: the flat cells of the packed rows,
    and behind them the first cell a few times. place_RL: for each entry its place in cell_P; 0 at padding.
    """

    counts: list[int]
    cell_P: Tensor
    place_RL: Tensor

    @classmethod
    def of(cls, segment_RL: Tensor) -> Self:
        """Lay out the histories that `PackedHistory.segment_RL` tells apart."""
        is_entry_X = (segment_RL > 0).flatten()
        if not is_entry_X.any():  # nothing but padding: its first cell stands for all
            is_entry_X[0] = True
        is_first_X = (segment_RL != F.pad(segment_RL, (1, 0))[:, :-1]).flatten() & is_entry_X
        is_first_X[0] = is_entry_X[0]
        cell_E = is_entry_X.nonzero()[:, 0]
        owner_E = is_first_X.cumsum(0)[cell_E] - 1
        step_E = cell_E - is_first_X.nonzero()[owner_E, 0]
        length_S = owner_E.bincount()
        rank_S = torch.empty_like(length_S)
        rank_S[length_S.argsort(descending=True, stable=True)] = torch.arange(len(rank_S), device=rank_S.device)
        count_T = step_E.bincount()
        place_E = (count_T.cumsum(0) - count_T)[step_E] + rank_S[owner_E]
        cell_P = cell_E.new_zeros(-(-len(cell_E) // PLACE_ALIGN) * PLACE_ALIGN).index_copy_(0, place_E, cell_E)
        place_X = torch.zeros_like(segment_RL).flatten().index_copy_(0, cell_E, place_E)
        return cls(count_T.tolist(), cell_P, place_X.view(segment_RL.shape))

    def take(self, x_RL: Tensor) -> Tensor:
        """A number of each entry, such as its item, step after step: [P]."""
        return x_RL.take(self.cell_P)

    def rows(self, x_PD: Tensor) -> Tensor:
        """Back in packed rows: [R, L, D]; padding holds what the first entry of the longest history has."""
        return F.embedding(self.place_RL, x_PD)


def slices(counts: list[int]) -> Iterator[slice]:
    """The places of each step, without those behind the last."""
    end = 0
    for count in counts:
        yield slice(end, end := end + count)
