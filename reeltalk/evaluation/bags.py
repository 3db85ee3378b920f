"""What users had turned to strictly before a moment, without its order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from reeltalk.data.as_of import EventsBefore
from reeltalk.data.ragged import Ints, offsets_of, ranges


@dataclass(frozen=True, eq=False)
class Bags:
    """Ids that a user has turned to, in time order."""

    before: EventsBefore
    ids: Ints

    @classmethod
    def of(cls, frame: pl.DataFrame, *, ids: str, time: str, num_users: int) -> Bags:
        users, times = (frame[name].to_numpy().astype(np.int64) for name in ("user_id", time))
        before = EventsBefore(users, times, num_keys=num_users + 1)
        return cls(before, frame[ids].to_numpy().astype(np.int64)[before.order])

    def at(self, targets: pl.DataFrame) -> tuple[Ints, Ints]:
        """The ids that each target's user turned to strictly before its time, flat, and the bags' offsets."""
        users, times = (targets[name].to_numpy().astype(np.int64) for name in ("user_id", "time"))
        starts, stops = self.before.starts[users], self.before.stops(users, times)
        return self.ids[ranges(starts, stops)], offsets_of(stops - starts)

    def distinct_at(self, targets: pl.DataFrame) -> tuple[Ints, Ints]:
        """As `at`, each id once in a bag, rising."""
        ids, offsets = self.at(targets)
        size = 1 + int(ids.max(initial=0))
        owners, distinct = np.divmod(np.unique(np.repeat(np.arange(len(targets)), np.diff(offsets)) * size + ids), size)
        return distinct, offsets_of(np.bincount(owners, minlength=len(targets)))


def sum_rows(vectors_ND: Tensor, rows_F: Ints, offsets: Ints) -> Tensor:
    """The sum of the vectors of each bag of rows."""
    bags, ends = torch.from_numpy(rows_F), torch.from_numpy(offsets)
    return embedding_bag(bags, vectors_ND, ends, mode="sum", include_last_offset=True)
