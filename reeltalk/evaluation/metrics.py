r"""Ranking metrics, one value a target.

A target has P positives at the ranks r_1..r_P among its candidates (1 is best; no two candidates share a rank).

.. code-block:: text

    hit@K     1 if a positive is among the first K, else 0
    recall@K  (positives among the first K) / P
    ndcg@K    DCG@K / ideal DCG@K;  DCG@K = sum over r_i <= K of 1 / log2(r_i + 1);  ideal: ranks 1..min(P, K)
    mrr       1 / min r_i, however low that rank is
    coverage@K (not of a target) items that stand in some target's first K / items that could

With one positive recall@K equals hit@K. With more positives than K, recall@K cannot reach 1; ndcg@K can.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from reeltalk.data.ragged import Ints, Ragged

Values = npt.NDArray[np.float64]
METRIC = re.compile(r"(?:(?:recall|ndcg|hit)@(?P<k>[1-9][0-9]*)|mrr)")  # the names of those above but coverage


def hit(ranks: Ragged, *, k: int) -> Values:
    """Whether a positive is among the first k.

    >>> two_targets = Ragged(values=np.array([6, 3, 11], dtype=np.int32), offsets=np.array([0, 2, 3]))
    >>> hit(two_targets, k=5).tolist()
    [1.0, 0.0]
    """
    return (_best(ranks) <= k).astype(np.float64)


def recall(ranks: Ragged, *, k: int) -> Values:
    """The share of the positives that is among the first k.

    >>> two_targets = Ragged(values=np.array([6, 3, 11], dtype=np.int32), offsets=np.array([0, 2, 3]))
    >>> recall(two_targets, k=5).tolist()
    [0.5, 0.0]
    """
    return _sum(ranks, ranks.values <= k) / ranks.lengths


def ndcg(ranks: Ragged, *, k: int) -> Values:
    """Discounted cumulative gain of binary relevance, over that of the best order.

    >>> two_targets = Ragged(values=np.array([6, 3, 11], dtype=np.int32), offsets=np.array([0, 2, 3]))
    >>> ndcg(two_targets, k=5).round(4).tolist()  # (1 / log2 4) / (1 / log2 2 + 1 / log2 3)
    [0.3066, 0.0]
    """
    gains: Values = np.where(ranks.values <= k, 1 / np.log2(ranks.values + 1.0), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1.0))
    values: Values = _sum(ranks, gains) / ideal[np.minimum(ranks.lengths, k) - 1]
    return values


def reciprocal_rank(ranks: Ragged) -> Values:
    """One over the rank of the first positive.

    >>> two_targets = Ragged(values=np.array([6, 3, 10], dtype=np.int32), offsets=np.array([0, 2, 3]))
    >>> reciprocal_rank(two_targets).round(4).tolist()
    [0.3333, 0.1]
    """
    return 1.0 / _best(ranks)


def target_metrics(ranks: Ragged, *, ks: Sequence[int]) -> dict[str, Values]:
    """Every metric of every target, by name: recall@K, ndcg@K and hit@K for each K, and mrr.

    Every row of `ranks` holds at least one rank.
    """
    found: dict[str, Values] = {}
    for k in ks:
        found |= {f"recall@{k}": recall(ranks, k=k), f"ndcg@{k}": ndcg(ranks, k=k), f"hit@{k}": hit(ranks, k=k)}
    return found | {"mrr": reciprocal_rank(ranks)}


def coverage(top: npt.NDArray[np.integer], *, num_items: int) -> float:
    """The share of `num_items` that stands in at least one of the top lists [targets, K]; 0 in a list is no item.

    >>> coverage(np.array([[1, 2], [2, 0]]), num_items=4)
    0.5
    """
    shown = np.unique(top)
    return float(np.count_nonzero(shown) / num_items)


def _best(ranks: Ragged) -> Ints:
    return np.minimum.reduceat(ranks.values, ranks.offsets[:-1]).astype(np.int64)


def _sum(ranks: Ragged, values: npt.NDArray[np.bool_] | Values) -> Values:
    return np.add.reduceat(values, ranks.offsets[:-1], dtype=np.float64)
