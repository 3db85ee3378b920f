"""Every user's two histories as flat arrays, and the windows of them that a batch is made of.

Rows of one user lie together and in time order; `offsets[user_id] : offsets[user_id + 1]` are the rows of a user (row 0
of `offsets` belongs to the padding id and is empty). Nothing here is a Python object a user, so millions of events are
fine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import polars as pl

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ints
from reeltalk.errors import DataError

NOW = np.int64(1) << 42  # the year 2109: a request time later than anything in a log


def offsets_by_id(ids: Ints, num_ids: int) -> Ints:
    """Where each id's rows begin in a column sorted by it: int64 [num_ids + 2], for ids 0..num_ids."""
    return np.searchsorted(ids, np.arange(num_ids + 2)).astype(np.int64)


def rows_before(offsets: Ints, times: Ints, users: Ints, moments: Ints) -> Ints:
    """For each (user, moment): the row after the last of the user's rows whose time is strictly before the moment.

    A binary search over all users at once; `times` must rise within each user's rows.
    """
    if len(users) == 1:  # a request
        begin, end = offsets[users[0]], offsets[users[0] + 1]
        row: Ints = begin + np.searchsorted(times[begin:end], moments)
        return row
    low, high = offsets[users].copy(), offsets[users + 1].copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        is_before = np.zeros(len(low), dtype=bool)
        is_before[open_] = times[middle[open_]] < moments[open_]
        low = np.where(open_ & is_before, middle + 1, low)
        high = np.where(open_ & ~is_before, middle, high)
    return low


class Happened(NamedTuple):
    """An entry as it happened: item_id, time (of a record, its start), comment ids."""

    item: int
    time: int
    comments: list[int]


@dataclass(frozen=True)
class Histories:
    """Item events and comment records of all users; int64 arrays, one entry a row, sorted by user and time."""

    item_offsets: Ints
    item: Ints
    time: Ints
    hot_comment: Ints
    item_split: Ints
    record_offsets: Ints
    record_item: Ints
    start: Ints
    end: Ints
    record_split: Ints
    comment_offsets: Ints  # of the records: comment[comment_offsets[r] : comment_offsets[r + 1]], each comment once
    comment: Ints

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The histories of a dataset's users; of a record each comment once, in the order in which each came last."""
        events, records, comments = dataset.item_events, dataset.comment_records, dataset.comment_events
        column = _columns
        user, item, time, hot, split = column(events, "user_id", "item_id", "time", "hot_comment_id", "split")
        owner, watched, start, end, record_split = column(records, "user_id", "item_id", "start", "end", "split")
        record, comment = without_repeats(*column(comments, "record_id", "comment_id"))
        return cls(
            item_offsets=offsets_by_id(user, dataset.num_users),
            item=item,
            time=time,
            hot_comment=hot,
            item_split=split,
            record_offsets=offsets_by_id(owner, dataset.num_users),
            record_item=watched,
            start=start,
            end=end,
            record_split=record_split,
            comment_offsets=offsets_by_id(record, len(owner) - 1) if len(owner) else np.zeros(1, np.int64),
            comment=comment,
        )

    def without_comments(self) -> Self:
        """Item events alone, without their hot comments."""
        none = np.zeros(0, np.int64)
        return replace(
            self,
            hot_comment=np.zeros_like(self.item),
            record_offsets=np.zeros_like(self.record_offsets),
            record_item=none,
            start=none,
            end=none,
            record_split=none,
            comment_offsets=np.zeros(1, np.int64),
            comment=none,
        )

    def without_items(self) -> Self:
        """Comment records alone."""
        none = np.zeros(0, np.int64)
        return replace(
            self,
            item_offsets=np.zeros_like(self.item_offsets),
            item=none,
            time=none,
            hot_comment=none,
            item_split=none,
        )

    @property
    def num_users(self) -> int:
        return len(self.item_offsets) - 2

    def item_entries(self, rows: range) -> list[Happened]:
        """Item events with their hot comment."""
        columns = (column[rows.start : rows.stop].tolist() for column in (self.item, self.time, self.hot_comment))
        return [Happened(item, time, [hot] if hot else []) for item, time, hot in zip(*columns, strict=True)]

    def record_entries(self, rows: range, *, record_comments: int) -> list[Happened]:
        """Records with the last `record_comments` of their comments."""
        return [
            Happened(int(self.record_item[row]), int(self.start[row]), self.comments_of(row)[-record_comments:])
            for row in rows
        ]

    def comments_of(self, row: int) -> list[int]:
        """The comments of a record."""
        first, last = self.comment_offsets[row : row + 2]
        chosen: list[int] = self.comment[first:last].tolist()
        return chosen


def _columns(frame: pl.DataFrame, *names: str) -> list[Ints]:
    return [frame[name].to_numpy().astype(np.int64) for name in names]


def without_repeats(record: Ints, comment: Ints) -> tuple[Ints, Ints]:
    """The last row of each pair, in the order of the rows."""
    order = np.lexsort((comment, record))
    is_last = np.ones(len(order), np.bool_)
    is_last[:-1] = (np.diff(record[order]) != 0) | (np.diff(comment[order]) != 0)
    rows = np.sort(order[is_last])
    return record[rows], comment[rows]


@dataclass(frozen=True)
class Windows:
    """Stretches of histories, each with the targets to be predicted in it; int64 arrays, one entry a window.

    The anchor is the history that the task predicts: item events for the item task, comment records for the comment
    task. Anchor rows `begin : end` and rows `other_begin : other_end` of the other history are the input. Targets are
    the anchor rows `first_target : end + 1`, each predicted from the rows before it; row `end` is predicted at time
    `request`.
    """

    user: Ints
    begin: Ints
    end: Ints
    first_target: Ints
    other_begin: Ints
    other_end: Ints
    request: Ints

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, rows: Ints | slice) -> Windows:
        return Windows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @property
    def num_targets(self) -> Ints:
        return self.end + 1 - self.first_target


def training_windows(histories: Histories, task: Task, *, length: int, has_start: bool) -> Windows:
    """Windows that hold every training target of the task once.

    A history of at most `length` inputs is one window. A longer one is cut into overlapping windows, so that later
    targets are predicted from `length / 2` to `length` events. Without a start entry the first event of a user is no
    target.
    """
    offsets, split, moments = _anchor(histories, task)
    train = np.concatenate([[0], np.cumsum(split == Split.TRAIN)])
    num_train = train[offsets[1:]] - train[offsets[:-1]]
    user = np.flatnonzero(num_train > (0 if has_start else 1))
    first, last = offsets[user], offsets[user] + num_train[user] - 1  # the last training target's row
    held_out = np.concatenate([[0], np.cumsum(split != Split.TRAIN)])
    if (held_out[last + 1] > held_out[first]).any():
        raise DataError("training events must come before the validation and test events of the same user")

    step = max(1, length // 2)
    inputs = last - first
    num_windows = 1 + np.maximum(0, -(-(inputs - length) // step))
    window_user = np.repeat(np.arange(len(user)), num_windows)
    order = np.arange(len(window_user)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    end = np.minimum(first[window_user] + length + order * step, last[window_user])
    begin = np.maximum(first[window_user], end - length)
    previous_end = np.minimum(first[window_user] + length + (order - 1) * step, last[window_user])
    first_target = np.where(order > 0, previous_end + 1, first[window_user] + (0 if has_start else 1))
    return _with_other(histories, task, user[window_user], begin, end, first_target, moments[end], length)


def target_windows(histories: Histories, task: Task, target_rows: Ints, *, length: int) -> Windows:
    """One window a target, with the last `length` events of each history before it, in the order of the targets."""
    offsets, _, moments = _anchor(histories, task)
    user = np.searchsorted(offsets, target_rows, side="right") - 1
    begin = np.maximum(offsets[user], target_rows - length)
    return _with_other(histories, task, user, begin, target_rows, target_rows, moments[target_rows], length)


def shared_windows(histories: Histories, target_rows: Ints, *, length: int) -> tuple[Windows, Ints]:
    """The windows of `target_windows` for the item task, fewer: a user's targets share one as long as it holds all
    that happened before. Also the place of each target among all targets of the windows.

    For causal models, which predict each from the same entries as in a window of its own.
    """
    order = np.argsort(target_rows, kind="stable")
    rows = target_rows[order]
    own = target_windows(histories, "item", rows, length=length)
    is_whole = (own.begin == histories.item_offsets[own.user]) & (own.other_begin == histories.record_offsets[own.user])
    is_joined = (own.user[1:] == own.user[:-1]) & is_whole[1:]  # with the target before it
    is_first = np.concatenate([[True], ~is_joined])[: len(rows)]
    is_last = np.concatenate([~is_joined, [True]])[: len(rows)]
    windows = replace(own[is_last], first_target=rows[is_first])
    count = windows.num_targets
    window = np.cumsum(is_first) - 1
    place = np.empty_like(rows)
    place[order] = (np.cumsum(count) - count)[window] + rows - windows.first_target[window]
    return windows, place


def request_windows(histories: Histories, task: Task, users: Ints, request: Ints, *, length: int) -> Windows:
    """One window a user: everything before the request's time, the target row being the one that is yet to come."""
    offsets, _, _ = _anchor(histories, task)
    times = histories.time if task == "item" else histories.end
    end = rows_before(offsets, times, users, request)
    begin = np.maximum(offsets[users], end - length)
    return _with_other(histories, task, users, begin, end, end, request, length)


def _anchor(histories: Histories, task: Task) -> tuple[Ints, Ints, Ints]:
    if task == "item":
        return histories.item_offsets, histories.item_split, histories.time
    return histories.record_offsets, histories.record_split, histories.start


def _with_other(
    histories: Histories,
    task: Task,
    user: Ints,
    begin: Ints,
    end: Ints,
    first_target: Ints,
    request: Ints,
    length: int,
) -> Windows:
    other_offsets = histories.record_offsets if task == "item" else histories.item_offsets
    other_times = histories.end if task == "item" else histories.time
    other_end = rows_before(other_offsets, other_times, user, request)
    other_begin = np.maximum(other_offsets[user], other_end - length)
    return Windows(user, begin, end, first_target, other_begin, other_end, request)
