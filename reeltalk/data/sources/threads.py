"""Source `threads`: a forum or feed where people answer each other.

`raw` is a folder with two Parquet files; times are Unix seconds, further columns are ignored::

    threads.parquet   thread_id, title, created; forum, body, author may be missing
    comments.parquet  comment_id, thread_id, parent_id, author, created, text

A thread is an item with the title ``forum: title`` and the body below; its posts are comments. Answering someone else's
comment is a comment event on the comment answered (behaviour ``reply``); a user's first post in a thread that someone
else opened is an item event (``comment``). Posts without an author, and answers to a comment that the file lacks, are
comments but give no comment event.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from reeltalk.data.checks import column_problems, reading, rows_that
from reeltalk.data.raw import EARLIEST, PLACE, SECOND, RawLog
from reeltalk.errors import DataError, all_problems

COLUMNS = {
    "threads": ("thread_id", "title", "created"),
    "comments": ("comment_id", "thread_id", "parent_id", "author", "created", "text"),
}
OPTIONAL = {"forum", "body", "author"}
KEYS = {"thread_id", "comment_id", "parent_id", "author"}
MILLISECONDS = 100_000_000_000  # as seconds this is the year 5138


class Settings(BaseModel):
    """What of the log is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    opened_from: date | None = Field(
        None, description="the first day (UTC) whose threads are read; older ones are left out with all below them"
    )


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read threads and their comments; raises DataError naming file, row and column."""
    paths = {name: raw / f"{name}.parquet" for name in COLUMNS}
    missing = [f"{path} is missing" for path in paths.values() if not path.is_file()]
    all_problems(DataError, f"{raw} is no folder of threads:", missing)
    frames, problems = {}, []
    for name, path in paths.items():
        with reading(path):
            frames[name], found = _checked(pl.scan_parquet(path), COLUMNS[name], path)
            problems += found
    all_problems(DataError, f"{raw} cannot be used as it is:", problems)
    threads, comments = _opened_from(settings.opened_from, frames["threads"], frames["comments"])
    posts = comments.drop("text").unique("comment_id", keep="first", maintain_order=True)
    heading = pl.concat_str("forum", "title", separator=": ", ignore_nulls=True)
    body = pl.when(pl.col("body") != "").then("body")
    return RawLog(
        items=threads.select(
            PLACE,
            pl.col("thread_id").alias("item_key"),
            pl.concat_str(heading, body, separator="\n", ignore_nulls=True).alias("title"),
            "created",
        ),
        item_events=_first_posts(threads, posts),
        comments=comments.select(
            PLACE,
            pl.col("comment_id").alias("comment_key"),
            pl.col("thread_id").alias("item_key"),
            "text",
            "created",
            pl.col("author").alias("user_key"),
            pl.col("parent_id").alias("parent_key"),
        ),
        comment_events=_answers(posts),
        origins={
            "items": str(paths["threads"]),
            "comments": str(paths["comments"]),
            "item_events": f"first posts of {paths['comments']}",
            "comment_events": f"answers of {paths['comments']}",
        },
    )


def _checked(frame: pl.LazyFrame, columns: tuple[str, ...], path: Path) -> tuple[pl.LazyFrame, list[str]]:
    """Keys as text and times in milliseconds; and what is wrong with columns or clock."""
    schema = dict(frame.collect_schema())
    if "threads" in path.name:
        frame = frame.with_columns(
            pl.lit(None, dtype=pl.String).alias(name) for name in sorted(OPTIONAL - schema.keys())
        )
    expected = {name: pl.Int64 if name == "created" else pl.String for name in (*columns, *(OPTIONAL & schema.keys()))}
    takes_whole = KEYS | {"created"}
    as_read = {
        name: expected[name]() if dtype == pl.Null or (dtype.is_integer() and name in takes_whole) else dtype
        for name, dtype in schema.items()
        if name in expected
    }
    if problems := column_problems(as_read, expected, origin=path):
        return frame, problems
    count, examples = rows_that(frame, pl.col("created") >= MILLISECONDS, "created")
    if count:
        problems.append(f"{path}: created looks like milliseconds in {count:,} rows ({examples}); write Unix seconds")
    count, examples = rows_that(frame, pl.col("created") < EARLIEST // SECOND, "created")
    if count:
        problems.append(f"{path}: created is before 2000-01-01 in {count:,} rows ({examples}); write Unix seconds")
    typed = frame.with_columns(pl.col(name).cast(dtype) for name, dtype in expected.items())
    return typed.with_columns(pl.col("created") * SECOND).with_row_index(PLACE, offset=1), problems


def _opened_from(
    first: date | None, threads: pl.LazyFrame, comments: pl.LazyFrame
) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """The threads opened on that day or later, and the comments that are not of an older one."""
    if first is None:
        return threads, comments
    start = datetime.combine(first, time(), UTC).timestamp() * SECOND
    older = threads.filter(pl.col("created") < start)
    return (
        threads.filter(pl.col("created") >= start),
        comments.join(older, on="thread_id", how="anti", maintain_order="left"),
    )


def _first_posts(threads: pl.LazyFrame, posts: pl.LazyFrame) -> pl.LazyFrame:
    """Each user's first post in each thread that they did not open."""
    openers = threads.select("thread_id", pl.col("author").alias("opener"))
    return (
        posts.filter(pl.col("author").is_not_null())
        .join(openers, on="thread_id", how="left", maintain_order="left")
        .filter(pl.col("author").ne_missing(pl.col("opener")))
        .sort("created", maintain_order=True)
        .unique(["author", "thread_id"], keep="first", maintain_order=True)
        .select(
            PLACE,
            pl.col("author").alias("user_key"),
            pl.col("thread_id").alias("item_key"),
            pl.col("created").alias("time"),
            pl.lit("comment").alias("behaviour"),
        )
    )


def _answers(posts: pl.LazyFrame) -> pl.LazyFrame:
    parents = posts.select(pl.col("comment_id").alias("parent_id"), pl.col("author").alias("answered"))
    return (
        posts.filter(pl.col("author").is_not_null())
        .join(parents, on="parent_id", maintain_order="left")
        .filter(pl.col("author").ne_missing(pl.col("answered")))
        .select(
            PLACE,
            pl.col("author").alias("user_key"),
            pl.col("parent_id").alias("comment_key"),
            pl.col("created").alias("time"),
            pl.lit("reply").alias("behaviour"),
        )
    )
