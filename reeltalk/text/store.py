"""How a text table grows: block by block, so that a kill costs one block, and a finished table stays readable."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reeltalk.artifacts import MANIFEST, read_manifest, reading_file, write_json
from reeltalk.errors import ArtifactError
from reeltalk.text.table import KEYS, KIND, VECTORS

_DONE = ".done.json"
_HEADER = 128  # bytes; numpy leaves room in it for the number of rows to grow


@dataclass(frozen=True)
class Done:
    """What a text folder holds, over all runs."""

    rows: int = 0
    tokens: int = 0
    texts_cut: int = 0  # texts that fill max_tokens
    seconds: float = 0.0


class Store:
    """The two growing files of a text folder.

    Rows count once `.done.json` says so; what a killed run left behind them is cut off. The files' headers and the
    manifest tell the old number of rows until the end, so a finished folder stays readable while it grows.
    """

    def __init__(self, folder: Path, *, width: int) -> None:
        self._folder = folder
        self._files: dict[str, tuple[np.dtype[Any], int]] = {
            VECTORS: (np.dtype("<f2"), width),
            KEYS: (np.dtype("<u8"), 2),
        }
        self.done = self._read_done()
        for name, (dtype, columns) in self._files.items():
            path = folder / name
            if not path.is_file():
                path.touch()
                self._write_header(name, rows=0)
            size = _HEADER + self.done.rows * columns * dtype.itemsize
            if path.stat().st_size < size:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size:,} bytes, {size:,} were written; encode into another folder"
                )
            os.truncate(path, size)

    def keys(self) -> NDArray[np.uint64]:
        """The keys of all rows that are done."""
        return np.fromfile(self._folder / KEYS, dtype="<u8", offset=_HEADER).reshape(-1, 2)

    def append(
        self, keys: NDArray[np.uint64], vectors: NDArray[np.float16], *, tokens: int, cut: int, seconds: float
    ) -> None:
        """Add a block: keys [texts, 2] and vectors [texts, width]; afterwards its rows count."""
        for name, rows in ((VECTORS, vectors), (KEYS, keys)):
            with (self._folder / name).open("ab") as stream:
                stream.write(np.ascontiguousarray(rows, dtype=self._files[name][0]).data)
                stream.flush()
                os.fsync(stream.fileno())
        self.done = Done(
            rows=self.done.rows + len(keys),
            tokens=self.done.tokens + tokens,
            texts_cut=self.done.texts_cut + cut,
            seconds=self.done.seconds + seconds,
        )
        write_json(self._folder / _DONE, asdict(self.done))

    def finish(self) -> None:
        """Tell the new number of rows in both files; the manifest must follow, then `close`."""
        for name in self._files:
            self._write_header(name, rows=self.done.rows)

    def close(self) -> None:
        """Forget the count of rows, once the manifest tells it."""
        (self._folder / _DONE).unlink(missing_ok=True)

    def _read_done(self) -> Done:
        path = self._folder / _DONE
        if path.is_file():
            with reading_file(path):
                return Done(**json.loads(path.read_text()))
        return Done(**read_manifest(self._folder, KIND).facts) if (self._folder / MANIFEST).is_file() else Done()

    def _write_header(self, name: str, *, rows: int) -> None:
        dtype, columns = self._files[name]
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": dtype.str, "fortran_order": False, "shape": (rows, columns)}
        )
        with (self._folder / name).open("r+b") as stream:
            stream.write(header.getvalue())
