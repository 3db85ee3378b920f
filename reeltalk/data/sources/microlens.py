"""Source `microlens`: short videos, who watched them in which order, and their titles.

`raw` is a folder with ``*_pairs.tsv`` (user, a tab, then videos in order separated by spaces) and ``*_titles.csv``
(columns ``item``, ``title``), as MicroLens publishes them. The order is all that is known of time.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict

from reeltalk.data.checks import column_problems, reading
from reeltalk.data.raw import RawLog
from reeltalk.data.sources.sequences import events_in_order, lines_of
from reeltalk.errors import DataError, all_problems


class Settings(BaseModel):
    """The source has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read(raw: Path, *, settings: Settings) -> RawLog:
    """Read pairs and titles; raises DataError naming file and line."""
    pairs, titles = _only_file(raw, "*_pairs.tsv"), _only_file(raw, "*_titles.csv")
    with reading(titles):
        frame = pl.scan_csv(titles, infer_schema=False)
        problems = column_problems(frame.collect_schema(), {"item": pl.String, "title": pl.String}, origin=titles)
    all_problems(DataError, f"{titles} is no table of titles:", problems)
    return RawLog(
        items=frame.select(pl.col("item").alias("item_key"), "title", pl.lit(None, dtype=pl.Int64).alias("created")),
        item_events=events_in_order(lines_of(pairs), origin=pairs, behaviour="watch"),
        clock="order",
        origins={"items": str(titles), "item_events": str(pairs)},
    )


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder} must hold one file named {pattern}, but there are: {told}")
    return found[0]
