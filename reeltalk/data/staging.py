"""The raw log as checked Parquet files: every source is read once, in bounded memory, before ids are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from reeltalk.data.checks import column_problems, duplicate_keys, reading, unknown_problem, value_problems
from reeltalk.data.raw import PLACE, RAW_TABLES, RawLog
from reeltalk.errors import DataError, all_problems

_REFERENCES = (
    ("item_events", "item_key", "items"),
    ("impressions", "item_key", "items"),
    ("comments", "item_key", "items"),
    ("comment_events", "comment_key", "comments"),
)
_TAKEN = {"user_id", "item_id", "row", PLACE}  # further columns of impressions must not be named so


@dataclass(frozen=True)
class StagedLog:
    """Raw tables as Parquet files in `folder`, checked; `dropped` counts rows left out, by reason."""

    folder: Path
    names: tuple[str, ...]
    dropped: dict[str, int] = field(default_factory=dict)

    def scan(self, name: str) -> pl.LazyFrame:
        """A table with its row number as `row`, which keeps the order of the log."""
        return pl.scan_parquet(self.folder / f"{name}.parquet", row_index_name="row")


def stage(log: RawLog, folder: Path, *, drop_unknown: bool) -> StagedLog:
    """Write the raw tables to `folder` and check them.

    Raises DataError with every problem found: columns, types, nulls, clocks, keys that stand in differing rows, and
    rows that name an unknown item or comment (unless `drop_unknown`, which only counts them).
    """
    frames = {name: getattr(log, name) for name in RAW_TABLES if getattr(log, name) is not None}
    origins = {name: log.origins.get(name, f"table {name!r}") for name in frames}
    problems: list[str] = []
    for name, frame in frames.items():
        with reading(origins[name]):
            schema = frame.collect_schema()
            problems += column_problems(schema, RAW_TABLES[name], origin=origins[name])
        if name == "impressions" and (taken := sorted(_TAKEN & set(schema.names()))):
            problems.append(f"{origins[name]}: columns named {', '.join(taken)} are reeltalk's own; rename them")
    all_problems(DataError, "the log breaks the schema:", problems)

    for name, frame in frames.items():
        columns = [*RAW_TABLES[name], *({PLACE} & set(frame.collect_schema().names()))]
        kept = frame if name == "impressions" else frame.select(columns)
        with reading(origins[name]):
            kept.sink_parquet(folder / f"{name}.parquet", compression="lz4", row_group_size=250_000)
    staged = StagedLog(folder, tuple(frames))
    for name in frames:
        problems += value_problems(name, staged.scan(name), origin=origins[name], clock=log.clock)
    problems += _repeats(staged, origins)
    for name, key, parent in _REFERENCES:
        if name in frames:
            count, problem = unknown_problem(
                staged.scan(name), key, staged.scan(parent).select(key), origin=origins[name]
            )
            staged.dropped[f"{name}_with_unknown_{key}"] = count
            if count and not drop_unknown:
                problems.append(f"{problem}; add the missing {parent}, or set unknown_ids=drop to leave these rows out")
    if staged.scan("items").head(1).collect().is_empty():
        problems.append(f"{origins['items']} holds no item")
    if staged.scan("item_events").head(1).collect().is_empty():
        problems.append(f"{origins['item_events']} holds no event that counts")
    all_problems(DataError, "the log cannot be used as it is:", problems)
    return staged


def _repeats(staged: StagedLog, origins: dict[str, str]) -> list[str]:
    """Leave out rows that repeat an item or comment word for word; tell those that differ."""
    problems = []
    for name, key in (("items", "item_key"), ("comments", "comment_key")):
        differing, repeats = duplicate_keys(name, key, staged.scan(name), origin=origins[name])
        problems += differing
        staged.dropped[f"{name}_repeated"] = len(repeats)
        if len(repeats):
            path = staged.folder / f"{name}.parquet"
            whole = path.rename(path.with_suffix(".all"))
            rest = pl.scan_parquet(whole, row_index_name="row").filter(~pl.col("row").is_in(repeats.implode()))
            rest.drop("row").sink_parquet(path)
            whole.unlink()
    return problems
