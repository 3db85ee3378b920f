"""From item and comment ids to text vectors: where fine-tuning touches text, and all of it.

Shapes: N items, U comments, E text width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from reeltalk.data.dataset import Dataset
from reeltalk.data.ragged import Ints
from reeltalk.text.table import TextTable


@dataclass(frozen=True)
class TextLookup:
    """Rows of a text table for each id; -1 where the text is empty, and row 0 for the padding id is -1 too."""

    table: TextTable | None
    title_rows: Ints
    comment_rows: Ints

    @classmethod
    def of(cls, dataset: Dataset, table: TextTable, *, with_comments: bool = True) -> Self:
        """Find every title and comment in the table; raises ArtifactError where texts are missing from it.

        Without comments their texts count as empty, and need not be there.
        """
        none = np.full(1, -1, np.int64)
        titles = table.rows(dataset.items["title"])
        comments = table.rows(dataset.comments["text"]) if with_comments else np.full(dataset.num_comments, -1)
        return cls(table, np.concatenate([none, titles]), np.concatenate([none, comments]))

    @classmethod
    def nothing(cls, dataset: Dataset) -> Self:
        """For models that do not read text: vectors of width 0."""
        return cls(None, np.full(dataset.num_items + 1, -1, np.int64), np.full(dataset.num_comments + 1, -1, np.int64))

    def titles(self) -> Tensor:
        """Text vectors of all items' titles: float16 [N + 1, E], zeros where there is no text."""
        return self._vectors(self.title_rows)

    def comments(self, comment_U: Ints) -> Tensor:
        """Text vectors of some comments: float16 [U, E], zeros for id 0 and empty texts."""
        return self._vectors(self.comment_rows[comment_U])

    def _vectors(self, rows: Ints) -> Tensor:
        if self.table is None:
            return torch.zeros(len(rows), 0, dtype=torch.float16)
        vectors = np.zeros((len(rows), self.table.vectors.shape[1]), self.table.vectors.dtype)
        vectors[rows >= 0] = self.table.vectors[rows[rows >= 0]]
        return torch.from_numpy(vectors)
