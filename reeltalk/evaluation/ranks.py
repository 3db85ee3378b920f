"""Scores to ranks: the exact place of every positive, equal scores broken at random.

Legend: B targets in a block, N items, K length of a top list.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import as_strided

from reeltalk.data.ragged import Ints, Ragged, offsets_of, ranges
from reeltalk.evaluation.ranker import Scores

GROUP = 32  # columns that share a maximum when the top list is sought
SLICE_BYTES = 1 << 20  # a block is ranked in slices of this size, so that every pass after the first reads the cache
LANES = 255  # words of eight 0/1 bytes that can be added before a byte overflows


def candidate_ranks(
    scores: Scores, candidates: Ragged, num_positives: Ints, tie_breaks: npt.NDArray[np.float64]
) -> Ragged:
    """The rank of every positive among its target's candidates, 1 is best; row i holds the ranks of target i.

    The first `num_positives[i]` candidates of row i are the positives. Of two equal scores the one with the higher tie
    break ranks first: drawn uniformly, they are one random order of each row, so no two candidates share a rank.

    >>> rows = Ragged(values=np.array([4, 9, 2, 7, 5], dtype=np.int32), offsets=np.array([0, 3, 5]))
    >>> scores = np.array([0.1, 0.9, 0.5, 1.0, 1.0], dtype=np.float32)
    >>> candidate_ranks(scores, rows, np.array([2, 1]), np.array([0.0, 0.1, 0.2, 0.3, 0.4])).values.tolist()
    [3, 1, 2]
    """
    positives = ranges(candidates.offsets[:-1], candidates.offsets[:-1] + num_positives)
    owners = np.repeat(np.arange(len(candidates)), num_positives)
    lengths = candidates.lengths[owners]
    others = ranges(candidates.offsets[owners], candidates.offsets[owners] + lengths)
    against, own = scores[others], np.repeat(scores[positives], lengths)
    first = (against > own) | ((against == own) & (tie_breaks[others] > np.repeat(tie_breaks[positives], lengths)))
    before = np.add.reduceat(first, offsets_of(lengths)[:-1], dtype=np.int64) if len(owners) else np.zeros(0)
    return Ragged(values=(1 + before).astype(np.int32), offsets=offsets_of(num_positives))


@dataclass(frozen=True)
class CatalogueRanks:
    """What a block of catalogue scores comes to."""

    greater: Ints  # [B] other candidates that score higher than the positive
    equal: Ints  # [B] other candidates that score the same
    top: Ints  # [B, K] item ids, best first; 0 where there are fewer candidates than K
    own: Scores  # [B] the positive's score
    best: Scores  # [B] the highest score, NaN where a candidate's score is NaN


def catalogue_ranks(block: torch.Tensor, *, positives: Ints, existing: Ints, seen: Ints, k: int) -> CatalogueRanks:
    """Rank each row's positive among the row's candidates, and list the k best; overwrites `block` [B, N].

    Candidates are the first `existing[i]` columns without `seen` (flat indices, row * N + column), and always the
    positive (a column). Exact, without a sort over N: one pass finds what is higher, one what is equal, one the maxima
    of groups of columns, and only the groups with the k highest maxima compete for the top list. Uses as many threads
    as torch does.
    """
    scores_BN: Scores = block.float().contiguous().numpy()
    num_rows, num_items = scores_BN.shape
    own_B = scores_BN[np.arange(num_rows), positives]
    _drop(scores_BN, existing, seen)
    scores_BN[np.arange(num_rows), positives] = own_B
    workers = min(torch.get_num_threads(), num_rows)
    bounds = np.linspace(0, num_rows, workers + 1).astype(int)
    with ThreadPoolExecutor(workers) as pool:
        parts = list(
            pool.map(
                lambda start, stop: _rank(scores_BN[start:stop], own_B[start:stop], min(k, num_items)),
                bounds[:-1],
                bounds[1:],
            )
        )
    greater, equal, top, best = (np.concatenate(pieces) for pieces in zip(*parts, strict=True))
    return CatalogueRanks(greater=greater, equal=equal - 1, top=top, own=own_B, best=best[:, 0])


def _drop(scores_BN: Scores, existing: Ints, seen: Ints) -> None:
    """Minus infinity for what is no candidate; items are ordered by creation, so those to come are the last columns."""
    first, last = int(existing.min()), int(existing.max())
    scores_BN[:, last:] = -np.inf
    to_come = np.arange(first, last) >= existing[:, None]
    np.copyto(scores_BN[:, first:last], -np.inf, where=to_come)
    scores_BN.reshape(-1)[seen] = -np.inf


def _rank(scores_BN: Scores, own_B: Scores, k: int) -> tuple[Ints, Ints, Ints, Scores]:
    """Counts of higher and of equal scores, top item ids and their scores, slice by slice."""
    num_rows, num_items = scores_BN.shape
    greater_B, equal_B = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    top_BK, best_BK = np.empty((num_rows, k), np.int64), np.empty((num_rows, k), np.float32)
    size = max(1, SLICE_BYTES // (4 * num_items))
    width = -(-num_items // (8 * LANES)) * 8 * LANES
    buffer = np.zeros((min(size, num_rows), width), dtype=np.bool_)
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        scores, own = scores_BN[rows], own_B[rows, None]
        flags = buffer[: len(scores)]
        np.greater(scores, own, out=flags[:, :num_items])
        greater_B[rows] = _count(flags)
        np.equal(scores, own, out=flags[:, :num_items])
        equal_B[rows] = _count(flags)
        top_BK[rows], best_BK[rows] = _top(scores, k)
    return greater_B, equal_B, np.where(best_BK == -np.inf, 0, top_BK + 1), best_BK


def _count(flags: npt.NDArray[np.bool_]) -> Ints:
    """True values in each row: eight bytes are added as one word, `LANES` words before a byte could overflow."""
    words = flags.view(np.int64).reshape(len(flags), -1, LANES).sum(-1)
    counts: Ints = words.view(np.uint8).sum(-1, dtype=np.int64)
    return counts


def _top(scores_BN: Scores, k: int) -> tuple[Ints, Scores]:
    """The columns and scores of the k highest, best first; NaN counts as the highest.

    Every one of the k highest lies in a group of columns whose maximum is among the k highest maxima. Group j holds the
    columns j, j + width, j + 2 width, .., so that maxima are found without adding across; the few last columns always
    compete.
    """
    num_rows, num_items = scores_BN.shape
    width = num_items // GROUP
    if width <= k:
        return _best(scores_BN, k)
    row, column = scores_BN.strides  # a reshape would copy
    maxima = as_strided(scores_BN, (num_rows, GROUP, width), (row, width * column, column)).max(1)
    groups_BK = np.argpartition(maxima, width - k, axis=1)[:, width - k :]
    firsts_BK = groups_BK + num_items * np.arange(num_rows)[:, None]
    members = (firsts_BK[:, :, None] + width * np.arange(GROUP)).reshape(num_rows, -1)
    places_BK, values_BK = _best(np.hstack([scores_BN.take(members), scores_BN[:, width * GROUP :]]), k)
    group_BK = np.take_along_axis(groups_BK, np.minimum(places_BK // GROUP, k - 1), 1)
    is_member = places_BK < k * GROUP
    return np.where(is_member, group_BK + places_BK % GROUP * width, places_BK + (width - k) * GROUP), values_BK


def _best(scores_BN: Scores, k: int) -> tuple[Ints, Scores]:
    kept_BK = np.argpartition(scores_BN, scores_BN.shape[1] - k, axis=1)[:, -k:]
    values_BK = np.take_along_axis(scores_BN, kept_BK, 1)
    order_BK = np.argsort(values_BK, axis=1)[:, ::-1]
    return np.take_along_axis(kept_BK, order_BK, 1), np.take_along_axis(values_BK, order_BK, 1)
