"""The text table: one vector per distinct text, keyed by content, memory-mapped, never recomputed in silence.

A folder of kind ``text``: ``vectors.npy`` (float16 [rows, width]), ``keys.npy`` (uint64 [rows, 2], the 128-bit hash of
each row's text) and the manifest, whose config says what encoded it. While texts are being added both files are longer
than the manifest's ``rows``; what lies beyond is not part of the table yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from reeltalk.artifacts import MANIFEST, Manifest, digest_of, read_manifest, reading_file
from reeltalk.errors import ArtifactError

KIND = "text"
VECTORS = "vectors.npy"
KEYS = "keys.npy"

EMPTY = -1
_SHOWN = 60  # characters of a missing text that an error quotes


@dataclass(frozen=True)
class TextTable:
    """A finished text folder. Several may be open at once; the operating system shares and drops the mapped pages."""

    path: Path
    manifest: Manifest
    vectors: NDArray[np.float16]  # [rows, width], memory-mapped

    @classmethod
    def load(cls, path: str | Path) -> TextTable:
        """Open a folder written by `reeltalk encode`; raises ArtifactError where it is none or unfinished."""
        folder = Path(path)
        manifest = read_manifest(folder, KIND)
        with reading_file(folder / MANIFEST):
            rows = int(manifest.facts["rows"])
        return cls(folder, manifest, _mapped(folder / VECTORS, rows))

    @property
    def width(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def digest(self) -> str:
        """The hash of the folder's bytes; it changes when texts are added."""
        return self.manifest.digest

    @property
    def encoding(self) -> str:
        """The hash of encoder and settings; it stays when texts are added, and with it every vector that was there."""
        return digest_of(self.manifest.config)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """The 128-bit content hash of each row's text: [rows, 2], memory-mapped."""
        return _mapped(self.path / KEYS, len(self.vectors))

    @cached_property
    def _rows(self) -> pl.DataFrame:
        return key_frame(self.keys).with_row_index("row")

    def rows(self, texts: Sequence[str] | pl.Series) -> NDArray[np.int64]:
        """The row of each text, int64 [texts]; -1, which stands for the zero vector, for null and for white space.

        Raises ArtifactError where texts were never encoded.
        """
        series = texts if isinstance(texts, pl.Series) else pl.Series(texts, dtype=pl.String)
        empty = is_empty(series)
        found = key_frame(text_keys(series)).join(self._rows, on=["first", "second"], how="left", maintain_order="left")
        missing = found["row"].is_null() & ~empty
        if missing.any():
            example = series.filter(missing)[0]
            raise ArtifactError(
                f"{self.path} lacks {int(missing.sum()):,} of {len(series):,} texts, first {example[:_SHOWN]!r}; "
                "run `reeltalk encode` on this dataset into this folder again: only what is missing is encoded"
            )
        rows = found["row"].cast(pl.Int64).fill_null(EMPTY).to_numpy()
        return np.where(empty.to_numpy(), EMPTY, rows)


def is_empty(texts: pl.Series) -> pl.Series:
    """True for texts that get no vector: null, or nothing but white space."""
    return texts.fill_null("").str.strip_chars() == ""


def text_keys(texts: pl.Series) -> NDArray[np.uint64]:
    """The 128-bit content hash of each text, uint64 [texts, 2], the same in every version and on every machine."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts.fill_null(""))
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def key_frame(keys: NDArray[np.uint64]) -> pl.DataFrame:
    """Keys as two columns, to join on."""
    return pl.DataFrame({"first": keys[:, 0], "second": keys[:, 1]}, schema={"first": pl.UInt64, "second": pl.UInt64})


def _mapped(path: Path, rows: int) -> NDArray[Any]:
    """The first `rows` rows of an .npy file, memory-mapped read-only."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); encode into another folder") from error
    if len(array) < rows:
        raise ArtifactError(f"{path} holds {len(array):,} rows, its manifest says {rows:,}; encode into another folder")
    return array[:rows]
