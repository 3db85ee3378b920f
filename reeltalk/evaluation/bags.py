"""What users had turned to before a target, without its order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from reeltalk.data.dataset import Dataset
from reeltalk.data.ragged import Ints, offsets_of, ranges


@dataclass(frozen=True, eq=False)
class Bags:
    """Ids that users have turned to, in the order of the log, and of them those before each event or record.

    What came before is what models read: the rows of the same user before the target's own, so of a user's events of
    one moment the later see the earlier.
    """

    ids: Ints
    first: Ints  # [rows] where the ids of a row's user begin
    end: Ints  # [rows] where the row's own ids begin

    @classmethod
    def of_items(cls, dataset: Dataset) -> Bags:
        """The items of item events."""
        return cls._of(dataset.item_events, dataset.item_events["item_id"])

    @classmethod
    def of_watched(cls, dataset: Dataset) -> Bags:
        """The items of comment records."""
        return cls._of(dataset.comment_records, dataset.comment_records["item_id"])

    @classmethod
    def of_comments(cls, dataset: Dataset) -> Bags:
        """The comments of comment records."""
        records, events = dataset.comment_records, dataset.comment_events
        end = np.searchsorted(events["record_id"].to_numpy(), np.arange(len(records)))
        return cls._of(records, events["comment_id"], end=end)

    @classmethod
    def _of(cls, rows: pl.DataFrame, ids: pl.Series, *, end: Ints | None = None) -> Bags:
        """`rows` are sorted by user; `end` as above, where a row has other than one id."""
        users = rows["user_id"].to_numpy()
        end = np.arange(len(users)) if end is None else end
        return cls(ids.to_numpy().astype(np.int64), end[np.searchsorted(users, users)], end)

    def at(self, targets: pl.DataFrame) -> tuple[Ints, Ints]:
        """The ids that each target's user turned to before it, flat, and the bags' offsets."""
        rows = targets["target"].to_numpy()
        first, end = self.first[rows], self.end[rows]
        return self.ids[ranges(first, end)], offsets_of(end - first)

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
