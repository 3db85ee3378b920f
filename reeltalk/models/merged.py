"""Both histories of each user as one sequence in time order, one user a row, those of about the same length together.

Shapes: R rows and L positions of a packed history, U users, of which a group has B, S positions of a sequence,
M entries of all histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from reeltalk.data.batch import PackedHistory, PackedPair

ALIGN = 8  # sequence lengths repeat, see docs/decisions.md
GROUP = 32  # a group's users are as many, or so many times, so that shapes repeat


@dataclass(frozen=True)
class Sequences:
    """Item events and comment records by the time from which they are known, then the entry yet to come, then padding.

    Of two entries at one time the item event is first. item_BS: item_id, 0 at the entry yet to come and at padding.
    is_entry_BS: no padding. is_record_BS: comment records. is_hidden_BS: hidden entries, with the one yet to come.
    """

    item_BS: Tensor
    is_entry_BS: Tensor
    is_record_BS: Tensor
    is_hidden_BS: Tensor


@dataclass(frozen=True)
class Merged:
    """The sequences of a batch, the shortest first, in groups that each pad to their longest: most histories are short.

    slot_RL: where each entry of the packed item history stands among the positions of all groups in a row, the start
    entry as the one yet to come; 0 at padding.
    """

    groups: list[Sequences]
    slot_RL: Tensor

    @classmethod
    def of(cls, pair: PackedPair, is_hidden_RL: Tensor) -> Self:
        """is_hidden_RL: which entries of the item history are hidden, as `reeltalk.models.cloze` has it."""
        items, records = pair.items, pair.records
        is_item_RL, is_record_RL = items.segment_RL > 0, (records.segment_RL > 0) & ~records.is_start_RL
        user_M = torch.cat([_users(items)[is_item_RL], _users(records)[is_record_RL]])
        last = torch.iinfo(torch.int64).max
        time_M = torch.cat(
            [items.known_RL.masked_fill(items.is_start_RL, last)[is_item_RL], records.known_RL[is_record_RL]]
        )
        order_M = time_M.argsort(stable=True)
        order_M = order_M[user_M[order_M].argsort(stable=True)]
        count_U = user_M.bincount()
        place_M = torch.arange(len(user_M), device=user_M.device) - (count_U.cumsum(0) - count_U)[user_M[order_M]]
        sorted_U, order_U = count_U.sort(stable=True)
        shapes = _shapes(sorted_U.tolist())
        lengths_U = torch.cat([count_U.new_full((users,), length) for users, length in shapes])
        start_U = torch.empty_like(lengths_U).index_copy(0, order_U, lengths_U.cumsum(0) - lengths_U)
        slot_M = torch.empty_like(user_M).index_copy(0, order_M, start_U[user_M[order_M]] + place_M)

        def laid_out(of_items_RL: Tensor, of_records_RL: Tensor) -> list[Tensor]:
            """A group's [B, S] each."""
            value_M = torch.cat([of_items_RL[is_item_RL], of_records_RL[is_record_RL]])
            flat = value_M.new_zeros(int(lengths_U.sum())).index_copy(0, slot_M, value_M)
            parts = torch.split(flat, [users * length for users, length in shapes])
            return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

        num_items = int(is_item_RL.sum())
        groups = zip(
            laid_out(items.item_RL, records.item_RL),
            laid_out(is_item_RL, is_record_RL),
            laid_out(torch.zeros_like(is_item_RL), is_record_RL),
            laid_out(is_hidden_RL, torch.zeros_like(is_record_RL)),
            strict=True,
        )
        return cls(
            groups=[Sequences(*group) for group in groups],
            slot_RL=torch.zeros_like(items.segment_RL).masked_scatter(is_item_RL, slot_M[:num_items]),
        )


def longest_sequence(history_length: int) -> int:
    """The most positions that a sequence of two histories has, padding included."""
    return _aligned(2 * history_length + 1)


def _aligned(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def _shapes(counts: list[int]) -> list[tuple[int, int]]:
    """Of each group, its users and positions; `counts` are the entries of each user, the fewest first."""
    shapes: list[tuple[int, int]] = []
    for first in range(0, len(counts), GROUP):
        part = counts[first : first + GROUP]
        length = _aligned(part[-1])
        before = shapes.pop()[0] if shapes and shapes[-1][1] == length else 0
        shapes.append((before + len(part), length))
    return shapes


def _users(history: PackedHistory) -> Tensor:
    """The user of each position, 0.. over all rows: [R, L]; the same in both histories, which have the same order."""
    return history.is_start_RL.flatten().cumsum(0).view_as(history.segment_RL) - 1
