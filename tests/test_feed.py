"""What goes into batches: negatives that existed, positives that existed, the same numbers for the same generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_logs import Log, random_log

from reeltalk.data.dataset import Dataset
from reeltalk.data.histories import request_windows, target_windows, training_windows
from reeltalk.data.pool import CommentPool
from reeltalk.data.ragged import Ints, Ragged, offsets_of
from reeltalk.text.lookup import TextLookup
from reeltalk.training.feed import Feed, shuffled


@pytest.fixture(scope="module")
def log() -> Log:
    return random_log(31, num_users=40, num_items=12)


def asked(log: Log) -> tuple[Ints, Ints, Ints]:
    """Every item at every moment, by some user."""
    items, moments = (grid.reshape(-1) for grid in np.meshgrid(np.arange(1, log.num_items + 1), np.arange(0, 45, 3)))
    return items, moments, np.arange(len(items)) % 41


def allowed(log: Log, item: int, moment: int, user: int) -> set[int]:
    ids = range(log.pool.offsets[item] + 1, log.pool.offsets[item + 1] + 1)
    return {i for i in ids if log.pool.created[i] < moment and not (user and log.pool.author[i] == user)}


def test_sampled_comments_stand_under_the_item_and_existed_and_are_of_others(log: Log) -> None:
    items, moments, users = asked(log)
    drawn = log.pool.sample(items, moments, users, count=60, rng=np.random.default_rng(0))
    assert drawn.shape == (len(items), 60)
    for row, item, moment, user in zip(drawn, items, moments, users, strict=True):
        assert set(row.tolist()) - {0} == allowed(log, item, moment, user)  # 60 draws from at most 6 meet them all


def test_sampling_is_uniform_and_follows_the_generator(log: Log) -> None:
    item = int(np.argmax(np.diff(log.pool.offsets)))
    rows = np.full(1, item), np.full(1, 1_000), np.full(1, 0)
    drawn = log.pool.sample(*rows, count=60_000, rng=np.random.default_rng(1))
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == np.diff(log.pool.offsets)[item] and (np.abs(counts / counts.mean() - 1) < 0.05).all()
    again = log.pool.sample(*rows, count=60_000, rng=np.random.default_rng(1))
    other = log.pool.sample(*rows, count=60_000, rng=np.random.default_rng(2))
    assert (drawn == again).all() and (drawn != other).any()


def test_comment_pool_of_a_dataset(toy_dataset: Dataset) -> None:
    pool = CommentPool.of(toy_dataset)
    for row in toy_dataset.comments.sample(30, seed=0).iter_rows(named=True):
        assert pool.offsets[row["item_id"]] < row["comment_id"] <= pool.offsets[row["item_id"] + 1]
        assert pool.created[row["comment_id"]] == row["created"]
        assert pool.author[row["comment_id"]] == row["user_id"]


def test_comment_batch(log: Log) -> None:
    """One target for each comment of another that existed when its record began; negatives are none of the record's."""
    histories = log.histories
    windows = training_windows(histories, "comment", length=50, has_start=True)
    feed = log.feed("comment", num_negatives=30)
    batch, targets = feed.comment_batch(windows, rng=np.random.default_rng(5))
    candidates = batch.comment_U[targets.candidate_TC].numpy()
    offsets = histories.comment_offsets
    owner = np.searchsorted(histories.record_offsets, np.arange(len(histories.start)), side="right") - 1
    expected = [
        (row, comment)
        for row in range(len(histories.start))
        for comment in histories.comment[offsets[row] : offsets[row + 1]].tolist()
        if log.pool.created[comment] < histories.start[row] and log.pool.author[comment] != owner[row]
    ]
    dropped = len(histories.comment) - len(expected)
    assert 0 < dropped < len(histories.comment)
    assert candidates[:, 0].tolist() == [comment for _, comment in expected]
    assert targets.item_T.tolist() == [histories.record_item[row] for row, _ in expected]
    position = batch.records.position_RL.flatten()[targets.position_T]
    assert position.tolist() == [row - histories.record_offsets[owner[row]] - 1 for row, _ in expected]
    for (row, _), negatives in zip(expected, candidates[:, 1:], strict=True):
        own = set(histories.comment[offsets[row] : offsets[row + 1]].tolist())
        possible = allowed(log, histories.record_item[row], histories.start[row], owner[row]) - own
        assert set(negatives.tolist()) - {0} <= possible
        assert len(set(negatives.tolist()) - {0}) >= min(len(possible), 1)
    assert batch.comment_U[0] == 0 and batch.comment_U.diff().min() > 0
    assert (batch.comment_text_UE.numpy() == log.text.comments(batch.comment_U.numpy()).numpy()).all()


def test_comment_batch_follows_the_generator(log: Log) -> None:
    windows = training_windows(log.histories, "comment", length=50, has_start=True)
    feed = log.feed("comment")
    drawn = [
        batch.comment_U[targets.candidate_TC]
        for batch, targets in (feed.comment_batch(windows, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


def test_candidate_batch_keeps_candidates_and_their_order(log: Log) -> None:
    histories = log.histories
    rows = np.arange(len(histories.start))[::-1].copy()
    windows = target_windows(histories, "comment", rows, length=50)
    lists = [[3, 1, 2], [], [5], *[[1, 4]] * (len(rows) - 3)]
    ragged = Ragged(
        np.array([c for ids in lists for c in ids], dtype=np.int32), offsets_of([len(ids) for ids in lists])
    )
    batch, targets = log.feed("comment").candidate_batch(windows, histories.record_item[rows], ragged)
    ids = batch.comment_U[targets.candidate_TC].tolist()
    assert ids == [row + [0] * (3 - len(row)) for row in lists]
    assert targets.item_T.tolist() == histories.record_item[rows].tolist()
    assert targets.feature_TCF.shape == (len(rows), 3, 0)


def test_item_batch_knows_what_existed(log: Log) -> None:
    histories = log.histories
    windows = training_windows(histories, "item", length=50, has_start=True)
    batch, targets = log.feed("item").item_batch(windows)
    assert targets.item_T.tolist() == histories.item.tolist()
    assert targets.existing_T.tolist() == [int((log.created <= time).sum()) for time in histories.time]
    assert (targets.item_T <= targets.existing_T).all()
    assert len(set(targets.existing_T.tolist())) > 2
    assert batch.items.item_RL.max() <= log.num_items


def test_outdated_items_do_not_compete_in_training(log: Log) -> None:
    days = 10.5 / 86_400_000  # ten ticks of the random log
    feed = replace(log.feed("item"), active_days=days)
    windows = training_windows(log.histories, "item", length=50, has_start=True)
    _, targets = feed.item_batch(windows)
    outdated = [int((log.created < time - 10).sum()) for time in log.histories.time]
    assert targets.first_T.tolist() == [
        min(count, item - 1) for count, item in zip(outdated, targets.item_T.tolist(), strict=True)
    ]
    assert outdated != targets.first_T.tolist()  # some targets are outdated themselves: what came after them competes
    assert len(set(targets.first_T.tolist())) > 2


def test_a_request_has_no_target_yet(log: Log) -> None:
    users = np.array([40, 1, 40])
    windows = request_windows(log.histories, "item", users, np.full(3, 10_000), length=50)
    batch, targets = log.feed("item", has_start=False).item_batch(windows)
    assert len(targets.position_T) == 3
    assert targets.position_T[1] == -1 and (targets.position_T[[0, 2]] >= 0).all()
    last = batch.items.item_RL.flatten()[targets.position_T[[0, 2]]]
    assert last.tolist() == [log.users[39].items[-1].item] * 2


@pytest.mark.parametrize("record_comments", [1, 2, 9])
def test_the_last_comments_of_a_record_are_read(log: Log, record_comments: int) -> None:
    histories = log.histories
    rows = np.flatnonzero(np.diff(histories.record_offsets)[1:] > 1) + 1
    windows = request_windows(histories, "comment", rows, np.full(len(rows), 1_000), length=50)
    feed = replace(log.feed("comment"), record_comments=record_comments)
    batch, targets = feed.candidate_batch(
        windows, np.ones(len(rows), np.int64), Ragged.from_lists(empty_lists(len(rows)))
    )
    ids = batch.comment_U[batch.records.comment_RLK].flatten(0, 1)[targets.position_T]
    for user, found in zip(rows, ids.tolist(), strict=True):
        chosen = log.users[user - 1].records[-1].comments[-record_comments:]
        assert [c for c in found if c] == list(chosen)


def empty_lists(count: int):  # type: ignore[no-untyped-def]
    import polars as pl

    return pl.Series([[]] * count, dtype=pl.List(pl.Int32))


@pytest.mark.parametrize(
    ("count", "batch_size", "num_ranks"), [(10, 3, 1), (10, 3, 2), (13, 4, 3), (2, 4, 5), (12, 2, 3)]
)
def test_shuffled_deals_every_window_and_every_rank_as_many_batches(
    log: Log, count: int, batch_size: int, num_ranks: int
) -> None:
    windows = training_windows(log.histories, "item", length=50, has_start=True)[:count]

    def dealt(epoch: int) -> list[list[list[int]]]:
        return [
            [
                chunk.user.tolist()
                for chunk in shuffled(
                    windows, batch_size=batch_size, seed=3, epoch=epoch, rank=rank, num_ranks=num_ranks
                )
            ]
            for rank in range(num_ranks)
        ]

    first = dealt(0)
    assert len({len(batches) for batches in first}) == 1
    assert all(0 < len(users) <= batch_size for batches in first for users in batches)
    users = [user for batches in first for chunk in batches for user in chunk]
    assert set(users) == set(windows.user.tolist())
    assert len(users) - count < num_ranks  # only the last batch is filled up
    assert dealt(0) == first
    assert count < 5 or dealt(1) != first


def test_text_lookup_of_no_text(toy_dataset: Dataset) -> None:
    lookup = TextLookup.nothing(toy_dataset)
    assert lookup.titles().shape == (toy_dataset.num_items + 1, 0)
    assert lookup.comments(np.array([0, 3])).shape == (2, 0)


def test_text_lookup_gives_zeros_for_empty_texts(log: Log) -> None:
    assert (log.text.titles().numpy() == log.titles).all()
    assert (log.text.comments(np.array([0, 1, 2])).numpy() == log.comments[:3]).all()
    assert not log.comments[:2].any() and not log.titles[3].any()


def test_the_same_windows_give_the_same_item_batch(log: Log) -> None:
    windows = training_windows(log.histories, "item", length=5, has_start=True)
    feed: Feed = log.feed("item")
    one, two = (feed.item_batch(windows)[0] for _ in range(2))
    assert (one.items.item_RL == two.items.item_RL).all() and (one.records.comment_RLK == two.records.comment_RLK).all()
