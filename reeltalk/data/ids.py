"""Raw keys to internal ids: which users, items and events stay, and the integers that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from reeltalk.data.dataset import ID, TIME
from reeltalk.data.staging import StagedLog

_ROWS_A_PART = 1_000_000


@dataclass(frozen=True)
class Numbered:
    """Users and items with their ids, and the item events that stay, sorted by user, time and place in the log."""

    users: pl.DataFrame  # user_id, user_key
    items: pl.DataFrame  # item_id, item_key, title, created
    item_events: pl.DataFrame  # user_id, item_id, time, behaviour


def number_users_and_items(
    staged: StagedLog, *, drop_repeats: bool, min_user_events: int, min_item_events: int
) -> Numbered:
    """Choose the item events that stay, then give ids: items by (created, item_key), users by user_key.

    Left out and counted in `staged.dropped`: events on unknown items, events before their item was created, and then,
    until nothing more falls, all but the first of a user's consecutive events on one item (`drop_repeats`) and the
    events of users and items with fewer than the minimum.
    """
    items = (
        staged.scan("items")
        .select("item_key", pl.col("title").fill_null(""), pl.col("created").fill_null(0))
        .sort("created", "item_key")
        .with_row_index("item_id", offset=1)
        .with_columns(pl.col("item_id").cast(ID))
        .collect()
    )
    sources = [name for name in ("item_events", "comment_events", "impressions") if name in staged.names]
    users = (
        pl.concat([staged.scan(name).select("user_key") for name in sources])
        .unique()
        .sort("user_key")
        .with_row_index("user_id", offset=1)
        .with_columns(pl.col("user_id").cast(ID))
        .collect(engine="streaming")
    )
    events = (
        staged.scan("item_events")
        .join(items.lazy().select("item_key", "item_id", "created"), on="item_key")
        .join(users.lazy(), on="user_key")
        .select("row", "user_id", "item_id", "time", "behaviour", "created")
        .collect(engine="streaming")
        .sort("user_id", "time", "row")
    )
    events = _counted(staged, "item_events_before_creation", events, events.filter(pl.col("time") >= pl.col("created")))
    is_enough = (pl.len().over("user_id") >= min_user_events) & (pl.len().over("item_id") >= min_item_events)
    is_repeat = (pl.col("item_id") == pl.col("item_id").shift()) & (pl.col("user_id") == pl.col("user_id").shift())
    before = events.clear()
    while events.height != before.height:
        before = events
        if drop_repeats:
            events = _counted(staged, "item_events_repeated", events, events.filter(~is_repeat.fill_null(False)))
        events = _counted(staged, "item_events_below_minimum", events, events.filter(is_enough))
    if min_user_events:
        kept = users.join(events.select("user_id").unique(), on="user_id", how="semi", maintain_order="left")
        users = _counted(staged, "users_below_minimum", users, kept)
    if min_item_events:
        kept = items.join(events.select("item_id").unique(), on="item_id", how="semi", maintain_order="left")
        items = _counted(staged, "items_below_minimum", items, kept)
    users, events = _renumbered(users, events, "user_id")
    items, events = _renumbered(items, events, "item_id")
    return Numbered(
        users.select("user_id", "user_key"),
        items.select("item_id", "item_key", "title", "created"),
        events.select("user_id", "item_id", "time", "behaviour"),
    )


def write_comments(staged: StagedLog, folder: Path, *, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Write the comments table, sorted by (item_id, created, comment_key); returns all its columns but the text.

    A comment of unknown creation time is as old as its item; comments of items that were left out are left out.
    """
    comments = (
        staged.scan("comments")
        .drop("text")
        .join(items.lazy().select("item_key", "item_id", pl.col("created").alias("item_created")), on="item_key")
        .join(users.lazy(), on="user_key", how="left")
        .select(
            "row",
            "comment_key",
            "item_id",
            pl.col("user_id").fill_null(0),
            "parent_key",
            pl.col("created").fill_null(pl.col("item_created")),
        )
        .collect(engine="streaming")
        .sort("item_id", "created", "comment_key")
        .with_columns(pl.int_range(1, pl.len() + 1, dtype=ID).alias("comment_id"))
    )
    parents = comments.select(pl.col("comment_key").alias("parent_key"), pl.col("comment_id").alias("parent_id"))
    comments = comments.join(parents, on="parent_key", how="left", maintain_order="left").select(
        "row", "comment_id", "comment_key", "item_id", "user_id", pl.col("parent_id").fill_null(0), "created"
    )
    del parents
    _count_lost(staged, "comments", "item_key", len(comments))
    _write_with_texts(comments, staged, folder)
    return comments.drop("row")


def _write_with_texts(comments: pl.DataFrame, staged: StagedLog, folder: Path) -> None:
    """Texts are gathered part by part, so that there is one copy of them in memory and no second."""
    texts = staged.scan("comments").select(pl.col("text").fill_null("")).collect(engine="streaming")["text"]
    parts: list[Path] = []
    for begin in range(0, max(len(comments), 1), _ROWS_A_PART):
        part = comments[begin : begin + _ROWS_A_PART]
        path = staged.folder / f"comments-{len(parts):05}.parquet"
        part.drop("row").with_columns(texts.gather(part["row"]).alias("text")).write_parquet(path, compression="lz4")
        parts.append(path)
    del texts
    pl.scan_parquet(parts).sink_parquet(folder / "comments.parquet", row_group_size=250_000)
    for path in parts:
        path.unlink()


def number_comment_events(staged: StagedLog, *, users: pl.DataFrame, comments: pl.DataFrame) -> pl.DataFrame:
    """Comment events (row, user_id, item_id, comment_id, time, behaviour) sorted by user and time.

    Left out and counted: events on unknown or left-out comments, events before their comment was created.
    """
    events = (
        staged.scan("comment_events")
        .join(comments.lazy().select("comment_key", "comment_id", "item_id", "created"), on="comment_key")
        .join(users.lazy(), on="user_key")
        .select("row", "user_id", "item_id", "comment_id", pl.col("time").cast(TIME), "behaviour", "created")
        .collect(engine="streaming")
        .sort("user_id", "time", "row")
    )
    _count_lost(staged, "comment_events", "comment_key", len(events))
    existed = events.filter(pl.col("time") >= pl.col("created"))
    return _counted(staged, "comment_events_before_creation", events, existed).drop("created")


def write_impressions(staged: StagedLog, folder: Path, *, users: pl.DataFrame, items: pl.DataFrame) -> int:
    """Stream the impressions to the dataset with ids for keys, in log order, all other columns kept; says how many."""
    path = folder / "impressions.parquet"
    (
        staged.scan("impressions")
        .drop("row")
        .join(items.lazy().select("item_key", "item_id"), on="item_key", maintain_order="left")
        .join(users.lazy().select("user_key", "user_id"), on="user_key", maintain_order="left")
        .select("user_id", "item_id", "time", pl.exclude("user_id", "item_id", "time", "user_key", "item_key"))
        .sink_parquet(path, row_group_size=250_000)
    )
    num_impressions = _num_rows(pl.scan_parquet(path))
    _count_lost(staged, "impressions", "item_key", num_impressions)
    return num_impressions


def _num_rows(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect().item())


def _count_lost(staged: StagedLog, name: str, key: str, num_kept: int) -> None:
    """Rows that fell with the user, item or comment they belong to."""
    unknown = staged.dropped[f"{name}_with_unknown_{key}"]
    staged.dropped[f"{name}_of_dropped"] = _num_rows(staged.scan(name)) - unknown - num_kept


def _counted(staged: StagedLog, reason: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    staged.dropped[reason] = staged.dropped.get(reason, 0) + before.height - after.height
    return after


def _renumbered(named: pl.DataFrame, events: pl.DataFrame, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Ids 1..N without gaps, in the same order."""
    if named.is_empty() or named[key][-1] == named.height:
        return named, events
    new = named.with_columns(pl.int_range(1, pl.len() + 1, dtype=ID).alias("_new"))
    renamed = events.join(new.select(key, "_new"), on=key, maintain_order="left").drop(key).rename({"_new": key})
    return new.drop(key).rename({"_new": key}), renamed
