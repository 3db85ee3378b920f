"""Lists of different lengths as two flat arrays: no padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i holds `values[offsets[i]:offsets[i + 1]]`.

    >>> rows = Ragged(values=np.array([7, 8, 9], dtype=np.int32), offsets=np.array([0, 2, 2, 3]))
    >>> len(rows), rows.lengths.tolist(), rows.owners.tolist()
    (3, [2, 0, 1], [0, 0, 2])
    """

    values: npt.NDArray[np.int32]
    offsets: Ints

    @classmethod
    def from_lists(cls, lists: pl.Series) -> Ragged:
        """A polars list column of integers, none of them null; an empty list is an empty row."""
        lengths = lists.list.len().to_numpy()
        values = lists.filter(lists.list.len() > 0).explode().to_numpy()
        return cls(values=values.astype(np.int32, copy=False), offsets=offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    @cached_property
    def owners(self) -> Ints:
        """The row of every value."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def rows(self, start: int, stop: int) -> Ragged:
        """Rows start..stop - 1; the values are a view."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(values=self.values[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])


def offsets_of(lengths: npt.ArrayLike) -> Ints:
    """Where each row begins, and at the end where the last one stops."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ranges(starts: Ints, stops: Ints) -> Ints:
    """The indices of many ranges one after another: starts[0]..stops[0] - 1, starts[1]..stops[1] - 1, ..

    >>> ranges(np.array([5, 0, 2]), np.array([7, 0, 3])).tolist()
    [5, 6, 2]
    """
    if len(starts) == 1:  # a request
        return np.arange(starts[0], stops[0])
    lengths = stops - starts
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
