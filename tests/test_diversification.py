"""Comment diversification: what must hold whatever is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reeltalk.data.dataset import Dataset
from reeltalk.data.diversification import (
    Diversification,
    HotComments,
    Sides,
    mixed_and_dealt,
    two_of_the_hottest,
)
from reeltalk.data.histories import Happened

ids = st.lists(st.integers(1, 30), max_size=10, unique=True)
seeds = st.integers(0, 2**32 - 1)


@given(own=st.lists(st.integers(1, 30), max_size=3, unique=True), hot=ids, seed=seeds)
def test_records(own: list[int], hot: list[int], seed: int) -> None:
    """Two groups of k: all of its own are kept, the rest is hot, and they are disjoint where hot ones suffice."""
    one, other = mixed_and_dealt(own, hot, np.random.default_rng(seed))
    added = set(hot) - set(own)
    assert len(set(one)) == len(one) == len(set(other)) == len(other) == len(own)
    assert set(own) <= set(one) | set(other) <= set(own) | added
    assert len(set(one) & set(other)) == max(0, len(own) - len(added))


@given(own=st.lists(st.integers(1, 30), max_size=1), hot=ids, seed=seeds)
def test_item_entries(own: list[int], hot: list[int], seed: int) -> None:
    """Two distinct ones of the three hottest, or what it had."""
    one, other = two_of_the_hottest(own, hot, np.random.default_rng(seed))
    if len(hot) < 2:
        assert one == other == own
    else:
        assert len({*one, *other}) == 2 and {*one, *other} <= set(hot[:3])


def test_every_way_to_deal_is_as_likely() -> None:
    rng = np.random.default_rng(0)
    dealt = [mixed_and_dealt([1, 2], [3, 4, 5], rng) for _ in range(4_000)]
    for comment, share in ((1, 1 / 2), (2, 1 / 2), (3, 1 / 3), (4, 1 / 3), (5, 1 / 3)):
        for side in range(2):
            found = np.mean([comment in sides[side] for sides in dealt])
            assert found == pytest.approx(share, abs=0.04)
    pairs = [two_of_the_hottest([], [1, 2, 3, 4], rng) for _ in range(3_000)]
    for pair in ((a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b):
        assert np.mean([(one, other) == pair for (one,), (other,) in pairs]) == pytest.approx(1 / 6, abs=0.03)


@st.composite
def hot_comments(draw: st.DrawFn) -> HotComments:
    """Up to ten comments of each of 4 items, in any order of creation."""
    counts = draw(st.lists(st.integers(0, 10), min_size=4, max_size=4))
    created = draw(st.lists(st.integers(0, 20), min_size=sum(counts), max_size=sum(counts)))
    comment = draw(st.permutations(range(1, sum(counts) + 1)))
    offsets = np.concatenate([[0, 0], np.cumsum(counts)]).astype(np.int64)
    return HotComments(offsets, np.array(comment, np.int64), np.array(created, np.int64))


entries = st.lists(
    st.builds(Happened, st.integers(1, 4), st.integers(0, 25), st.lists(st.integers(90, 99), max_size=3, unique=True)),
    max_size=8,
)


@given(hot=hot_comments(), history=entries, never=st.sets(st.integers(1, 40)), seed=seeds)
def test_nothing_from_the_future_and_nothing_of_the_target(
    hot: HotComments, history: list[Happened], never: set[int], seed: int
) -> None:
    for deal in (two_of_the_hottest, mixed_and_dealt):
        told = Diversification(hot, 1.0, 1.0)(history, deal, never=never, rng=np.random.default_rng(seed))
        assert len(told) == len(history)
        for (item, time, own), sides in zip(history, told, strict=True):
            for comment in {*sides.sequential, *sides.supplemental} - set(own):
                row = hot.comment.tolist().index(comment)
                assert hot.offsets[item] <= row < hot.offsets[item + 1]
                assert hot.created[row] < time
                assert comment not in never


@given(hot=hot_comments(), history=entries, seed=seeds, certain=st.booleans())
def test_a_probability_of_zero_leaves_all_alone(
    hot: HotComments, history: list[Happened], seed: int, certain: bool
) -> None:
    for probabilities in ((0.0, float(certain)), (float(certain), 0.0)):
        diversification = Diversification(hot, *probabilities)
        told = diversification(history, mixed_and_dealt, never=(), rng=np.random.default_rng(seed))
        assert told == [Sides(entry.comments, entry.comments) for entry in history]


def test_probabilities() -> None:
    """Half of the histories, and in these three entries of ten."""
    hot = HotComments(np.array([0, 0, 3]), np.array([1, 2, 3]), np.zeros(3, np.int64))
    rng = np.random.default_rng(0)
    history = [Happened(1, 5, [7])] * 20
    changed = np.array(
        [
            [sides.sequential != [7] for sides in Diversification(hot)(history, two_of_the_hottest, never=(), rng=rng)]
            for _ in range(1_000)
        ]
    )
    assert changed.any(1).mean() == pytest.approx(0.5, abs=0.05)
    assert changed[changed.any(1)].mean() == pytest.approx(0.3, abs=0.02)


def test_hot_comments_of_a_dataset(toy_dataset: Dataset) -> None:
    """Those of the table in order of rank, of the item, and only such as existed."""
    hot = HotComments.of(toy_dataset)
    created = dict(toy_dataset.comments.select("comment_id", "created").iter_rows())
    moments = toy_dataset.comments["created"].quantile(0.5)
    assert moments is not None
    some = 0
    for item in range(1, toy_dataset.num_items + 1):
        table = toy_dataset.hot_comments.filter(item_id=item).sort("rank")["comment_id"].to_list()
        assert hot.before(2**60, item) == table
        assert hot.before(int(moments), item) == [comment for comment in table if created[comment] < int(moments)]
        assert hot.hottest_before(np.array([moments], np.int64), np.array([item])).tolist() == (
            hot.before(int(moments), item)[:1] or [0]
        )
        some += 0 < len(hot.before(int(moments), item)) < len(table)
    assert some
