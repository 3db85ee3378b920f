"""Queries over packed histories: each target reads the entries up to its position with a vector of its own.

Shapes: R rows, L positions, Q queries of a row, T targets, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from reeltalk.data.batch import PackedHistory


@dataclass(frozen=True)
class Queries:
    """Targets laid side by side in the rows of their histories.

    slot_T: place of each target in the flat grid [R * Q]. mask_RQL: may the query look at the entry, which is of its
    history and stands at its position or before it; the start entry included.
    """

    slot_T: Tensor
    mask_RQL: Tensor

    @classmethod
    def of(cls, history: PackedHistory, position_T: Tensor) -> Self:
        """position_T indexes the flat [R * L] grid."""
        rows, length = history.segment_RL.shape
        slot_T, width = slots_by_row(position_T // length, rows)
        column_RQ1 = position_T.new_zeros(rows * width).index_copy(0, slot_T, position_T % length).view(rows, width, 1)
        is_past = torch.arange(length, device=position_T.device) <= column_RQ1
        segment_RL = history.segment_RL
        is_same = segment_RL[:, None] == segment_RL.gather(1, column_RQ1[..., 0])[..., None]
        return cls(slot_T, is_past & is_same)

    def laid(self, x_TD: Tensor) -> Tensor:
        """[R, Q, D]; zeros where there is no target."""
        rows, width, _ = self.mask_RQL.shape
        dim = x_TD.shape[1]
        return x_TD.new_zeros(rows * width, dim).index_copy(0, self.slot_T, x_TD).view(rows, width, dim)

    def taken(self, x_RQD: Tensor) -> Tensor:
        """[T, D]: what was found for each target, in their order."""
        return x_RQD.flatten(0, 1)[self.slot_T]


def slots_by_row(row_T: Tensor, num_rows: int) -> tuple[Tensor, int]:
    """Places for targets in a grid [num_rows, width], each in its own row: flat indices [T], and the width."""
    count_R = row_T.bincount(minlength=num_rows)
    width = int(count_R.max())
    order_T = row_T.argsort(stable=True)
    rank_T = torch.arange(len(row_T), device=row_T.device) - (count_R.cumsum(0) - count_R)[row_T[order_T]]
    return torch.empty_like(row_T).index_copy_(0, order_T, row_T[order_T] * width + rank_T), width
