"""Where a file that polars cannot parse stops being CSV: polars itself tells no line."""

from __future__ import annotations

import csv
import gzip
import zlib
from pathlib import Path


def broken_at(path: Path) -> str | None:
    """The line, what is wrong there and the way out; None where Python finds nothing wrong."""
    line = 1
    try:
        with path.open("rb") as stream:
            is_gz = stream.read(2) == b"\x1f\x8b"
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="")
            if is_gz
            else path.open(encoding="utf-8", newline="") as text
        ):
            rows = csv.reader(text, strict=True)
            width = len(next(rows, []))
            for fields in rows:
                line = rows.line_num
                if fields and len(fields) > width:
                    return f"line {line} has {len(fields)} fields, the header {width}; quote fields that hold commas"
    except csv.Error as error:
        return f"the record after line {line} is not CSV ({error}); close its quotes"
    except UnicodeDecodeError as error:
        return f"not UTF-8 after line {line} ({error.reason}); convert the file"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"the gz data is cut off or damaged after line {line} ({error}); fetch the file again"
    return None
