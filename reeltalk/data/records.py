"""Comment records: runs of a user's comment events under one item that nothing else interrupts."""

from __future__ import annotations

import numpy as np
import polars as pl

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
    before, now = slice(None, -1), slice(1, None)
    changes = (user[now] != user[before]) | (item[now] != item[before])
    changes |= time[now] - time[before] > gap_seconds * SECOND
    changes |= _seen_items(item_events, user[now], time[now], num_users) > _seen_items(
        item_events, user[now], time[before] + 1, num_users
    )
    if cuts is not None:
        part = cuts.split_of(time)
        changes |= part[now] != part[before]
    record = np.concatenate([np.zeros(min(len(user), 1), dtype=np.int64), np.cumsum(changes)])
    events = comment_events.with_columns(pl.Series("record_id", record, dtype=ID))
    records = events.group_by("record_id", maintain_order=True).agg(
        pl.col("user_id").first(),
        pl.col("item_id").first(),
        pl.col("time").min().alias("start"),
        pl.col("time").max().alias("end"),
    )
    return records, events


def _seen_items(item_events: pl.DataFrame, user: Ints, moment: Ints, num_users: int) -> Ints:
    """The row after the last item event that each user has strictly before the moment."""
    offsets = offsets_by_id(item_events["user_id"].to_numpy(), num_users)
    return rows_before(offsets, item_events["time"].to_numpy(), user, moment)
