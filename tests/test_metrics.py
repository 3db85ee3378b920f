"""Metrics and ranks against hand tables, slow loops and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from reeltalk.data.as_of import EventsBefore
from reeltalk.data.ragged import Ragged, offsets_of
from reeltalk.evaluation.metrics import coverage, target_metrics
from reeltalk.evaluation.ranks import candidate_ranks, catalogue_ranks


def ragged(*rows: list[int]) -> Ragged:
    return Ragged(
        values=np.array([v for row in rows for v in row], dtype=np.int32), offsets=offsets_of([len(r) for r in rows])
    )


def test_metrics_match_a_table_worked_by_hand() -> None:
    found = target_metrics(ragged([1], [3], [6], [2, 4], [1, 2, 3]), ks=(2, 5))
    third = 1 / math.log2(3)
    expected = {
        "recall@2": [1, 0, 0, 1 / 2, 2 / 3],
        "hit@2": [1, 0, 0, 1, 1],
        "ndcg@2": [1, 0, 0, third / (1 + third), 1],
        "recall@5": [1, 1, 0, 1, 1],
        "hit@5": [1, 1, 0, 1, 1],
        "ndcg@5": [1, 1 / 2, 0, (third + 1 / math.log2(5)) / (1 + third), 1],
        "mrr": [1, 1 / 3, 1 / 6, 1 / 2, 1],
    }
    assert list(found) == ["recall@2", "ndcg@2", "hit@2", "recall@5", "ndcg@5", "hit@5", "mrr"]
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_metrics_match_torchmetrics_where_several_are_positive() -> None:
    rng = np.random.default_rng(0)
    lengths, num_positives = rng.integers(4, 40, 20), rng.integers(1, 4, 20)
    candidates = Ragged(values=np.zeros(lengths.sum(), dtype=np.int32), offsets=offsets_of(lengths))
    scores = rng.permutation(len(candidates.values)).astype(np.float32)
    found = target_metrics(candidate_ranks(scores, candidates, num_positives, np.zeros(len(scores))), ks=(1, 5, 10))
    for row, (start, stop) in enumerate(zip(candidates.offsets[:-1], candidates.offsets[1:], strict=True)):
        own = torch.from_numpy(scores[start:stop])
        is_positive = torch.arange(stop - start) < num_positives[row]
        assert found["mrr"][row] == pytest.approx(float(retrieval_reciprocal_rank(own, is_positive)))
        for k in (1, 5, 10):
            assert found[f"recall@{k}"][row] == pytest.approx(float(retrieval_recall(own, is_positive, top_k=k)))
            assert found[f"hit@{k}"][row] == pytest.approx(float(retrieval_hit_rate(own, is_positive, top_k=k)))
            expected = float(retrieval_normalized_dcg(own, is_positive, top_k=k))
            assert found[f"ndcg@{k}"][row] == pytest.approx(expected, abs=1e-6)


def test_candidate_ranks_are_a_loop_over_sorted_candidates() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 4, rng.integers(2, 10)).tolist() for _ in range(200)]  # few values, so many ties
    scores = np.array([score for row in rows for score in row], dtype=np.float32)
    tie_breaks, num_positives = rng.random(len(scores)), rng.integers(1, 3, len(rows))
    found = candidate_ranks(scores, ragged(*rows), num_positives, tie_breaks)
    start = 0
    for place, row in enumerate(rows):
        keys = [(-score, -tie_breaks[start + c]) for c, score in enumerate(row)]
        expected = [1 + sorted(keys).index(keys[positive]) for positive in range(num_positives[place])]
        assert found.values[found.offsets[place] : found.offsets[place + 1]].tolist() == expected
        start += len(row)


@pytest.mark.parametrize("num_items", [1, 2, 31, 32, 33, 700, 3001])
@pytest.mark.parametrize("has_ties", [False, True])
def test_catalogue_ranks_are_a_loop_over_candidates(num_items: int, has_ties: bool) -> None:
    rng = np.random.default_rng(num_items)
    rows, k = 11, 10
    scores = rng.standard_normal((rows, num_items)).astype(np.float32)
    scores = np.round(scores) if has_ties else scores
    positives, existing = rng.integers(0, num_items, rows), rng.integers(1, num_items + 1, rows)
    seen = np.unique(rng.integers(0, rows * num_items, 3 * rows))
    seen = np.setdiff1d(seen, np.arange(rows) * num_items + positives)
    found = catalogue_ranks(torch.from_numpy(scores.copy()), positives=positives, existing=existing, seen=seen, k=k)
    for row in range(rows):
        own = scores[row, positives[row]]
        left_out = {int(s) - row * num_items for s in seen}
        others = [c for c in range(existing[row]) if c not in left_out and c != positives[row]]
        assert found.greater[row] == sum(scores[row, c] > own for c in others)
        assert found.equal[row] == sum(scores[row, c] == own for c in others)
        listed = found.top[row][found.top[row] > 0] - 1
        allowed = {*others, int(positives[row])}
        assert set(listed.tolist()) <= allowed
        assert len(set(listed.tolist())) == len(listed) == min(k, len(allowed))
        assert scores[row, listed].tolist() == sorted((scores[row, c] for c in allowed), reverse=True)[:k]


def test_bfloat16_scores_rank_as_their_float32_values() -> None:
    scores = torch.randn(7, 900, generator=torch.Generator().manual_seed(1)).bfloat16()
    positives, existing, seen = np.arange(7), np.full(7, 900), np.zeros(0, dtype=np.int64)
    half, whole = (
        catalogue_ranks(block, positives=positives, existing=existing, seen=seen, k=5)
        for block in (scores, scores.float())
    )
    assert half.greater.tolist() == whole.greater.tolist()
    assert half.top.tolist() == whole.top.tolist()


def test_a_constant_score_is_chance_and_no_two_candidates_share_a_rank() -> None:
    num_targets, num_candidates = 20_000, 20
    shape = num_targets * num_candidates
    offsets = offsets_of(np.full(num_targets, num_candidates))
    candidates = Ragged(values=np.zeros(shape, dtype=np.int32), offsets=offsets)
    tie_breaks = np.random.default_rng(3).random(shape)
    ranks = candidate_ranks(np.zeros(shape, dtype=np.float32), candidates, np.full(num_targets, 2), tie_breaks)
    first, second = ranks.values.reshape(-1, 2).T
    assert (first != second).all()
    shares = np.bincount(ranks.values, minlength=num_candidates + 1)[1:] / len(ranks.values)
    assert shares == pytest.approx(np.full(num_candidates, 1 / num_candidates), abs=0.006)  # five standard errors


def test_coverage_counts_items_once_and_padding_never() -> None:
    assert coverage(np.array([[3, 1], [1, 0]]), num_items=8) == 2 / 8


@pytest.mark.parametrize("num_events", [0, 1, 40])
def test_events_before_are_a_loop_over_events(num_events: int) -> None:
    rng = np.random.default_rng(num_events)
    keys, times = rng.integers(0, 5, num_events), rng.integers(0, 10, num_events)
    before = EventsBefore(keys, times, num_keys=5)
    of, at = rng.integers(0, 5, 50), rng.integers(-1, 12, 50)
    expected = [
        sorted(t for k, t in zip(keys, times, strict=True) if k == key and t < time)
        for key, time in zip(of, at, strict=True)
    ]
    assert before.counts(of, at).tolist() == [len(found) for found in expected]
    starts, stops = before.starts[of], before.stops(of, at)
    assert [times[before.order[a:b]].tolist() for a, b in zip(starts, stops, strict=True)] == expected
