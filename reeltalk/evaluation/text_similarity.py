"""The floor that reads: candidates whose text is like what the user turned to before.

Shapes: B targets, C candidates, N items, E text width, F ids in bags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reeltalk.data.dataset import Dataset, Task
from reeltalk.data.ragged import Ints, Ragged
from reeltalk.evaluation.bags import Bags, sum_rows
from reeltalk.evaluation.ranker import Scores
from reeltalk.text.lookup import TextLookup

VALUES_AT_ONCE = 1 << 24  # float32 numbers of gathered candidate vectors


@dataclass(frozen=True, eq=False)
class ItemTextSimilarity:
    """Cosine of an item's title and the mean title of the user's item history; 0 where either is empty."""

    bags: Bags
    titles_NE: Tensor  # unit vectors by item_id, zero where there is no text
    task: Task = "item"
    name: str = "text_similarity"

    @classmethod
    def of(cls, dataset: Dataset, texts: TextLookup) -> ItemTextSimilarity:
        return cls(Bags.of_items(dataset), _unit(texts.titles()))

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return _dots(self._profiles(targets), candidates, self.titles_NE, candidates.values.astype(np.int64))

    def catalogue_scores(self, targets: pl.DataFrame) -> Tensor:
        return self._profiles(targets) @ self.titles_NE[1:].T

    def _profiles(self, targets: pl.DataFrame) -> Tensor:
        return _unit(sum_rows(self.titles_NE, *self.bags.at(targets)))


@dataclass(frozen=True, eq=False)
class CommentTextSimilarity:
    """Cosine of a comment and the user's profile.

    The profile is half the watched item's title, half the mean of the user's comment history (its comments and the
    titles of their items), each scaled to length one; of a user without comment history the title alone.
    """

    comments: Bags
    items: Bags
    titles_NE: Tensor
    texts: TextLookup
    task: Task = "comment"
    name: str = "text_similarity"

    @classmethod
    def of(cls, dataset: Dataset, texts: TextLookup) -> CommentTextSimilarity:
        return cls(Bags.of_comments(dataset), Bags.of_watched(dataset), _unit(texts.titles()), texts)

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        comments_F, offsets = self.comments.at(targets)
        known, rows = np.unique(np.concatenate([candidates.values, comments_F]), return_inverse=True)
        vectors_UE = _unit(self.texts.comments(known.astype(np.int64)))
        candidate_rows, history_rows = np.split(rows, [len(candidates.values)])
        history_BE = sum_rows(vectors_UE, history_rows, offsets) + sum_rows(self.titles_NE, *self.items.at(targets))
        watched_BE = self.titles_NE[torch.from_numpy(targets["item_id"].to_numpy().astype(np.int64))]
        return _dots(_unit(_unit(history_BE) + watched_BE), candidates, vectors_UE, candidate_rows)


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length one in float32; zero rows stay zero."""
    return normalize(vectors.float(), dim=1)


def _dots(profiles_BE: Tensor, candidates: Ragged, vectors_NE: Tensor, rows_C: Ints) -> Scores:
    """Each candidate's vector times its target's profile, gathered a part at a time."""
    size = max(1, VALUES_AT_ONCE // max(1, vectors_NE.shape[1]))
    owners_C, of_C = torch.from_numpy(candidates.owners), torch.from_numpy(rows_C)
    parts = [torch.zeros(0)]
    for start in range(0, len(rows_C), size):
        part = slice(start, start + size)
        parts.append((profiles_BE[owners_C[part]] * vectors_NE[of_C[part]]).sum(1))
    scores: Scores = torch.cat(parts).numpy()
    return scores
