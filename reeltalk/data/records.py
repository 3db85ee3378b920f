"""Comment records: runs of a user's comment events under one item that nothing else interrupts."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reeltalk.data.dataset import ID
from reeltalk.data.histories import offsets_by_id, rows_before
from reeltalk.data.ragged import Ints
from reeltalk.data.raw import SECOND
from reeltalk.data.splits import Cuts


def comment_records(
    comment_events: pl.DataFrame, *, item_events: pl.DataFrame, num_users: int, gap_seconds: int, cuts: Cuts | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The records (record_id, user_id, item_id, start, end) and the comment events with their record_id.

    `comment_events` (user_id, item_id, comment_id, time, behaviour) and `item_events` (user_id, time) are sorted by
    user and time. A record ends where the user turns to another item, where more than `gap_seconds` pass, where an item
    event of the user lies strictly between two comment events, and at a cut between two parts of the log.
    """
    user, item, time = (comment_events[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "time"))
    item_offsets = offsets_by_id(item_events["user_id"].to_numpy(), num_users)
    starts = record_starts(
        user, item, time, item_offsets=item_offsets, item_time=item_events["time"].to_numpy(), gap_seconds=gap_seconds
    )
    if cuts is not None:
        part = cuts.split_of(time)
        starts[1:] |= part[1:] != part[:-1]
    record = np.cumsum(starts) - 1
    events = comment_events.with_columns(pl.Series("record_id", record, dtype=ID))
    records = events.group_by("record_id", maintain_order=True).agg(
        pl.col("user_id").first(),
        pl.col("item_id").first(),
        pl.col("time").min().alias("start"),
        pl.col("time").max().alias("end"),
    )
    return records, events


def record_starts(
    user: Ints, item: Ints, time: Ints, *, item_offsets: Ints, item_time: Ints, gap_seconds: int
) -> NDArray[np.bool_]:
    """Whether each comment event begins a record, cuts apart; events as in `comment_records`.

    `item_time[item_offsets[user] : item_offsets[user + 1]]` are the times of a user's item events.
    """
    before, now = slice(None, -1), slice(1, None)
    starts = np.ones(len(user), np.bool_)
    starts[1:] = (user[now] != user[before]) | (item[now] != item[before])
    starts[1:] |= time[now] - time[before] > gap_seconds * SECOND
    seen, seen_before = (
        rows_before(item_offsets, item_time, user[now], moment) for moment in (time[now], time[before] + 1)
    )
    starts[1:] |= seen > seen_before
    return starts
