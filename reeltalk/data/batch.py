"""Batch: many users' histories at once, packed into rows without padding between them.

A row holds the histories of several users one after the other; `segment` tells them apart and 0 is padding. Both
histories of a user stand in the same row of their grids, so that attention from one to the other is a product of rows.
Each history begins with a start entry, for models that ask for it: what is known of a user before any event.

Shapes: R rows, L positions of a row, K comments of an entry, T targets, C candidates, U distinct comments, E text
width, F candidate features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reeltalk.data.dataset import Split, Task
from reeltalk.data.histories import Histories, Windows
from reeltalk.data.instances import InstanceBatch
from reeltalk.data.ragged import Ints, ranges

# Few distinct shapes: matrix libraries compile and keep a kernel for each, which costs time and memory.
ALIGN = 8
ROW_ALIGN = 4
MAX_PREFIXES = 2_048  # of each history; each is held against all others


@dataclass(frozen=True)
class _Tensors:
    """A record of tensors that moves to a device as one."""

    def to(self, device: torch.device | str) -> Self:
        return type(self)(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True)
class PackedHistory(_Tensors):
    """One kind of history of all users in the batch.

    segment_RL: which user of the row, 1.., 0 at padding. position_RL: row of the position table, -1 at start, padding;
    the index of the entry in its window, where positions are not drawn. item_RL: item_id, 0 at start and padding.
    comment_RLK: rows of `Batch.comment_U`, 0 where there is none: the record's comments, or the item's hot comment.
    known_RL: time (ms) from which the other history may look at the entry. horizon_RL: time of the next target; an
    entry may look at what was known strictly before it.
    """

    segment_RL: Tensor
    position_RL: Tensor
    item_RL: Tensor
    comment_RLK: Tensor
    known_RL: Tensor
    horizon_RL: Tensor

    @property
    def is_start_RL(self) -> Tensor:
        """Which entries are start entries, bool."""
        return (self.position_RL < 0) & (self.segment_RL > 0)


@dataclass(frozen=True)
class ItemTargets(_Tensors):
    """Item task: the item to predict at a position. position_T indexes the flat [R * L] grid, -1: no history at all.

    Ids are in order of creation: at the target's time the ids 1..existing_T existed, and the first first_T of them are
    outdated and do not compete in training. first_T < item_T: a target competes however old it is, with all that came
    after it.
    """

    position_T: Tensor
    item_T: Tensor
    first_T: Tensor
    existing_T: Tensor

    def __getitem__(self, rows: Tensor) -> ItemTargets:
        """Some of the targets, by index or mask."""
        return ItemTargets(*(column[rows] for column in vars(self).values()))


@dataclass(frozen=True)
class CommentTargets(_Tensors):
    """Comment task: candidates under the watched item, the positive in column 0 while training.

    position_T indexes the flattened grid of records; item_T is the watched item; candidate_TC holds rows of
    `Batch.comment_U`, 0 where there is none; feature_TCF the candidates' features at the time of the request.
    """

    position_T: Tensor
    item_T: Tensor
    candidate_TC: Tensor
    feature_TCF: Tensor


@dataclass(frozen=True)
class PackedPair(_Tensors):
    """Both histories of some users."""

    items: PackedHistory
    records: PackedHistory


@dataclass(frozen=True)
class Batch(PackedPair):
    """Both histories of some users. comment_U: distinct comment_ids, 0 first; comment_text_UE: their text vectors."""

    comment_U: Tensor
    comment_text_UE: Tensor


@dataclass(frozen=True)
class AlignmentBatch(PackedPair):
    """The SR model's side of stage 1: both histories of T instances, with texts in place of ids.

    In `items` and `records`, item_RL (titles) and comment_RLK hold rows of the batch's distinct texts, 0 where there is
    none; so do watched_T (0 in the item task) and target_T. item_position_T and record_position_T index the last entry
    of each history in its flat [R * L] grid. has_both_T: neither history is empty. user_T and target_key_T tell where
    instances are of the same user, or have the same target text, also on another process.

    Prefixes are what stands before an entry of a history, as an instance whose target is that entry: first those of
    items (prefix_item_P, the entry before the target, prefix_title_P, its title), then of records (prefix_record_Q,
    prefix_watched_Q, prefix_answer_Q, what was chosen), with user and key of both, P then Q.
    negative_N: texts drawn beside the targets.
    """

    item_position_T: Tensor
    record_position_T: Tensor
    is_item_T: Tensor
    has_both_T: Tensor
    watched_T: Tensor
    target_T: Tensor
    user_T: Tensor
    target_key_T: Tensor
    prefix_item_P: Tensor
    prefix_title_P: Tensor
    prefix_record_Q: Tensor
    prefix_watched_Q: Tensor
    prefix_answer_Q: Tensor
    prefix_user: Tensor
    prefix_key: Tensor
    negative_N: Tensor
    negative_key_N: Tensor

    @classmethod
    def of(cls, instances: InstanceBatch) -> Self:
        """Lay the histories into grids; their entries stand on the drawn positions (eq 3)."""
        histories, windows = instances.histories, instances.windows
        most = int(np.diff(histories.comment_offsets).max(initial=1))
        packed = PackedWindows.of(histories, windows, "item", has_start=True, record_comments=most)
        packing, row_U = packed.packing, np.arange(len(instances.texts))
        for grid, drawn in zip((packed.items, packed.records), instances.positions, strict=True):
            grid["position"] = np.where(grid["position"] < 0, -1, drawn[np.maximum(grid["position"], 0)])
        first_item = packing.row * packing.item_columns + packing.item_column  # the start entry
        first_record = packing.row * packing.record_columns + packing.record_column
        num_items, num_records = windows.end - windows.begin, windows.other_end - windows.other_begin
        item_P, owner_P, place_P = _prefixes(histories.item, histories.item_split, num_items)
        record_Q, owner_Q, place_Q = _prefixes(instances.answer, histories.record_split, num_records)
        target = np.concatenate([histories.item[item_P], instances.answer[record_Q]])
        columns = (
            first_item + num_items,
            first_record + num_records,
            instances.is_item,
            (num_items > 0) & (num_records > 0),
            instances.watched,
            instances.target,
            instances.user,
            instances.text_key[instances.target],
            first_item[owner_P] + place_P,
            histories.item[item_P],
            first_record[owner_Q] + place_Q,
            histories.record_item[record_Q],
            instances.answer[record_Q],
            instances.user[np.concatenate([owner_P, owner_Q])],
            instances.text_key[target],
            instances.negative,
            instances.text_key[instances.negative],
        )
        return cls(
            _packed(packed.items, row_U), _packed(packed.records, row_U), *(torch.from_numpy(each) for each in columns)
        )


def _prefixes(target: Ints, split: Ints, lengths: Ints) -> tuple[Ints, Ints, Ints]:
    """Training entries that have a target text and another entry before them: their rows, histories, places in these.

    Of more than `MAX_PREFIXES`, as many, evenly taken.
    """
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    row = np.flatnonzero((place > 0) & (target > 0) & (split == Split.TRAIN))
    if len(row) > MAX_PREFIXES:
        row = row[np.linspace(0, len(row) - 1, MAX_PREFIXES).astype(np.int64)]
    return row, owner[row], place[row]


@dataclass(frozen=True)
class Packing:
    """Where each window lies: row, number in that row (from 1), first column in either grid. int64 [windows]."""

    row: Ints
    segment: Ints
    item_column: Ints
    record_column: Ints
    num_rows: int
    item_columns: int
    record_columns: int


def pack(item_length: Ints, record_length: Ints) -> Packing:
    """Lay windows into rows: those that need most room first, each in the first row with room for it in both grids."""
    item_room, record_room = _rooms(item_length, record_length)
    if len(item_length) == 1:  # a request
        first, only = np.zeros(1, np.int64), np.ones(1, np.int64)
        return Packing(first, only, first, first, num_rows=1, item_columns=item_room, record_columns=record_room)
    shares = np.stack([item_length / item_room, record_length / record_room])
    order = np.lexsort((-shares.sum(0), -shares.max(0)))
    least_items, least_records = int(item_length.min(initial=item_room)), int(record_length.min(initial=record_room))
    open_rows: list[list[int]] = []  # of each: index, windows, items and records so far
    places: list[list[int]] = []
    num_rows = 0
    for items, records in zip(item_length[order].tolist(), record_length[order].tolist(), strict=True):
        for row in open_rows:
            if row[2] + items <= item_room and row[3] + records <= record_room:
                break
        else:
            row = [num_rows, 0, 0, 0]
            open_rows.append(row)
            num_rows += 1
        row[1] += 1
        places.append(row.copy())
        row[2] += items
        row[3] += records
        if row[2] + least_items > item_room or row[3] + least_records > record_room:
            open_rows.remove(row)
    columns = np.empty((4, len(order)), np.int64)
    columns[:, order] = np.array(places, np.int64).reshape(-1, 4).T
    num_rows = -(-max(1, num_rows) // ROW_ALIGN) * ROW_ALIGN
    row_W, segment_W, item_column_W, record_column_W = columns
    return Packing(
        row_W,
        segment_W,
        item_column_W,
        record_column_W,
        num_rows=num_rows,
        item_columns=item_room,
        record_columns=record_room,
    )


def _rooms(item_length: Ints, record_length: Ints) -> tuple[int, int]:
    """Columns of both grids: what the longest windows need.

    Where one side is short, up to half of the other's, so that it does not close rows in which the other has room:
    twice its share, which leaves the first fit something to choose from.
    """
    items, records = _aligned(int(item_length.max(initial=1))), _aligned(int(record_length.max(initial=1)))
    by_items = 2 * items * int(record_length.sum()) // max(1, int(item_length.sum()))
    by_records = 2 * records * int(item_length.sum()) // max(1, int(record_length.sum()))
    wide_items, wide_records = (_aligned(min(by_records, records // 2)), _aligned(min(by_items, items // 2)))
    return max(items, wide_items), max(records, wide_records)


def _aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN


@dataclass(frozen=True)
class PackedWindows:
    """Windows laid into grids, with comment ids still those of the dataset (numpy): what both tasks share."""

    windows: Windows
    packing: Packing
    items: dict[str, NDArray[np.int64]]
    records: dict[str, NDArray[np.int64]]
    has_start: bool

    @classmethod
    def of(cls, histories: Histories, windows: Windows, task: Task, *, has_start: bool, record_comments: int) -> Self:
        """Pack the windows; of a record, the last `record_comments` comments are used."""
        is_item = task == "item"
        item_begin, item_end = (windows.begin, windows.end) if is_item else (windows.other_begin, windows.other_end)
        record_begin, record_end = (windows.other_begin, windows.other_end) if is_item else (windows.begin, windows.end)
        start = int(has_start)
        packing = pack(item_end - item_begin + start, record_end - record_begin + start)
        item_grid = _Grid(packing, packing.item_column, packing.item_columns)
        record_grid = _Grid(packing, packing.record_column, packing.record_columns)

        items, cells, source = item_grid.fill(
            item_begin, item_end, histories.time, histories.time, windows.request, has_start=has_start
        )
        items["item"].flat[cells] = histories.item[source]
        items["comment"] = item_grid.empty(1)
        items["comment"].reshape(-1)[cells] = histories.hot_comment[source]

        records, cells, source = record_grid.fill(
            record_begin, record_end, histories.end, histories.start, windows.request, has_start=has_start
        )
        records["item"].flat[cells] = histories.record_item[source]
        first, last = histories.comment_offsets[source], histories.comment_offsets[source + 1]
        taken = np.minimum(last - first, record_comments)
        width = int(taken.max(initial=1))
        records["comment"] = record_grid.empty(width)
        slots = ranges(cells * width, cells * width + taken)
        records["comment"].reshape(-1)[slots] = histories.comment[ranges(last - taken, last)]
        return cls(windows, packing, items, records, has_start)

    def target_rows(self) -> tuple[Ints, Ints]:
        """The targets of all windows: their anchor rows, and the index of the window each belongs to."""
        count = self.windows.num_targets
        return ranges(self.windows.first_target, self.windows.end + 1), np.repeat(np.arange(len(count)), count)

    def target_positions(self, target_rows: Ints, window: Ints, task: Task) -> Ints:
        """Flat index of the entry from which each target is predicted; -1 where a history is empty and has no start."""
        is_item = task == "item"
        column = (self.packing.item_column if is_item else self.packing.record_column)[window]
        columns = self.packing.item_columns if is_item else self.packing.record_columns
        entry = target_rows - self.windows.begin[window] - (0 if self.has_start else 1)
        return np.where(entry < 0, -1, self.packing.row[window] * columns + column + entry)

    def batch(self, comment_U: Ints, comment_text_UE: Tensor) -> Batch:
        """The tensors, with comments as rows of the sorted `comment_U`."""
        return Batch(
            _packed(self.items, comment_U),
            _packed(self.records, comment_U),
            torch.from_numpy(comment_U),
            comment_text_UE,
        )

    def comments(self) -> list[Ints]:
        """Comment ids that occur in the histories, for the list of distinct ones."""
        return [self.items["comment"].reshape(-1), self.records["comment"].reshape(-1)]


@dataclass(frozen=True)
class _Grid:
    """One side's grid while it is filled: the first column of each window, and the number of columns."""

    packing: Packing
    column: Ints
    columns: int

    def empty(self, width: int) -> NDArray[np.int64]:
        return np.zeros((self.packing.num_rows, self.columns, width), np.int64)

    def fill(
        self, begin: Ints, end: Ints, known: Ints, moments: Ints, request: Ints, *, has_start: bool
    ) -> tuple[dict[str, NDArray[np.int64]], Ints, Ints]:
        """All but items and comments; the flat cells that those of events go to, and their rows of the histories."""
        start = int(has_start)
        length = end - begin + start
        first_cell = self.packing.row * self.columns + self.column
        cells = ranges(first_cell, first_cell + length)
        shape = (self.packing.num_rows, self.columns)
        window = np.repeat(np.arange(len(length)), length)
        entry = cells - first_cell[window] - start  # -1 at the start entry
        grid = {name: np.zeros(shape, np.int64) for name in ("segment", "item")}
        grid |= {name: np.full(shape, -1) for name in ("position", "known", "horizon")}
        grid["segment"].flat[cells] = self.packing.segment[window]
        grid["position"].flat[cells] = entry
        history_row = begin[window] + entry
        has_next = history_row + 1 < end[window]
        horizon = request[window]
        horizon[has_next] = moments[history_row[has_next] + 1]
        grid["horizon"].flat[cells] = horizon
        is_event = entry >= 0
        cells, history_row = cells[is_event], history_row[is_event]
        grid["known"].flat[cells] = known[history_row]
        return grid, cells, history_row


def _packed(grid: dict[str, NDArray[np.int64]], comment_U: Ints) -> PackedHistory:
    return PackedHistory(
        segment_RL=torch.from_numpy(grid["segment"]),
        position_RL=torch.from_numpy(grid["position"]),
        item_RL=torch.from_numpy(grid["item"]),
        comment_RLK=torch.from_numpy(np.searchsorted(comment_U, grid["comment"])),
        known_RL=torch.from_numpy(grid["known"]),
        horizon_RL=torch.from_numpy(grid["horizon"]),
    )


def distinct_comments(parts: list[Ints]) -> Ints:
    """The sorted distinct comment ids of several arrays, with 0 (none) always first."""
    return np.unique(np.concatenate([np.zeros(1, np.int64), *(part.reshape(-1) for part in parts)]))
