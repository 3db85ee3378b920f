"""What negatives are drawn from: the comments under an item, as they were at a moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reeltalk.data.dataset import Dataset
from reeltalk.data.histories import offsets_by_id, rows_before
from reeltalk.data.ragged import Ints


@dataclass(frozen=True)
class CommentPool:
    """Which comments stand under an item, and since when; comment ids of one item are a range in order of creation."""

    offsets: Ints
    created: Ints
    author: Ints

    @classmethod
    def of(cls, dataset: Dataset) -> CommentPool:
        comments = dataset.comments
        offsets = offsets_by_id(comments["item_id"].to_numpy().astype(np.int64), dataset.num_items)
        padded = [np.concatenate([[0], comments[name].to_numpy()]).astype(np.int64) for name in ("created", "user_id")]
        return cls(offsets, *padded)

    def sample(self, items: Ints, moments: Ints, users: Ints, *, count: int, rng: np.random.Generator) -> Ints:
        """`count` comments of each item that existed before the moment, not by the user: ids [T, count], 0 for a miss.

        Drawn uniformly with replacement; a draw of the user's own comment is a miss, and so is all of an item without
        any.
        """
        first = self.offsets[items]
        existing = rows_before(self.offsets, self.created[1:], items, moments) - first
        draw = (rng.random((len(items), count)) * existing[:, None]).astype(np.int64)
        ids = first[:, None] + draw + 1
        is_miss = (existing[:, None] == 0) | (self.author[np.minimum(ids, len(self.author) - 1)] == users[:, None])
        return np.where(is_miss, 0, ids)
