"""The raw log: what every source turns its format into, and what anyone may write as Parquet or CSV (`tables`).

Keys are strings. Times are integer milliseconds since 1970, UTC; a source whose times only order events counts days
from `ORDER_START` and says ``clock="order"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

SECOND = 1_000
DAY = 86_400 * SECOND
EARLIEST = 946_684_800_000  # 2000-01-01: an earlier time means another unit or a broken clock
ORDER_START = EARLIEST

Clock = Literal["time", "order"]

KEY = pl.String
RAW_TABLES: dict[str, dict[str, type[pl.DataType]]] = {
    # created null: unknown, the item was always there
    "items": {"item_key": KEY, "title": pl.String, "created": pl.Int64},
    # only events that count (like, collect, share, buy, ..), in the order of the log where times are equal
    "item_events": {"user_key": KEY, "item_key": KEY, "time": pl.Int64, "behaviour": pl.String},
    # created null: unknown, taken as the item's; user_key null: unknown author; parent_key null: no answer
    "comments": {
        "comment_key": KEY,
        "item_key": KEY,
        "text": pl.String,
        "created": pl.Int64,
        "user_key": KEY,
        "parent_key": KEY,
    },
    "comment_events": {"user_key": KEY, "comment_key": KEY, "time": pl.Int64, "behaviour": pl.String},
    # what was shown; any further columns (flags, watch time) are kept. Never part of a history
    "impressions": {"user_key": KEY, "item_key": KEY, "time": pl.Int64},
}
NULLABLE = {
    "items": {"title", "created"},
    "comments": {"text", "created", "user_key", "parent_key"},
}


# the row or line of its file that a row is from, for errors, where a source leaves rows out or makes several of one
PLACE = "_place"


def empty_table(name: str) -> pl.LazyFrame:
    """A table of `RAW_TABLES` without rows, for a source that has none of it."""
    return pl.LazyFrame(schema=RAW_TABLES[name])


@dataclass(frozen=True)
class RawLog:
    """A log in the raw schema; every frame has the columns of `RAW_TABLES`, in any order.

    `origins` says in words where each table came from (a file's name), for errors. `oracle` is the simulator's truth,
    saved beside the tables as ``oracle.npz``.
    """

    items: pl.LazyFrame
    item_events: pl.LazyFrame
    comments: pl.LazyFrame = field(default_factory=lambda: empty_table("comments"))
    comment_events: pl.LazyFrame = field(default_factory=lambda: empty_table("comment_events"))
    impressions: pl.LazyFrame | None = None
    clock: Clock = "time"
    origins: Mapping[str, str] = field(default_factory=dict)
    oracle: Mapping[str, np.ndarray[Any, Any]] | None = None
