"""Packed rows untangled: each history of a row as a column of a grid of its own, for what runs from its first entry on.

A grid holds histories of like length side by side, time first, so that a recurrent layer takes one step for all of them
and little of it is padding. What lies below a history's end belongs to others: whatever reads a grid must look at no
later row, and its results there are left out.

Shapes: R rows, L positions, S histories, G histories of a grid, T its length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 4
COLUMN_ALIGN = 16  # few distinct shapes, as with batches


@dataclass(frozen=True)
class Segments:
    """Where the entries of packed histories lie in grids, and back.

    cells: for each grid [T, G] the flat cells of the packed rows. place_RL: for each entry its row where the grids lie
    flattened one after another; 0 at padding.
    """

    cells: tuple[Tensor, ...]
    place_RL: Tensor

    @classmethod
    def of(cls, segment_RL: Tensor) -> Self:
        """Lay out the histories that `PackedHistory.segment_RL` tells apart.

        Each fills more than half of its column, but for those of one or two entries.
        """
        columns = segment_RL.shape[1]
        is_entry = (segment_RL > 0).flatten()
        is_first = ((segment_RL > 0) & (segment_RL != F.pad(segment_RL, (1, 0))[:, :-1])).flatten()
        owner = is_first.cumsum(0) - 1
        first_S = is_first.nonzero()[:, 0]
        length_S = owner[is_entry].bincount(minlength=len(first_S))
        if not len(first_S):  # nothing but padding: its first cell stands for all
            first_S = length_S = owner.new_zeros(1)
        widths = [columns]
        while widths[0] > SHORTEST:
            widths.insert(0, 1 << (widths[0] - 1).bit_length() - 1)  # powers of two below the longest
        level_S = torch.bucketize(length_S, torch.tensor(widths, device=length_S.device))
        order_S = level_S.argsort(stable=True)
        cells, places, steps, base = [], [], [], 0
        counts = level_S.bincount(minlength=len(widths)).tolist()
        for width, member_G in zip(widths, torch.split(order_S, counts), strict=True):
            count = len(member_G)
            if not count:
                continue
            size = -(-count // COLUMN_ALIGN) * COLUMN_ALIGN
            time_T1 = torch.arange(width, device=owner.device)[:, None]
            cells.append((F.pad(first_S[member_G], (0, size - count)) + time_T1).clamp_(max=len(owner) - 1))
            places.append(base + torch.arange(count, device=owner.device))
            steps.append(owner.new_full((count,), size))
            base += width * size
        place_S, step_S = (torch.empty_like(first_S).index_copy_(0, order_S, torch.cat(x)) for x in (places, steps))
        owner = owner.clamp_(min=0)
        cell = torch.arange(len(owner), device=owner.device)
        place = place_S[owner] + (cell - first_S[owner]) * step_S[owner]
        return cls(tuple(cells), torch.where(is_entry, place, 0).view(segment_RL.shape))

    def grids(self, x_RL: Tensor) -> list[Tensor]:
        """A number of each entry, such as its item, in grids: [T, G] each."""
        return [x_RL.take(cell_TG) for cell_TG in self.cells]

    def rows(self, grids: list[Tensor]) -> Tensor:
        """Grids [T, G, D] back in packed rows: [R, L, D]; padding holds whatever a history's first entry has."""
        return F.embedding(self.place_RL, torch.cat([x_TGD.flatten(0, 1) for x_TGD in grids]))
