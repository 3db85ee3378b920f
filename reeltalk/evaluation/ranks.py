"""Scores to ranks: the exact place of every positive, equal scores broken at random.

Legend: B targets in a block, N items, K length of a top list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from reeltalk.data.ragged import Ints, Ragged, offsets_of, ranges
from reeltalk.evaluation.ranker import Scores

GROUP = 32  # columns that share a maximum when the top list is sought


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
    positive (a column). Exact, without a sort over N: each row is compared with its positive's score twice, and only
    the groups of columns with the k highest maxima compete for the top list.
    """
    score_BN = block.float().contiguous()
    scores_BN: Scores = score_BN.numpy()
    rows = np.arange(len(scores_BN))
    own_B = scores_BN[rows, positives]
    _drop(scores_BN, existing, seen)
    scores_BN[rows, positives] = own_B
    counts = [
        (np.count_nonzero(score_N > own), np.count_nonzero(score_N == own))  # a row at a time: it stays in the cache
        for score_N, own in zip(scores_BN, own_B, strict=True)
    ]
    greater_B, equal_B = np.array(counts, dtype=np.int64).reshape(-1, 2).T
    best_BK, column_BK = _top(score_BN, min(k, score_BN.shape[1]))
    top_BK = torch.where(best_BK == -torch.inf, 0, column_BK + 1)
    return CatalogueRanks(greater_B, equal_B - 1, top_BK.numpy(), own_B, best_BK[:, 0].numpy())


def _drop(scores_BN: Scores, existing: Ints, seen: Ints) -> None:
    """Minus infinity for what is no candidate; items are ordered by creation, so those to come are the last columns."""
    first, last = int(existing.min()), int(existing.max())
    scores_BN[:, last:] = -np.inf
    to_come = np.arange(first, last) >= existing[:, None]
    np.copyto(scores_BN[:, first:last], -np.inf, where=to_come)
    scores_BN.reshape(-1)[seen] = -np.inf


def _top(score_BN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores and columns of the k highest, best first; NaN counts as the highest.

    Every one of the k highest lies in a group of columns whose maximum is among the k highest maxima. Group j holds the
    columns j, j + width, j + 2 width, .., so that maxima are found without adding across; the few last columns always
    compete.
    """
    num_rows, num_items = score_BN.shape
    width = num_items // GROUP
    if width <= k:
        best_BK, column_BK = score_BN.topk(k)
        return best_BK, column_BK
    maxima = score_BN[:, : GROUP * width].view(num_rows, GROUP, width).amax(1)
    members = maxima.topk(k).indices[:, :, None] + width * torch.arange(GROUP)
    last = torch.arange(GROUP * width, num_items).expand(num_rows, -1)
    column_BM = torch.cat([members.flatten(1), last], 1)
    best_BK, place_BK = score_BN.gather(1, column_BM).topk(k)
    return best_BK, column_BM.gather(1, place_BK)
