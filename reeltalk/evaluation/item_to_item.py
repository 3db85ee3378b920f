"""Floors that learn which items go together: item-kNN and EASE.

Both are fitted once, on training events; what they then score a target by is the user's history before it, as models
read it, each item once, whatever its place. Items without a training event score 0.

Papers: Deshpande and Karypis, Item-based top-N recommendation algorithms (ACM TOIS 2004), with the shrinkage of Bell
    and Koren (KDD Cup 2007); Steck, Embarrassingly shallow autoencoders for sparse data (WWW 2019), arXiv 1905.03375.
Differs from the papers: interactions are 0 or 1. Item-kNN's columns are not scaled to length one.
Checked against: loops in float64 written from the equations, and toys worked by hand (tests/test_item_to_item.py).

Shapes: U users, N items, B targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field
from scipy import sparse
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ints, Ragged
from reeltalk.errors import ConfigError
from reeltalk.evaluation.bags import Bags, sum_rows
from reeltalk.evaluation.ranker import Scores

PAIRS_AT_ONCE = 1 << 24  # of items of one user; a pair takes up to 12 bytes
ROWS_AT_ONCE = 512  # of a dense [N, N]
BLOCK_BYTES = 16 << 20
LOST_DIGITS = 1e-3  # a relative error that no ranking shows


class ItemKNNSettings(BaseModel):
    """Item-kNN; cosines are pulled to 0 by `shrinkage`, least where much was seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: int = Field(default=500, gt=0, description="most similar items of each item")
    shrinkage: float = Field(default=50.0, ge=0, description="added to the root of the product of the items' users")


class EASESettings(BaseModel):
    """EASE; it takes 4 bytes for each pair of items, and time by the number of items cubed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    regularisation: float = Field(default=500.0, gt=0, description="lambda of the paper")
    max_items: int = Field(default=5_000, ge=0, description="it is left out where there are more items")


@dataclass(frozen=True, eq=False)
class ItemKNN:
    """An item's score is the sum of its similarities to the items of the history that have it among their nearest."""

    bags: Bags
    similarities_NN: sparse.csr_array  # row: an item of the history; column: an item scored; 0-based
    task: Task = "item"
    name: str = "item_knn"

    @classmethod
    def of(cls, dataset: Dataset, settings: ItemKNNSettings) -> ItemKNN:
        similarities_NN = nearest_items(
            training_interactions(dataset), neighbours=settings.neighbours, shrinkage=settings.shrinkage
        )
        return cls(Bags.of_items(dataset), similarities_NN)

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        scores_BN = self._scores(targets)
        scores_BN.sort_indices()
        found: Scores = np.asarray(scores_BN[candidates.owners, candidates.values - 1]).reshape(-1)
        return found

    def catalogue_scores(self, targets: pl.DataFrame) -> Tensor:
        return torch.from_numpy(self._scores(targets).toarray())

    def _scores(self, targets: pl.DataFrame) -> sparse.csr_array:
        ids, offsets = self.bags.distinct_at(targets)
        shape = len(targets), self.similarities_NN.shape[0]
        history_BN = sparse.csr_array((np.ones(len(ids), np.float32), ids - 1, offsets), shape=shape)
        return history_BN @ self.similarities_NN


@dataclass(frozen=True, eq=False)
class EASE:
    """An item's score is the sum of its weights from the items of the history: a linear autoencoder in closed form."""

    bags: Bags
    weights_NN: Tensor  # row: an item of the history; column: an item scored; 0-based
    task: Task = "item"
    name: str = "ease"

    @classmethod
    def of(cls, dataset: Dataset, settings: EASESettings) -> EASE:
        weights_NN = ease_weights(training_interactions(dataset), regularisation=settings.regularisation)
        return cls(Bags.of_items(dataset), torch.from_numpy(weights_NN))

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        size = max(1, BLOCK_BYTES // (4 * len(self.weights_NN)))
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(targets), size):
            rows = candidates.rows(start, min(start + size, len(targets)))
            scores_BN = self.catalogue_scores(targets.slice(start, size)).numpy()
            parts.append(scores_BN[rows.owners, rows.values - 1])
        return np.concatenate(parts)

    def catalogue_scores(self, targets: pl.DataFrame) -> Tensor:
        ids, offsets = self.bags.distinct_at(targets)
        return sum_rows(self.weights_NN, ids - 1, offsets)


def training_interactions(dataset: Dataset) -> sparse.csr_array:
    """Who turned to what in training: float32 [U, N], 1 where user_id u + 1 has an event with item_id n + 1."""
    events = dataset.item_events.filter(pl.col("split") == Split.TRAIN).select("user_id", "item_id").unique()
    rows, columns = (events[name].to_numpy().astype(np.int64) - 1 for name in ("user_id", "item_id"))
    return sparse.csr_array(
        (np.ones(len(events), np.float32), (rows, columns)), shape=(dataset.num_users, dataset.num_items)
    )


def nearest_items(interactions_UN: sparse.csr_array, *, neighbours: int, shrinkage: float) -> sparse.csr_array:
    """Each item's similarities to its nearest others, float32 [N, N]: of equal ones, the lower ids are taken.

    The similarity of two items is the number of users of both over (the root of the product of each one's users, plus
    shrinkage): with shrinkage 0 the cosine of their columns.
    """
    users_of_NU = interactions_UN.T.tocsr()
    num_users_N = np.diff(users_of_NU.indptr)
    num_pairs_N = users_of_NU @ np.diff(interactions_UN.indptr)
    parts = []
    for start, stop in _slices(num_pairs_N):
        both = users_of_NU[start:stop] @ interactions_UN
        both.sort_indices()
        owners = np.repeat(np.arange(start, stop), np.diff(both.indptr))
        norms = np.sqrt(num_users_N[owners].astype(np.float64) * num_users_N[both.indices]) + shrinkage
        values = np.where(both.indices == owners, 0, both.data / norms).astype(np.float32)
        parts.append(_largest(sparse.csr_array((values, both.indices, both.indptr), shape=both.shape), neighbours))
    return sparse.vstack(parts, format="csr")


def ease_weights(interactions_UN: sparse.csr_array, *, regularisation: float) -> npt.NDArray[np.float32]:
    """Eq 8 of the paper: B = -P / diag(P) by column with a diagonal of 0, where P = (X^T X + lambda I)^-1; [N, N].

    In float32 where the largest row sum, which bounds the largest eigenvalue, says that this is exact enough; then
    nothing but the result is held in memory, else twice as much. Raises ConfigError where lambda is too small for
    either.
    """
    users_of_NU = interactions_UN.T.tocsr()
    num_items = users_of_NU.shape[0]
    largest = float((users_of_NU @ np.diff(interactions_UN.indptr)).max(initial=0))
    condition = (largest + regularisation) / regularisation
    exact = [dtype for dtype in (np.float32, np.float64) if condition * np.finfo(dtype).eps < LOST_DIGITS]
    if not exact:
        raise ConfigError(
            f"ease.regularisation={regularisation} is too small beside counts of {largest:,.0f}; raise it"
        )
    p_NN = np.empty((num_items, num_items), dtype=exact[0])
    for start in range(0, num_items, ROWS_AT_ONCE):
        p_NN[start : start + ROWS_AT_ONCE] = (users_of_NU[start : start + ROWS_AT_ONCE] @ interactions_UN).toarray()
    np.einsum("ii->i", p_NN)[:] += regularisation
    # LAPACK works in place on columns and fills one triangle: as p_NN is symmetric, its rows are as good
    factorise, invert = get_lapack_funcs(("potrf", "potri"), (p_NN,))
    factor, failed = factorise(p_NN.T, lower=True, clean=False, overwrite_a=True)
    if failed:
        raise ConfigError(
            f"ease.regularisation={regularisation} is too small beside counts of {largest:,.0f}; raise it"
        )
    inverse, _ = invert(factor, lower=True, overwrite_c=True)
    weights_NN = inverse.T
    for row in range(num_items):
        weights_NN[row + 1 :, row] = weights_NN[row, row + 1 :]
    weights_NN /= -np.diagonal(weights_NN).copy()
    np.fill_diagonal(weights_NN, 0)
    found: npt.NDArray[np.float32] = weights_NN.astype(np.float32, copy=False)
    return found


def _slices(costs: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each of at least one, that cost some `PAIRS_AT_ONCE` at most."""
    ends = np.flatnonzero(np.diff(np.cumsum(costs) // PAIRS_AT_ONCE)) + 1
    bounds = [0, *ends.tolist(), len(costs)]
    yield from pairwise(bounds)


def _largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """The `count` largest positive entries of each row; of equal ones, those in the lower columns."""
    keep = matrix.data > 0
    for row in np.flatnonzero(np.diff(matrix.indptr) > count).tolist():
        of_row = slice(matrix.indptr[row], matrix.indptr[row + 1])
        order = np.argsort(-matrix.data[of_row], kind="stable")
        keep[of_row][order[count:]] = False
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[keep], minlength=matrix.shape[0]))])
    return sparse.csr_array((matrix.data[keep], matrix.indices[keep], offsets), shape=matrix.shape)
