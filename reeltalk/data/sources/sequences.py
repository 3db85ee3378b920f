"""Source `sequences`: one user a line with the items in order, and one item a line with its text.

`raw` is a folder with two text files::

    user_sequence.txt                         USER ITEM ITEM ITEM ..   separated by spaces or tabs
    item_generative_indexing_phase_0.txt      ITEM words of its text

The order is all that is known of time.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from reeltalk.data.checks import LATEST, reading
from reeltalk.data.raw import DAY, ORDER_START, PLACE, RawLog
from reeltalk.errors import DataError, all_problems

MOST_ITEMS = (LATEST - ORDER_START) // DAY  # events of a user are a day apart


class Settings(BaseModel):
    """Names of the two files in the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users_file: str = Field(default="user_sequence.txt", description="one user a line: user, then items in order")
    items_file: str = Field(
        default="item_generative_indexing_phase_0.txt", description="one item a line: item, then its text"
    )


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read sequences and item texts; raises DataError naming file and line."""
    users_path, items_path = raw / settings.users_file, raw / settings.items_file
    missing = [f"{path} is missing" for path in (users_path, items_path) if not path.is_file()]
    all_problems(DataError, f"{raw} is no folder of sequences (set source.users_file, source.items_file):", missing)
    parts = pl.col("line").str.replace(r"\s", " ").str.splitn(" ", 2).struct
    return RawLog(
        items=lines_of(items_path).select(
            pl.col("line_number").alias(PLACE),
            parts.field("field_0").alias("item_key"),
            parts.field("field_1").str.strip_chars().alias("title"),
            pl.lit(None, dtype=pl.Int64).alias("created"),
        ),
        item_events=events_in_order(lines_of(users_path), origin=users_path, behaviour="event"),
        clock="order",
        origins={"items": str(items_path), "item_events": str(users_path)},
    )


def lines_of(path: Path) -> pl.LazyFrame:
    """The lines of a text file (plain, gz or zst) that are not blank: line_number from 1, line."""
    lines = pl.scan_csv(
        path, has_header=False, separator="\x1f", quote_char=None, infer_schema=False, new_columns=["line"]
    )
    stripped = lines.with_row_index("line_number", offset=1).with_columns(pl.col("line").str.strip_chars())
    return stripped.filter(pl.col("line") != "")


def events_in_order(lines: pl.LazyFrame, *, origin: Path, behaviour: str) -> pl.LazyFrame:
    """Item events from lines ``USER ITEM ITEM ..``, a day apart from `ORDER_START` on.

    Raises DataError where a user stands in two lines, without any item, or with more items than the clock has days.
    """
    with reading(origin):
        users = (
            lines.select("line_number", pl.col("line").str.extract_all(r"\S+").alias("keys"))
            .select(
                "line_number",
                pl.col("keys").list.first().alias("user_key"),
                pl.col("keys").list.slice(1).alias("item_key"),
            )
            .collect()
        )
    without = users.filter(pl.col("item_key").list.len() == 0)
    twice = users.filter(~pl.col("user_key").is_first_distinct())
    too_many = users.filter(pl.col("item_key").list.len() > MOST_ITEMS)
    problems = []
    for rows, what in (
        (without, "has no item; leave the line out"),
        (twice, "stands in an earlier line too; join the lines"),
        (too_many, f"has more than {MOST_ITEMS:,} items; keep the last of them"),
    ):
        if len(rows):
            number, user = rows.select("line_number", "user_key").row(0)
            more = f" (and {len(rows) - 1:,} more lines like it)" if len(rows) > 1 else ""
            problems.append(f"line {number}: user {user!r} {what}{more}")
    all_problems(DataError, f"{origin} is not one user a line:", problems)
    return (
        users.lazy()
        .with_columns(pl.int_ranges(pl.col("item_key").list.len()).alias("step"))
        .explode("item_key", "step")
        .select(
            pl.col("line_number").alias(PLACE),
            "user_key",
            "item_key",
            (ORDER_START + pl.col("step").cast(pl.Int64) * DAY).alias("time"),
            pl.lit(behaviour).alias("behaviour"),
        )
    )
