"""Hot comments: what an item's readers had turned to most, as known at a time, never later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl

from reeltalk.data.dataset import ID, Dataset
from reeltalk.data.histories import offsets_by_id, rows_before
from reeltalk.data.ragged import Ints

TOP = 10


@dataclass(frozen=True)
class Leaders:
    """The hottest comment of each item as time went by: which led, and since when; an item's rows lie together.

    The hottest has most comment events; where two have equally many, the one that led earlier stays. Before the first
    comment event it is the oldest comment.
    """

    offsets: Ints
    since: Ints
    comment: Ints

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """By all comment events of a dataset; of those at equal times the lower record's came first."""
        comments, events = dataset.comments, dataset.comment_events
        item_id = comments["item_id"].gather(events["comment_id"] - 1)
        return cls.told_by(
            events.with_columns(item_id).with_row_index("row"), comments=comments, num_items=dataset.num_items
        )

    @classmethod
    def told_by(cls, comment_events: pl.DataFrame, *, comments: pl.DataFrame, num_items: int) -> Self:
        """By `comment_events` (item_id, comment_id, time, row), of which at equal times the lower `row` came first."""
        leading = (
            comment_events.sort("time", "row")
            .with_columns(pl.col("time").cum_count().over("comment_id").alias("count"))
            .with_columns(pl.col("count").cum_max().over("item_id").alias("most"))
            .with_columns(pl.col("most").shift(1, fill_value=0).over("item_id").alias("most_before"))
            .filter(pl.col("count") > pl.col("most_before"))
            .select("item_id", "comment_id", since="time")
        )
        # comments are ordered by (item, created): the first of an item is its oldest
        oldest = (
            comments.group_by("item_id", maintain_order=True)
            .agg(pl.col("comment_id").first(), since=pl.col("created").first())
            .join(leading.group_by("item_id").agg(first=pl.col("since").min()), on="item_id", how="left")
            .filter(pl.col("since") < pl.col("first").fill_null(np.iinfo(np.int64).max))
        )
        rows = pl.concat([oldest.drop("first"), leading]).sort("item_id", "since", maintain_order=True)
        item_id, since, comment = (
            rows[name].to_numpy().astype(np.int64) for name in ("item_id", "since", "comment_id")
        )
        return cls(offsets_by_id(item_id, num_items), since, comment)

    def before(self, time: Ints, item: Ints) -> Ints:
        """The item's hottest comment by what happened strictly before each time; 0 where it had none."""
        row = rows_before(self.offsets, self.since, item, time) - 1
        return np.where(row >= self.offsets[item], np.append(self.comment, 0)[row], 0)


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
