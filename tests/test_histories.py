"""Windows over histories against loops over plain lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import ItemEvent, Record, User, histories_of, random_log
from toy import with_tables

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.histories import (
    Histories,
    request_windows,
    rows_before,
    shared_windows,
    target_windows,
    training_windows,
)
from reeltalk.data.ragged import ranges
from reeltalk.errors import DataError

LENGTHS = st.integers(1, 7)
COUNTS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6)


def users_with(counts: list[tuple[int, int, int]], task: Task) -> list[User]:
    """Users with so many training, validation and test events of the task, two a moment, and three of the other."""
    users = []
    for per_split in counts:
        splits = [split for split, count in zip(Split, per_split, strict=True) for _ in range(count)]
        items = [ItemEvent(time // 2 + 1, 1, split=split) for time, split in enumerate(splits)]
        records = [Record(time // 2 + 1, time // 2 + 1, 1, (), split) for time, split in enumerate(splits)]
        if task == "item":
            users.append(User(items, [Record(time, time + 1, 1, ()) for time in (0, 2, 5)]))
        else:
            users.append(User([ItemEvent(time, 1) for time in (0, 2, 5)], records))
    return users


def anchor(histories: Histories, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, splits and times of what the task predicts."""
    if task == "item":
        return histories.item_offsets, histories.item_split, histories.time
    return histories.record_offsets, histories.record_split, histories.start


@settings(max_examples=60)
@given(counts=COUNTS, length=LENGTHS, has_start=st.booleans(), task=st.sampled_from(["item", "comment"]))
def test_training_windows_hold_every_target_once(
    counts: list[tuple[int, int, int]], length: int, has_start: bool, task: Task
) -> None:
    histories = histories_of(users_with(counts, task))
    offsets, split, times = anchor(histories, task)
    windows = training_windows(histories, task, length=length, has_start=has_start)
    targets = [
        row for first, last in zip(windows.first_target, windows.end, strict=True) for row in range(first, last + 1)
    ]
    expected = [
        row
        for user in range(1, len(counts) + 1)
        for row in range(offsets[user] + (0 if has_start else 1), offsets[user + 1])
        if split[row] == Split.TRAIN
    ]
    assert sorted(targets) == expected
    for window in range(len(windows)):
        user, begin, end, first = (int(getattr(windows, n)[window]) for n in ("user", "begin", "end", "first_target"))
        assert offsets[user] <= begin <= end < offsets[user + 1]
        assert end - begin <= length
        assert begin <= first <= end
        assert (split[begin : end + 1] == Split.TRAIN).all()  # no validation or test event is input or target
        assert windows.request[window] == times[end]
        if begin > offsets[user]:  # a target in the middle of a long history is predicted from enough of it
            assert first - begin >= length - max(1, length // 2)


def test_training_after_a_held_out_event_is_an_error() -> None:
    user = User([ItemEvent(1, 1), ItemEvent(2, 1, split=Split.TEST), ItemEvent(3, 1)])
    with pytest.raises(DataError, match="must come before"):
        training_windows(histories_of([user]), "item", length=5, has_start=True)


def test_nothing_to_train_on_gives_no_window() -> None:
    users = [User(), User([ItemEvent(1, 1, split=Split.VALID)])]
    for task in ("item", "comment"):
        assert len(training_windows(histories_of(users), task, length=5, has_start=True)) == 0
    one_event = histories_of([User([ItemEvent(1, 1)])])
    assert len(training_windows(one_event, "item", length=5, has_start=False)) == 0
    assert len(training_windows(one_event, "item", length=5, has_start=True)) == 1


@pytest.mark.parametrize("task", ["item", "comment"])
@pytest.mark.parametrize("length", [1, 3, 50])
def test_target_windows(task: Task, length: int) -> None:
    """The last `length` events before the target, of the other history those before its time; targets in any order."""
    log = random_log(1, num_users=30)
    histories = log.histories
    offsets, _, times = anchor(histories, task)
    rows = np.random.default_rng(0).permutation(offsets[-1])
    windows = target_windows(histories, task, rows, length=length)
    for window, row in enumerate(rows):
        user = windows.user[window]
        assert offsets[user] <= row < offsets[user + 1]
        own = list(range(offsets[user], row))[-length:]
        assert list(range(windows.begin[window], windows.end[window])) == own
        assert windows.end[window] == windows.first_target[window] == row
        assert windows.request[window] == times[row]
        assert other_rows(histories, windows, window, task) == known_before(histories, task, user, times[row])[-length:]


@pytest.mark.parametrize("length", [1, 3, 50])
def test_shared_windows(length: int) -> None:
    """Each target from the same entries as in a window of its own; some rows are no targets, in any order."""
    histories = random_log(1, num_users=30).histories
    rows = np.random.default_rng(0).permutation(histories.item_offsets[-1])[:-40]
    own = target_windows(histories, "item", rows, length=length)
    windows, place = shared_windows(histories, rows, length=length)
    asked = ranges(windows.first_target, windows.end + 1)
    window = np.repeat(np.arange(len(windows)), windows.num_targets)[place]
    assert np.array_equal(asked[place], rows)
    for name in ("user", "begin", "other_begin"):
        assert np.array_equal(getattr(windows, name)[window], getattr(own, name)), name
    assert (windows.other_end[window] >= own.other_end).all()
    assert (windows.end - windows.begin <= length).all()
    assert (windows.other_end - windows.other_begin <= length).all()
    assert length < 50 or len(windows) == len(np.unique(own.user)) < len(rows)


def test_no_targets_share_no_window() -> None:
    windows, place = shared_windows(random_log(1, num_users=3).histories, np.zeros(0, np.int64), length=5)
    assert len(windows) == len(place) == 0


@pytest.mark.parametrize("task", ["item", "comment"])
@pytest.mark.parametrize("length", [1, 3, 50])
def test_request_windows(task: Task, length: int) -> None:
    """Everything of both histories strictly before the moment; a record counts from its last event."""
    log = random_log(2, num_users=30)
    histories = log.histories
    other: Task = "comment" if task == "item" else "item"
    users = np.repeat(np.arange(1, 31), 3)
    request = np.random.default_rng(0).integers(-1, 45, len(users))
    windows = request_windows(histories, task, users, request, length=length)
    for window, (user, moment) in enumerate(zip(users.tolist(), request.tolist(), strict=True)):
        own = list(range(windows.begin[window], windows.end[window]))
        assert own == known_before(histories, other, user, moment)[-length:]
        assert other_rows(histories, windows, window, task) == known_before(histories, task, user, moment)[-length:]
        assert windows.first_target[window] == windows.end[window]
        assert windows.num_targets[window] == 1


def other_rows(histories: Histories, windows, window: int, task: Task) -> list[int]:  # type: ignore[no-untyped-def]
    return list(range(windows.other_begin[window], windows.other_end[window]))


def known_before(histories: Histories, task: Task, user: int, moment: int) -> list[int]:
    """Rows of the user's other history, seen from the task, that ended before the moment."""
    is_item = task == "item"
    offsets = histories.record_offsets if is_item else histories.item_offsets
    times = histories.end if is_item else histories.time
    return [row for row in range(offsets[user], offsets[user + 1]) if times[row] < moment]


@settings(max_examples=60)
@given(data=st.data())
def test_rows_before(data: st.DataObject) -> None:
    lists = data.draw(st.lists(st.lists(st.integers(-3, 9), max_size=9).map(sorted), min_size=1, max_size=5))
    asked = data.draw(st.lists(st.tuples(st.integers(0, len(lists) - 1), st.integers(-4, 10)), max_size=20))
    offsets = np.concatenate([[0], np.cumsum([len(times) for times in lists])])
    times = np.array([time for row in lists for time in row], dtype=np.int64)
    users, moments = np.array(asked, dtype=np.int64).reshape(-1, 2).T
    expected = [offsets[user] + sum(time < moment for time in lists[user]) for user, moment in asked]
    assert rows_before(offsets, times, users, moments).tolist() == expected


def test_windows_are_picked_like_rows() -> None:
    log = random_log(3)
    windows = training_windows(log.histories, "item", length=4, has_start=True)
    some = windows[np.array([2, 0])]
    assert some.end.tolist() == [windows.end[2], windows.end[0]]
    assert len(windows[1:3]) == 2


def test_histories_of_a_dataset(toy_dataset: Dataset) -> None:
    """Each user's rows are those of the tables, in their order."""
    histories = Histories.of(toy_dataset)
    events, records, comments = toy_dataset.item_events, toy_dataset.comment_records, toy_dataset.comment_events
    assert histories.num_users == toy_dataset.num_users
    for user in range(1, histories.num_users + 1):
        own = events.filter(events["user_id"] == user)
        rows = slice(histories.item_offsets[user], histories.item_offsets[user + 1])
        assert histories.item[rows].tolist() == own["item_id"].to_list()
        assert histories.time[rows].tolist() == own["time"].to_list()
        assert histories.hot_comment[rows].tolist() == own["hot_comment_id"].to_list()
        assert histories.item_split[rows].tolist() == own["split"].to_list()
        talked = records.filter(records["user_id"] == user)
        rows = slice(histories.record_offsets[user], histories.record_offsets[user + 1])
        assert histories.record_item[rows].tolist() == talked["item_id"].to_list()
        assert histories.end[rows].tolist() == talked["end"].to_list()
        for row, record in zip(range(rows.start, rows.stop), talked["record_id"], strict=True):
            chosen = histories.comment[histories.comment_offsets[row] : histories.comment_offsets[row + 1]]
            of_table = comments.filter(comments["record_id"] == record)["comment_id"]
            assert chosen.tolist() == of_table.reverse().unique(maintain_order=True).reverse().to_list()


def test_a_comment_turned_to_again_stands_once_where_it_came_last(toy_dataset: Dataset) -> None:
    events = toy_dataset.comment_events
    again = events.group_by("record_id").first().with_columns(time=pl.col("time") + 10**12).select(events.columns)
    both = pl.concat([events, again]).sort("record_id", "time")
    repeated = with_tables(toy_dataset, comment_events=both)
    once, twice = Histories.of(toy_dataset), Histories.of(repeated)
    assert np.array_equal(twice.comment_offsets, once.comment_offsets)
    for row in range(len(once.record_item)):
        first, *others = once.comments_of(row)
        assert twice.comments_of(row) == [*others, first]


def test_a_dataset_without_comments(toy_dataset: Dataset) -> None:
    tables = {name: toy_dataset.table(name).clear() for name in ("comment_records", "comment_events", "comments")}
    bare = replace(toy_dataset)
    bare.__dict__.update(tables)
    histories = Histories.of(bare)
    assert histories.record_offsets.tolist() == [0] * (toy_dataset.num_users + 2)
    assert len(training_windows(histories, "item", length=5, has_start=True)) > 0
    assert len(training_windows(histories, "comment", length=5, has_start=True)) == 0
