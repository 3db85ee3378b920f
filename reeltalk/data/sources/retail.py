"""Source `retail`: transactions with times, as in UCI Online Retail.

`raw` is a CSV file (plain, gz or zst), or a folder that holds one, with the columns ``InvoiceNo``, ``StockCode``,
``Description``, ``InvoiceDate``, ``CustomerID``; others are ignored. Cancellations (invoice numbers that begin with C)
and rows without a customer are left out. An item's title is its most frequent description; its creation time is
unknown. Bytes that are no UTF-8 are replaced.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from reeltalk.data.checks import column_problems, reading, rows_that
from reeltalk.data.raw import PLACE, RawLog
from reeltalk.errors import DataError, all_problems

COLUMNS = ("InvoiceNo", "StockCode", "Description", "InvoiceDate", "CustomerID")
DATE_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%m/%d/%Y %H:%M")
SUFFIXES = (".csv", ".csv.gz", ".csv.zst")


class Settings(BaseModel):
    """The source has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read transactions; raises DataError naming file, row and column."""
    path = _only_csv(raw)
    with reading(path):
        frame = pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy")
        problems = column_problems(frame.collect_schema(), dict.fromkeys(COLUMNS, pl.String), origin=path)
        all_problems(DataError, f"{path} is no table of transactions:", problems)
        dates = [pl.col("InvoiceDate").str.to_datetime(form, strict=False, time_unit="ms") for form in DATE_FORMATS]
        time = pl.coalesce(dates).dt.epoch("ms")
        counts = pl.col("CustomerID").is_not_null() & ~pl.col("InvoiceNo").str.starts_with("C").fill_null(False)
        count, examples = rows_that(frame, counts & time.is_null(), "InvoiceDate")
    if count:
        raise DataError(f"{path}: InvoiceDate is no date in {count:,} rows ({examples}); write 2010-12-31 23:59:00")
    bought = (
        frame.with_row_index(PLACE, offset=1)
        .filter(counts)
        .select(
            PLACE,
            pl.col("CustomerID").str.strip_suffix(".0").alias("user_key"),
            pl.col("StockCode").alias("item_key"),
            time.alias("time"),
            pl.lit("buy").alias("behaviour"),
            pl.col("Description").str.strip_chars().alias("title"),
        )
    )
    titles = (
        bought.filter(pl.col("title").fill_null("") != "")
        .group_by("item_key", "title")
        .len()
        .sort("item_key", "len", "title", descending=[False, True, False])
        .unique("item_key", keep="first", maintain_order=True)
    )
    items = bought.select("item_key").unique().sort("item_key").join(titles, on="item_key", how="left")
    return RawLog(
        items=items.select("item_key", "title", pl.lit(None, dtype=pl.Int64).alias("created")),
        item_events=bought.drop("title"),
        origins={"items": str(path), "item_events": f"purchases of {path}"},
    )


def _only_csv(raw: Path) -> Path:
    if raw.is_file():
        return raw
    found = sorted(path for suffix in SUFFIXES for path in raw.glob(f"*{suffix}") if path.is_file())
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{raw} must hold one CSV file ({', '.join(SUFFIXES)}), but there are: {told}")
    return found[0]
