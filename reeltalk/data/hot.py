"""Hot comments: what an item's readers had turned to most, as known at a time, never later."""

from __future__ import annotations

import polars as pl

from reeltalk.data.dataset import ID

TOP = 10


def hot_comment_at(item_events: pl.DataFrame, *, comment_events: pl.DataFrame, comments: pl.DataFrame) -> pl.Series:
    """For each item event the comment_id with most comment events on its item strictly before that time, or 0.

    Where two have equally many, the one that led earlier stays; before the first comment event it is the oldest
    comment that existed. Of `comment_events` (item_id, comment_id, time, row) at equal times the lower `row`, the place
    in the log, came first.
    """
    leaders = (
        comment_events.sort("time", "row")
        .with_columns(pl.col("time").cum_count().over("comment_id").alias("count"))
        .with_columns(pl.col("count").cum_max().over("item_id").alias("most"))
        .with_columns(pl.col("most").shift(1, fill_value=0).over("item_id").alias("most_before"))
        .filter(pl.col("count") > pl.col("most_before"))
        .select("item_id", "time", pl.col("comment_id").alias("leader"))
    )
    # comments are ordered by (item, created): the first of an item is its oldest
    oldest = comments.group_by("item_id", maintain_order=True).agg(
        pl.col("comment_id").first().alias("oldest"), pl.col("created").first().alias("oldest_created")
    )
    return (
        item_events.select("item_id", "time")
        .with_row_index("_row")
        .sort("time", "_row")
        .join_asof(leaders, on="time", by="item_id", allow_exact_matches=False, check_sortedness=False)
        .join(oldest, on="item_id", how="left")
        .sort("_row")
        .select(
            pl.coalesce("leader", pl.when(pl.col("oldest_created") < pl.col("time")).then("oldest"), 0)
            .cast(ID)
            .alias("hot_comment_id")
        )
        .to_series()
    )


def hot_comments(comment_events: pl.DataFrame, *, comments: pl.DataFrame) -> pl.DataFrame:
    """The ten hottest comments of each item by number of `comment_events`; then the older first; rank 0 is the hottest.

    Both frames hold only what may be known: events and comments before the cut.
    """
    counts = comment_events.group_by("comment_id").agg(pl.len().cast(ID).alias("num_events"))
    return (
        comments.lazy()
        .select("item_id", "comment_id")
        .join(counts.lazy(), on="comment_id", how="left", maintain_order="left")
        .with_columns(pl.col("num_events").fill_null(0))
        # an item's eleventh comment without an event can never be among its ten
        .filter((pl.col("num_events") > 0) | (pl.col("comment_id").cum_count().over("item_id") <= TOP))
        .sort("item_id", -pl.col("num_events"), "comment_id")
        .with_columns((pl.col("comment_id").cum_count().over("item_id") - 1).alias("rank"))
        .filter(pl.col("rank") < TOP)
        .select("item_id", "rank", "comment_id", "num_events")
        .collect()
    )
