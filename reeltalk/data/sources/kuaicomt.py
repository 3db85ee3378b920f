"""KuaiComt: short videos, their comments, and what users did with both, as five published CSV files.

Item events that count are likes, collects and shares (`is_forward`); a row with several flags is the first of these.
Every row of user_video_inter.csv is an impression. Comment events are likes and replies; a row with both is a like.
Comments bear no creation time, so they exist as long as their item does; their totals (`comment_like_cnt`, ..) were
taken after the log ended and are not read. An item is created at the start of its upload day, or when it was first seen
if that is earlier. user_features.csv is not read: no model uses these features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track

from reeltalk.data.checks import LATEST
from reeltalk.data.csv_lines import broken_at
from reeltalk.data.raw import EARLIEST, PLACE, SECOND, RawLog
from reeltalk.errors import DataError, all_problems, nearest

UPLOAD_TIMEZONE = "Asia/Shanghai"


class Settings(BaseModel):
    """What a user may set of this source: whether the impressions, most of the log, are kept in the dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    impressions: bool = True


@dataclass(frozen=True)
class Column:
    """What a column must hold: whether it must be there (`is_needed`), and whether all its fields must be filled."""

    dtype: type[pl.DataType]
    expected: str
    is_needed: bool = True
    is_filled: bool = True
    low: float | date | None = None
    high: float | date | None = None


ID = Column(pl.Int64, "a whole number")
NUMBER = Column(pl.Int64, "a whole number", is_needed=False, is_filled=False)
DURATION = Column(pl.Float64, "a number", is_needed=False, is_filled=False)
TEXT = Column(pl.String, "text", is_filled=False)
FLAG = Column(pl.Int64, "0 or 1", low=0, high=1)
OTHER_FLAG = Column(pl.Int64, "0 or 1", is_needed=False, is_filled=False, low=0, high=1)

ITEM_LOG, COMMENT_LOG = "user_video_inter.csv", "user_comment_inter.csv"
ITEMS, COMMENTS = "video_features.csv", "comment_features.csv"
FILES: dict[str, dict[str, Column]] = {
    ITEMS: {
        "video_id": ID,
        "upload_dt": Column(pl.Date, "a date like 2023-07-06 since 2000", is_filled=False, low=date(2000, 1, 1)),
        "caption": TEXT,
    },
    COMMENTS: {"comment_id": ID, "video_id": ID, "comment_content": TEXT},
    COMMENT_LOG: {
        "user_id": ID,
        "comment_id": ID,
        "photo_id": ID,
        "time_stamp": Column(
            pl.Int64, "seconds since 1970, between 2000 and 2100", low=EARLIEST // SECOND, high=LATEST // SECOND
        ),
        "is_like": FLAG,
        "is_reply": FLAG,
    },
    ITEM_LOG: {
        "user_id": ID,
        "video_id": ID,
        "time_ms": Column(pl.Float64, "milliseconds since 1970, between 2000 and 2100", low=EARLIEST, high=LATEST),
        "is_like": FLAG,
        "is_collect": FLAG,
        "is_forward": FLAG,
        **dict.fromkeys(("is_click", "is_follow", "is_comment", "is_hate", "long_view"), OTHER_FLAG),
        **dict.fromkeys(("p_hourmin", "profile_stay_time", "comment_stay_time"), NUMBER),
        **dict.fromkeys(("play_time_ms", "duration_ms"), DURATION),
    },
}


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read the CSV files in the folder `raw`, in bounded memory: the frames scan the files when they are collected.

    Raises DataError that tells every missing file or column, every field that is empty, of another type or out of range
    (with its row, counted from 1 after the header), and the line where a file stops being CSV.
    """
    present = _check(raw)
    log, comment_log = _scan(raw / ITEM_LOG), _scan(raw / COMMENT_LOG)
    item = pl.col("video_id").cast(pl.String).alias("item_key")
    user = pl.col("user_id").cast(pl.String).alias("user_key")
    comment = pl.col("comment_id").cast(pl.String).alias("comment_key")
    time = pl.col("time_ms").cast(pl.Int64).alias("time")
    no_text = pl.lit(None, pl.String)
    kept = [name for name in present[ITEM_LOG] if name not in ("user_id", "video_id", "time_ms")]
    impressions = log.select(user, item, time, *kept).with_columns(cs.matches("^(is_.*|long_view)$").cast(pl.Boolean))
    return RawLog(
        items=_items(raw),
        item_events=log.with_row_index(PLACE, offset=1)
        .select(
            PLACE,
            user,
            item,
            time,
            behaviour=_first_set({"is_like": "like", "is_collect": "collect", "is_forward": "share"}),
        )
        .drop_nulls("behaviour"),
        comments=_scan(raw / COMMENTS).select(
            comment,
            item,
            text=pl.col("comment_content").fill_null(""),
            created=pl.lit(None, pl.Int64),
            user_key=no_text,
            parent_key=no_text,
        ),
        comment_events=comment_log.with_row_index(PLACE, offset=1)
        .select(
            PLACE,
            user,
            comment,
            time=pl.col("time_stamp") * SECOND,
            behaviour=_first_set({"is_like": "like", "is_reply": "reply"}),
        )
        .drop_nulls("behaviour"),
        impressions=impressions if settings.impressions else None,
        origins={
            "items": ITEMS,
            "item_events": ITEM_LOG,
            "comments": COMMENTS,
            "comment_events": COMMENT_LOG,
            "impressions": ITEM_LOG,
        },
    )


def _scan(path: Path) -> pl.LazyFrame:
    """The file with the columns we know typed; a field of another type is null (so check first)."""
    types = {name: column.dtype for name, column in FILES[path.name].items()}
    return pl.scan_csv(path, schema_overrides=types, infer_schema=False, ignore_errors=True)


def _items(raw: Path) -> pl.LazyFrame:
    seen = pl.concat(
        [
            _scan(raw / ITEM_LOG).group_by("video_id").agg(pl.col("time_ms").min().cast(pl.Int64).alias("seen")),
            _scan(raw / COMMENT_LOG)
            .group_by(pl.col("photo_id").alias("video_id"))
            .agg((pl.col("time_stamp").min() * SECOND).alias("seen")),
        ]
    )
    first_seen = seen.group_by("video_id").agg(pl.col("seen").min()).collect(engine="streaming")
    uploaded = pl.col("upload_dt").cast(pl.Datetime("ms")).dt.replace_time_zone(UPLOAD_TIMEZONE).dt.epoch("ms")
    return (
        _scan(raw / ITEMS)
        .join(first_seen.lazy(), on="video_id", how="left", maintain_order="left")
        .select(
            pl.col("video_id").cast(pl.String).alias("item_key"),
            title=pl.col("caption").fill_null(""),
            created=pl.when(uploaded.is_not_null()).then(pl.min_horizontal(uploaded, "seen")),
        )
    )


def _first_set(behaviours: Mapping[str, str]) -> pl.Expr:
    return pl.coalesce(pl.when(pl.col(flag) == 1).then(pl.lit(name)) for flag, name in behaviours.items())


def _check(raw: Path) -> dict[str, list[str]]:
    """The columns we know that each file has; raises DataError with all problems of all files."""
    heading = f"the KuaiComt log in {raw} cannot be used:"
    missing = [f"{name} is missing; expected the published files" for name in FILES if not (raw / name).is_file()]
    all_problems(DataError, heading, missing)
    problems: list[str] = []
    present: dict[str, list[str]] = {}
    console = Console(stderr=True)
    for name, columns in track(FILES.items(), description="Checking the files", console=console, transient=True):
        try:
            header = pl.scan_csv(raw / name, infer_schema=False).collect_schema().names()
            present[name] = [column for column in columns if column in header]
            absent = [column for column in columns if columns[column].is_needed and column not in header]
            problems += [f"{name} lacks column {column!r};{nearest(column, header)}" for column in absent]
            problems += _bad_columns(raw / name, {column: columns[column] for column in present[name]})
        except (pl.exceptions.PolarsError, OSError) as error:
            problems.append(f"{name}: {broken_at(raw / name) or str(error).splitlines()[0]}")
    all_problems(DataError, heading, problems)
    return present


def _is_bad(name: str, column: Column) -> pl.Expr:
    """Whether a parsed value is unfit; an empty field and one of another type are both null here."""
    value = pl.col(name)
    bad = value.is_null()
    if column.low is not None:
        bad |= value < column.low
    if column.high is not None:
        bad |= value > column.high
    return bad


def _bad_columns(path: Path, columns: Mapping[str, Column]) -> Iterator[str]:
    """One problem a column with unfit fields, found in one pass over the file; each suspect column costs another."""
    frame = _scan(path)
    bad_rows = [_is_bad(name, column).sum().alias(name) for name, column in columns.items()]
    # Columns that nobody reads are parsed here once: only then does polars tell of lines with too many fields.
    counts = frame.select(*bad_rows, pl.exclude(list(columns)).null_count())
    suspects = {name for name, count in counts.collect(engine="streaming").row(0, named=True).items() if count}
    for name, column in columns.items():
        if name not in suspects or (column.dtype == pl.String and not column.is_filled):
            continue
        as_written = pl.scan_csv(path, infer_schema=False).select(as_written=pl.col(name).replace("", None))
        bad = _is_bad(name, column) if column.is_filled else _is_bad(name, column) & pl.col("as_written").is_not_null()
        first = (
            pl.concat([frame.select(name), as_written], how="horizontal")
            .with_row_index("row", offset=1)
            .filter(bad)
            .select(pl.len().alias("count"), pl.col("row", "as_written", name).first())
            .collect(engine="streaming")
            .row(0, named=True)
        )
        if first["count"]:
            yield _describe(path.name, name, column, first)


def _describe(file: str, name: str, column: Column, first: Mapping[str, Any]) -> str:
    found = "is empty" if first["as_written"] is None else f"is {first['as_written'][:60]!r}"
    others = f" (and so in {first['count'] - 1} more rows)" if first["count"] > 1 else ""
    value, hint = first[name], ""
    if name == "time_ms" and value is not None and EARLIEST <= value * SECOND <= LATEST:
        hint = "; it looks like seconds: multiply by 1000"
    if name == "time_stamp" and value is not None and EARLIEST <= value <= LATEST:
        hint = "; it looks like milliseconds: divide by 1000"
    return f"{file}: {name} {found} in row {first['row']}{others}, expected {column.expected}{hint}"
