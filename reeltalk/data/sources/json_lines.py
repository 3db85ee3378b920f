"""JSON lines, plain or gz, as lazy frames; and the older loose form, whose lines are Python literals."""

from __future__ import annotations

import ast
import codecs
import gzip
import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO, Any

import polars as pl
from polars.io.plugins import register_io_source

LOOSE_ROWS_A_PART = 20_000
_CUT_OFF = (EOFError, gzip.BadGzipFile, zlib.error)
BROKEN = (pl.exceptions.PolarsError, OSError, ValueError, EOFError, zlib.error)


def scan(path: Path, *, schema: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    """The fields of `schema`, a row a record: null where it lacks one or holds another type. Blank lines are no rows.

    The first line says which form a file has; polars parses strict JSON many times faster than the loose form goes.
    Collecting raises one of `BROKEN` where the file is damaged; `broken_at` says where.
    """
    with _open(path) as stream:
        first = next(_filled(stream), b"{}")
    if _is_json(first):
        return pl.scan_ndjson(path, schema=dict(schema), ignore_errors=True)
    return register_io_source(partial(_loose_parts, path, schema), schema=dict(schema))


def first_fields(path: Path) -> list[str]:
    """The field names of the first record; none where the file is empty or broken from the start."""
    try:
        with _open(path) as stream:
            return list(_record(next(_filled(stream), b"{}")))
    except (*_CUT_OFF, ValueError):
        return []


def lines_at(path: Path, *, rows: Collection[int]) -> dict[int, tuple[int, dict[str, Any]]]:
    """For row numbers of `scan` (from 0): the line number (from 1) and the record."""
    found: dict[int, tuple[int, dict[str, Any]]] = {}
    with _open(path) as stream:
        filled = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
        for row, (number, line) in enumerate(islice(filled, max(rows, default=-1) + 1)):
            if row in rows:
                found[row] = (number, _record(line))
    return found


def broken_at(path: Path) -> str | None:
    """Where and why a file stops being gz or JSON lines; None where Python finds nothing wrong."""
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):  # noqa: B007, errors below tell the number
                if line.strip():
                    _record(line)
    except _CUT_OFF as error:
        return f"{path.name}: the gz data is cut off or damaged after line {number} ({error}); fetch the file again"
    except ValueError as error:
        return f"{path.name}: line {number} is no JSON object ({error}); mend or remove it"
    return None


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        is_gz = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gz else path.open("rb")  # type: ignore[return-value]


def _filled(stream: IO[bytes]) -> Iterator[bytes]:
    return (line for line in stream if line.strip())


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return line.lstrip().startswith(b'{"')
    return True


def _record(line: bytes) -> dict[str, Any]:
    """The record on a line; raises ValueError where it is neither JSON nor a Python literal, or no object."""
    if line.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte order mark")
    try:
        value = json.loads(line, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as not_json:
        if line.lstrip().startswith(b'{"'):
            raise
        try:
            value = ast.literal_eval(line.decode().strip())
        except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise ValueError(str(not_json)) from error
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON; write null")


def _loose_parts(
    path: Path,
    schema: Mapping[str, type[pl.DataType]],
    columns: list[str] | None,
    predicate: pl.Expr | None,
    n_rows: int | None,
    batch_size: int | None,
) -> Iterator[pl.DataFrame]:
    """Parts of a loose file, written as JSON and read by polars, so that types are treated as in strict files."""
    with _open(path) as stream:
        lines = islice(_filled(stream), n_rows)
        while part := list(islice(lines, LOOSE_ROWS_A_PART)):
            records = map(_record, part)
            text = "\n".join(json.dumps({name: record.get(name) for name in schema}) for record in records)
            frame = pl.read_ndjson(BytesIO(text.encode()), schema=dict(schema), ignore_errors=True)
            frame = frame if predicate is None else frame.filter(predicate)
            yield frame if columns is None else frame.select(columns)
