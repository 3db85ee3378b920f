"""The stream of alignment: which targets, what each is told with, and that nothing later shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from random_logs import Log, Record, User, random_log

from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.diversification import Diversification, HotComments
from reeltalk.data.histories import Histories
from reeltalk.data.instance_stream import Instances, ItemComments
from reeltalk.data.instances import Entry, InstanceBatch, Words
from reeltalk.data.raw import DAY
from reeltalk.errors import DataError

LENGTH = 4


def words_of(log: Log) -> Words:
    """t1, t2, .. and c1, c2, ..; title 3 and comment 1 are blank."""
    titles = [f"t{item}" if item != 3 else "" for item in range(1, log.num_items + 1)]
    comments = [f"c{comment}" if comment != 1 else "  " for comment in range(1, len(log.comments))]
    return Words(pl.Series(titles, dtype=pl.String), pl.Series(comments, dtype=pl.String))


def hot_of(log: Log) -> HotComments:
    """All comments of an item are hot, the newest first."""
    offsets = log.pool.offsets
    comment = np.concatenate([np.arange(last, first, -1) for first, last in pairwise(offsets)])
    return HotComments(offsets, comment, log.pool.created[comment])


def stream_of(
    log: Log, *, history: float = 0.5, entry: float = 0.3, length: int = LENGTH, seed: int = 0, num_negatives: int = 0
) -> Instances:
    return Instances(
        log.histories,
        words_of(log),
        log.pool,
        log.created,
        Diversification(hot_of(log), history, entry),
        length=length,
        num_positions=10,
        num_negatives=num_negatives,
        seed=seed,
    )


def with_splits(log: Log, *, valid_from: int) -> Log:
    """What happens from then on is held out."""

    def split(time: int) -> Split:
        return Split.TRAIN if time < valid_from else Split.VALID

    return replace(
        log,
        users=[
            User(
                [replace(event, split=split(event.time)) for event in user.items],
                [replace(record, split=split(record.start)) for record in user.records],
            )
            for user in log.users
        ],
    )


@pytest.fixture(scope="module")
def log() -> Log:
    return with_splits(random_log(5, num_users=14, max_items=9, max_records=7), valid_from=34)


def expected_targets(log: Log, words: Words) -> list[tuple[int, str, str, int]]:
    """(user, target, watched, time) of every training target, from the plain lists."""
    title, comment = ["", *words.titles], ["", *(text.strip() for text in words.comments)]
    targets = []
    for user_id, user in enumerate(log.users, 1):
        for place, event in enumerate(user.items):
            has_history = place > 0 or any(record.end < event.time for record in user.records)
            if event.split == Split.TRAIN and has_history and title[event.item]:
                targets.append((user_id, title[event.item], "", event.time))
        for place, record in enumerate(user.records):
            has_history = place > 0 or any(event.time < record.start for event in user.items)
            for chosen in record.comments:
                is_there = log.pool.created[chosen] < record.start and log.pool.author[chosen] != user_id
                if record.split == Split.TRAIN and has_history and is_there and comment[chosen]:
                    targets.append((user_id, comment[chosen], title[record.item], record.start))
    return targets


def told_targets(batch: InstanceBatch) -> list[tuple[int, str, str, int]]:
    watched = [instance.watched or "" for instance in batch.instances]
    targets = [instance.target for instance in batch.instances]
    return list(zip(batch.user.tolist(), targets, watched, batch.windows.request.tolist(), strict=True))


def test_own_comments_are_no_targets(log: Log) -> None:
    author = np.full_like(log.pool.author, 12)  # of all comments
    theirs = replace(log, pool=replace(log.pool, author=author))
    stream = stream_of(theirs)
    batch = stream.batch(0, batch_size=len(stream.targets))
    assert Counter(told_targets(batch)) == Counter(expected_targets(theirs, stream.words))
    plain = stream_of(log).batch(0, batch_size=len(stream_of(log).targets))
    assert 12 in plain.user[~plain.is_item] and 12 not in batch.user[~batch.is_item]


def test_every_training_target_once_an_epoch(log: Log) -> None:
    stream = stream_of(log)
    expected = Counter(expected_targets(log, stream.words))
    count = len(stream.targets)
    assert expected.total() == count > 40
    for epoch in range(3):
        told = stream.batch(epoch, batch_size=count)
        assert Counter(told_targets(told)) == expected
        assert 0 < told.is_item.sum() < count
    orders = [told_targets(stream.batch(epoch, batch_size=count)) for epoch in range(2)]
    assert orders[0] != orders[1]
    assert told_targets(stream_of(log, seed=1).batch(0, batch_size=count)) != orders[0]


def same(one: InstanceBatch, other: InstanceBatch) -> bool:
    """Equal in every field."""

    def flat(batch: InstanceBatch) -> list[object]:
        tables = [getattr(part, f.name) for part in (batch.histories, batch.windows) for f in fields(part)]
        rest = [batch.positions, batch.is_item, batch.user, batch.watched, batch.target, batch.answer, batch.text_key]
        return [batch.instances, batch.texts, *(array.tolist() for array in (*tables, *rest))]

    return flat(one) == flat(other)


def test_a_step_is_the_same_whatever_was_asked_before(log: Log) -> None:
    """So a resumed stream is the unbroken one."""
    unbroken = [stream_of(log).batch(step, batch_size=16) for step in range(9)]
    resumed = stream_of(log)
    for step in (7, 8, 2):
        assert same(resumed.batch(step, batch_size=16), unbroken[step])
    assert not same(unbroken[0], unbroken[1])
    assert not same(stream_of(log, seed=1).batch(0, batch_size=16), unbroken[0])
    drawn = {tuple(batch.positions.flatten().tolist()) for batch in unbroken}
    assert len(drawn) == len(unbroken)


def test_ranks_share_the_batch_that_one_would_see(log: Log) -> None:
    stream = stream_of(log, history=1.0, entry=0.5)
    whole = stream.batch(3, batch_size=12)
    parts = [stream.batch(3, batch_size=4, rank=rank, num_ranks=3) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert part.instances == whole.instances[rank::3]
        assert (part.positions == whole.positions).all()
        assert part.text_key[part.target].tolist() == whole.text_key[whole.target][rank::3].tolist()


def test_drawn_positions(log: Log) -> None:
    """Eq 3: in order, without repetition, each as often as any other, and both tables apart."""
    stream = stream_of(log)
    drawn = np.stack([stream.batch(step, batch_size=1).positions for step in range(500)])
    assert drawn.shape == (500, 2, LENGTH)
    assert (np.diff(drawn, axis=-1) > 0).all() and drawn.min() == 0 and drawn.max() == 9
    shares = np.bincount(drawn.flatten(), minlength=10) / 1000
    np.testing.assert_allclose(shares, LENGTH / 10, atol=0.06)
    assert (drawn[:, 0] != drawn[:, 1]).any(-1).mean() > 0.9
    in_order = replace(stream, num_positions=LENGTH).batch(0, batch_size=1).positions
    assert in_order.tolist() == [list(range(LENGTH))] * 2


def sequential_side(batch: InstanceBatch, index: int) -> tuple[list[Entry], list[Entry]]:
    """What the SR model reads, in words."""
    histories, texts = batch.histories, batch.texts
    rows = range(histories.item_offsets[index + 1], histories.item_offsets[index + 2])
    items = [
        Entry(int(histories.time[r]), texts[histories.item[r]], _words(texts, [histories.hot_comment[r]])) for r in rows
    ]
    records = []
    for row in range(histories.record_offsets[index + 1], histories.record_offsets[index + 2]):
        comments = histories.comment[histories.comment_offsets[row] : histories.comment_offsets[row + 1]]
        title, time = texts[histories.record_item[row]], int(histories.start[row])
        records.append(Entry(time, title, _words(texts, comments.tolist())))
    return items, records


def _words(texts: list[str], rows: list[int]) -> list[str]:
    return [texts[row] for row in rows if row]


def test_both_sides_against_the_plain_lists(log: Log) -> None:
    """Undiversified: the last entries of each history strictly before the target, the same on both sides."""
    stream = stream_of(log, history=0.0)
    title, comment = ["", *stream.words.titles], ["", *(text.strip() for text in stream.words.comments)]
    batch = stream.batch(0, batch_size=len(stream.targets))
    assert batch.texts[0] == "" and len(set(batch.texts)) == len(batch.texts)
    for index, (user_id, target, watched, time) in enumerate(told_targets(batch)):
        user, instance = log.users[user_id - 1], batch.instances[index]
        row, is_item = int(batch_rows(stream, batch)[index]), bool(batch.is_item[index])
        items = user.items[: row - log.histories.item_offsets[user_id]] if is_item else None
        records = None if is_item else user.records[: row - log.histories.record_offsets[user_id]]
        items = [event for event in user.items if event.time < time] if items is None else items
        records = [record for record in user.records if record.end < time] if records is None else records
        told_items = [Entry(e.time, title[e.item], [comment[e.hot]] if comment[e.hot] else []) for e in items[-LENGTH:]]
        told_records = [
            Entry(r.start, title[r.item], [comment[c] for c in r.comments[-3:] if comment[c]])
            for r in records[-LENGTH:]
        ]
        assert (instance.items, instance.records) == (told_items, told_records)
        assert sequential_side(batch, index) == (told_items, told_records)
        assert instance.task == ("item" if is_item else "comment") == ("comment" if watched else "item")
        assert batch.texts[batch.target[index]] == target and batch.texts[batch.watched[index]] == watched


def batch_rows(stream: Instances, batch: InstanceBatch) -> np.ndarray:
    """The target's row of every instance of the first epoch."""
    return stream.targets.row[stream._order(np.arange(len(batch.instances)))]


def test_diversified_sides(log: Log) -> None:
    """With certainty: different comments a side, of the same item, that existed; none of the target's is added."""
    stream = stream_of(log, history=1.0, entry=1.0)
    plain = stream_of(log, history=0.0).batch(0, batch_size=len(stream.targets))
    batch = stream.batch(0, batch_size=len(stream.targets))
    rows, differing = batch_rows(stream, batch), 0
    for index, instance in enumerate(batch.instances):
        items, records = sequential_side(batch, index)
        never = set[str]()
        if instance.task == "comment":
            histories = log.histories
            first, last = histories.comment_offsets[rows[index] : rows[index] + 2]
            never = {f"c{comment}" for comment in histories.comment[first:last]}
        before = plain.instances[index]
        for own, one, other in zip(
            [*before.items, *before.records], [*items, *records], [*instance.items, *instance.records], strict=True
        ):
            assert own.title == one.title == other.title
            differing += one != other
            for text in {*one.comments, *other.comments} - {*own.comments}:
                comment = int(text[1:])
                assert text not in never
                assert f"t{np.searchsorted(log.pool.offsets, comment) - 1}" in (own.title, "t3")
        for own, one, other in zip(before.records, records, instance.records, strict=True):
            assert {*own.comments} <= {*one.comments, *other.comments}
    assert differing > 50


def test_what_comes_later_changes_nothing(log: Log) -> None:
    """Events at or after a target's time may be any: its instance stays. Which comments are hot is counted once."""
    stream = stream_of(log, history=1.0, entry=0.5)
    batch = stream.batch(0, batch_size=len(stream.targets))
    rows, checked = batch_rows(stream, batch), 0
    for index in range(len(rows)):
        time, is_item = int(batch.windows.request[index]), batch.is_item[index]
        histories = log.histories
        other = dict(
            item=np.where(histories.time >= time, 1 + histories.item % log.num_items, histories.item),
            hot_comment=np.where(histories.time >= time, 2, histories.hot_comment),
            record_item=np.where(
                histories.start >= time, 1 + histories.record_item % log.num_items, histories.record_item
            ),
        )
        column = "item" if is_item else "record_item"
        target_row = rows[index]
        own_time = histories.time if is_item else histories.start
        ties = (own_time == time) & (np.arange(len(own_time)) <= target_row)  # earlier in the log at the same time
        other[column] = np.where(ties, getattr(histories, column), other[column])
        if is_item:
            other["hot_comment"] = np.where(ties, histories.hot_comment, other["hot_comment"])
        changed = replace(stream, histories=replace(histories, **other))
        changed.__dict__["targets"] = stream.targets
        again = changed.batch(index, batch_size=1)
        assert again.instances == [batch.instances[index]]
        assert sequential_side(again, 0) == sequential_side(batch, index)
        checked += any((values != getattr(histories, name)).any() for name, values in other.items())
    assert checked > 20


def test_drawn_negatives_existed_and_were_not_chosen(log: Log) -> None:
    """Of a record: others' comments under its item. Of an item target: items. Only of the train split."""
    stream = stream_of(log, num_negatives=4, history=0.0)
    texts = Counter[str]()
    for step in range(len(stream.targets)):
        batch = stream.batch(step, batch_size=1)
        drawn = [batch.texts[row] for row in batch.negative]
        texts.update(drawn)
        moment, user = int(batch.windows.request[0]), int(batch.user[0])
        records = [record for record in log.users[user - 1].records if record.split == Split.TRAIN]
        items = {record.item for record in records if record.start <= moment}
        chosen = {f"c{each}" for record in records for each in record.comments if record.start == moment}
        assert batch.instances[0].target not in drawn and not chosen & set(drawn)
        for text in drawn:
            number = int(text[1:])
            if text[0] == "t":
                assert batch.instances[0].task == "item" and log.created[number - 1] <= moment
            else:
                item = int(np.searchsorted(log.pool.offsets, number - 1, side="right")) - 1
                assert item in items and log.pool.created[number] < moment and log.pool.author[number] != user
    assert {text[0] for text in texts} == {"t", "c"} and len(texts) > 10
    assert "t3" not in texts and "c1" not in texts  # what is blank is none


def test_items_drawn_may_be_those_of_the_last_days(log: Log) -> None:
    stream = replace(stream_of(log, num_negatives=50), active_days=5 / DAY)  # times of the log are small
    batch = stream.batch(0, batch_size=len(stream.targets))
    alone = [stream.batch(place, batch_size=1) for place in range(len(stream.targets))]
    found = [
        (int(each.windows.request[0]) - log.created[int(text[1:]) - 1])
        for each in alone
        for text in (each.texts[row] for row in each.negative)
        if text[0] == "t"
    ]
    assert len(batch.negative) == sum(len(each.negative) for each in alone)
    assert found and min(found) >= 0 and max(found) <= 5


def test_nothing_to_align_on() -> None:
    empty = replace(random_log(0), users=[User([], [Record(3, 4, 1, ())])])
    with pytest.raises(DataError, match="nothing to align on"):
        stream_of(empty).batch(0, batch_size=1)


def test_stream_of_a_dataset(toy_dataset: Dataset) -> None:
    stream = Instances.of(toy_dataset, seed=3)
    batch = stream.batch(0, batch_size=64)
    assert len(batch.instances) == 64 and {instance.task for instance in batch.instances} == {"item", "comment"}
    assert max(len(instance.items) for instance in batch.instances) > 5
    assert all(instance.target for instance in batch.instances)
    assert batch.positions.shape == (2, 20)


@pytest.mark.parametrize("of", ["hot", "random", "none"])
def test_item_entries_are_told_with_the_comments_that_are_asked_for(of: ItemComments, toy_dataset: Dataset) -> None:
    """Also those that diversification leaves alone; records keep their own whatever is asked for."""
    comments = toy_dataset.comments
    belongs = dict(zip(comments["comment_id"].to_list(), comments["item_id"].to_list(), strict=True))
    created = dict(zip(comments["comment_id"].to_list(), comments["created"].to_list(), strict=True))
    stream = Instances.of(toy_dataset, hot_comments=of, history_probability=0.0)
    asked, hot = stream.histories, Histories.of(toy_dataset)
    told = asked.hot_comment
    assert (told > 0).any() == (of != "none")
    assert (told != hot.hot_comment).any() == (of != "hot")
    for item, time, comment in zip(asked.item.tolist(), asked.time.tolist(), told.tolist(), strict=True):
        assert not comment or (belongs[comment] == item and created[comment] < time)
    assert np.array_equal(asked.comment, hot.comment)
    assert (Instances.of(toy_dataset, hot_comments=of).diversification.history_probability > 0) == (of != "none")
