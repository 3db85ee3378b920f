"""What is wrong with a raw table, in words that name the file, the row, the value and the way out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from reeltalk.data.csv_lines import broken_at
from reeltalk.data.raw import EARLIEST, NULLABLE, ORDER_START, PLACE, RAW_TABLES, Clock
from reeltalk.errors import DataError, nearest

LATEST = 4_102_444_800_000  # 2100-01-01
EXAMPLES = 3
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error of Python or polars says that a file could not grow."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return True
    told = re.search(r"os error (\d+)", str(error))
    return told is not None and int(told[1]) in _DISK


@contextmanager
def reading(origin: object) -> Iterator[None]:
    """Raise DataError naming `origin` where polars cannot read it: broken gz, missing file, bad bytes."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if is_full_disk(error):
            raise
        path = Path(str(origin))
        where = broken_at(path) if path.name.endswith((".csv", ".csv.gz")) and path.is_file() else None
        first_line = where or str(error).strip().split("\n")[0]
        raise DataError(
            f"{origin} cannot be read: {first_line}; is the file whole and of the documented format?"
        ) from error


def column_problems(
    found: Mapping[str, pl.DataType], expected: Mapping[str, type[pl.DataType]], *, origin: object
) -> list[str]:
    """Columns that are missing, of a wrong type, or there twice."""
    problems = []
    for name, dtype in expected.items():
        if name not in found:
            problems.append(f"{origin} lacks column {name!r};{nearest(name, found)}")
        elif found[name] != dtype:
            problems.append(f"{origin}: column {name!r} is {found[name]}, expected {dtype.__name__}")
        if f"{name}_duplicated_0" in found:  # what polars calls the second of a CSV header
            problems.append(f"{origin} has column {name!r} more than once; keep one")
    return problems


def rows_that(frame: pl.LazyFrame, condition: pl.Expr, column: str) -> tuple[int, str]:
    """How many rows meet a condition, and the first few of them as ``row 7: 'value', ..`` (the first row is 1)."""
    rows = _numbered(frame, pl.col(column), condition.fill_null(False).alias("_is_bad")).filter("_is_bad")
    count, examples = pl.collect_all([rows.select(pl.len()), rows.sort("_row").head(EXAMPLES)], engine="streaming")
    told = ", ".join(f"row {row}: {value!r}" for row, value in examples.select("_row", column).iter_rows())
    return int(count.item()), told


def _numbered(frame: pl.LazyFrame, *columns: pl.Expr) -> pl.LazyFrame:
    """Some columns, and as `_row` where each row stands in its file, from 1."""
    if PLACE in frame.collect_schema():
        return frame.select(pl.col(PLACE).alias("_row"), *columns)
    return frame.select(*columns).with_row_index("_row", offset=1)


def value_problems(name: str, frame: pl.LazyFrame, *, origin: object, clock: Clock = "time") -> list[str]:
    """Nulls and empty keys where a value is needed, and times that cannot be milliseconds since 1970."""
    too_early = "is it in seconds? multiply by 1000; is a creation time unknown? leave it empty"
    if clock == "order":
        too_early = (
            f"where times merely order events, begin at {ORDER_START}; is a creation time unknown? leave it empty"
        )
    faults: dict[str, tuple[pl.Expr, str]] = {}
    for column, dtype in RAW_TABLES[name].items():
        value = pl.col(column)
        if column not in NULLABLE.get(name, set()):
            faults[f"{column} is null"] = (value.is_null(), "fill it in, or leave the row out")
        if column.endswith("_key"):
            faults[f"{column} is empty"] = (value == "", "a key needs at least one character")
        if dtype == pl.Int64:
            faults[f"{column} is after 2100"] = (value >= LATEST, "is it in microseconds? write milliseconds")
            faults[f"{column} is before 2000-01-01"] = (value < EARLIEST, too_early)
    found = frame.select(condition.any().alias(fault) for fault, (condition, _) in faults.items()).collect(
        engine="streaming"
    )
    problems = []
    for fault, (condition, way_out) in faults.items():
        if found[fault].item():
            count, examples = rows_that(frame, condition, fault.split(" ")[0])
            problems.append(f"{origin}: {fault} in {count:,} rows ({examples}); {way_out}")
    return problems


def duplicate_keys(name: str, key: str, frame: pl.LazyFrame, *, origin: object) -> tuple[list[str], pl.Series]:
    """Problems for keys whose rows differ, and the row numbers (from 0) of harmless repeats that can be left out."""
    distinct, total = frame.select(pl.col(key).n_unique(), pl.len().alias("rows")).collect(engine="streaming").row(0)
    if distinct == total:
        return [], pl.Series("_row", [], dtype=pl.UInt32)
    repeated = frame.group_by(key).len().filter(pl.col("len") > 1).select(key)
    place = pl.col(PLACE) if PLACE in frame.collect_schema() else pl.col("_row") + 1
    numbered = frame.with_row_index("_row").with_columns(_told=place)
    rows = numbered.join(repeated, on=key, how="semi").collect(engine="streaming").sort("_row")
    content = pl.struct(RAW_TABLES[name].keys())
    differing = (
        rows.group_by(key, maintain_order=True)
        .agg(content.n_unique().alias("versions"), pl.col("_told"))
        .filter(pl.col("versions") > 1)
    )
    if differing.is_empty():
        return [], rows.filter(~pl.col(key).is_first_distinct())["_row"]
    examples = "; ".join(
        f"{value!r} in rows {', '.join(str(row) for row in found[:EXAMPLES])}"
        for value, found in differing.head(EXAMPLES).select(key, "_told").iter_rows()
    )
    problem = (
        f"{origin}: {differing.height:,} {key}s stand in several rows that differ ({examples}); keep one row a key"
    )
    return [problem], rows["_row"].clear()


def unknown_problem(events: pl.LazyFrame, key: str, known: pl.LazyFrame, *, origin: object) -> tuple[int, str]:
    """How many rows name a `key` that `known` lacks, and the sentence that says so."""
    unknown = _numbered(events, pl.col(key)).join(known, on=key, how="anti")
    count, examples = pl.collect_all(
        [unknown.select(pl.len()), unknown.sort("_row").head(EXAMPLES)], engine="streaming"
    )
    told = ", ".join(f"row {row}: {value!r}" for row, value in examples.select("_row", key).iter_rows())
    return int(count.item()), f"{origin}: {count.item():,} rows name an unknown {key} ({told})"
