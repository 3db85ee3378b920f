"""Source `tables`: anyone's own log as Parquet or CSV files in reeltalk's schema.

`raw` is a folder with ``items`` and ``item_events`` and, as far as there are any, ``comments``, ``comment_events`` and
``impressions``, each as ``.parquet``, ``.csv`` or ``.csv.gz``. Columns: `reeltalk.data.raw.RAW_TABLES`; those that may
be unknown may be missing. Whole-number keys are read as text, date-time columns of Parquet as their milliseconds.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import track

from reeltalk.data.checks import reading, rows_that
from reeltalk.data.raw import NULLABLE, RAW_TABLES, Clock, RawLog, empty_table
from reeltalk.errors import DataError, all_problems

SUFFIXES = (".parquet", ".csv", ".csv.gz")
REQUIRED = ("items", "item_events")


class Settings(BaseModel):
    """Settings of the source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clock: Clock = Field(default="time", description="'order' where times only order a user's events")


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read a folder of tables; raises DataError naming file, row and column."""
    files: dict[str, Path] = {}
    problems = []
    for name in RAW_TABLES:
        found = [path for suffix in SUFFIXES if (path := raw / f"{name}{suffix}").is_file()]
        if len(found) > 1:
            problems.append(f"{' and '.join(str(path) for path in found)} are both there; keep one of them")
        if found:
            files[name] = found[0]
        elif name in REQUIRED:
            problems.append(f"{raw} holds no {name}; expected one of {', '.join(name + suffix for suffix in SUFFIXES)}")
    all_problems(DataError, f"{raw} is no folder of tables:", problems)

    frames: dict[str, pl.LazyFrame] = {}
    console = Console(stderr=True)
    for name, path in track(files.items(), description="Checking the tables", console=console, transient=True):
        with reading(path):
            frames[name], found_problems = _typed(name, path)
            problems += found_problems
    all_problems(DataError, f"tables in {raw} have values of a wrong type:", problems)
    return RawLog(
        items=frames["items"],
        item_events=frames["item_events"],
        comments=frames.get("comments", empty_table("comments")),
        comment_events=frames.get("comment_events", empty_table("comment_events")),
        impressions=frames.get("impressions"),
        clock=settings.clock,
        origins={name: str(path) for name, path in files.items()},
    )


def _typed(name: str, path: Path) -> tuple[pl.LazyFrame, list[str]]:
    """The table with keys as text, times as integers and nullable columns filled in; and what is wrong in it."""
    is_csv = path.suffix != ".parquet"
    frame = pl.scan_csv(path, infer_schema=False) if is_csv else pl.scan_parquet(path)
    schema = frame.collect_schema()
    casts, problems = [], []
    may_lack = NULLABLE.get(name, set()) - {"title", "text"}
    if is_csv:  # a quoted empty field is as empty as one without quotes
        frame = frame.with_columns(pl.col(column).replace("", None) for column in may_lack & set(schema.names()))
    for column, dtype in RAW_TABLES[name].items():
        value = pl.col(column)
        if column not in schema:
            if column in may_lack:
                casts.append(pl.lit(None, dtype=dtype).alias(column))
        elif is_csv and dtype == pl.Int64:
            is_wrong = value.is_not_null() & value.cast(pl.Int64, strict=False).is_null()
            count, examples = rows_that(frame, is_wrong, column)
            if count:
                problems.append(
                    f"{path}: {column} is no whole number in {count:,} rows ({examples}); write milliseconds"
                )
            casts.append(value.cast(pl.Int64, strict=False))
        elif isinstance(schema[column], pl.Datetime):
            casts.append(value.dt.epoch("ms"))
        elif schema[column].is_integer() or schema[column] in (pl.Categorical, pl.Null):
            casts.append(value.cast(dtype))
    return frame.with_columns(casts), problems
