"""The stream of alignment (stage 1): the training targets of both tasks, in batches that seed and step fix.

Paper: LSVCR section 4.3.1 (both tasks learnt jointly, comment diversification) and eq 3 (drawn positions).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.diversification import (
    Diversification,
    HotComments,
    Sides,
    mixed_and_dealt,
    two_of_the_hottest,
)
from reeltalk.data.histories import Happened, Histories, Windows, target_windows
from reeltalk.data.instances import Drawn, InstanceBatch, Targets, Words, told
from reeltalk.data.pool import CommentPool
from reeltalk.data.ragged import Ints, ranges
from reeltalk.data.raw import DAY
from reeltalk.errors import DataError

ItemComments = Literal["hot", "random", "none"]
_ORDER, _INSTANCE, _POSITIONS, _, _NEGATIVES = range(5)  # streams of random numbers that must not meet


@dataclass(frozen=True)
class Instances:
    """The training targets of both tasks, and the histories that they are predicted from.

    pool: comments by item, and since when they exist. item_created: since when items exist, rising. length: entries of
    each history. num_positions: rows of a position table, at least `length`; where equal, entries stand in order, as
    without drawn positions. record_comments: of a record's distinct comments so many are used, the last ones.
    num_negatives: texts drawn to be told apart from the targets: for an item target titles of items that existed, of
    the last `active_days` where given; for each record of the train split, the target's too, others' comments under
    its item.
    """

    histories: Histories
    words: Words
    pool: CommentPool
    item_created: Ints
    diversification: Diversification
    length: int = 20
    num_positions: int = 50
    record_comments: int = 3
    num_negatives: int = 0
    active_days: float | None = None
    seed: int = 0

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        *,
        length: int = 20,
        num_positions: int = 50,
        record_comments: int = 3,
        history_probability: float = 0.5,
        entry_probability: float = 0.3,
        with_comments: bool = True,
        hot_comments: ItemComments = "hot",
        num_negatives: int = 0,
        active_days: float | None = None,
        seed: int = 0,
    ) -> Self:
        """The instances of a dataset; the defaults are the paper's and its reference implementation's.

        `hot_comments`: what item events are told with, and what is added to both histories: an item's hot comments,
        any of its comments, or none.
        """
        dataset.require_creation(active_days)
        histories, hot = told_with(dataset, hot_comments, seed=seed)
        # without comments there is nothing to tell in two ways
        are_added = with_comments and hot_comments != "none"
        return cls(
            histories if with_comments else histories.without_comments(),
            Words.of(dataset),
            CommentPool.of(dataset),
            dataset.items["created"].to_numpy().astype(np.int64),
            Diversification(hot, history_probability if are_added else 0.0, entry_probability),
            length=length,
            num_positions=num_positions,
            record_comments=record_comments,
            num_negatives=num_negatives,
            active_days=active_days,
            seed=seed,
        )

    @cached_property
    def targets(self) -> Targets:
        """Each next item, and each distinct comment of a record that existed when the record began, of the train split.

        Left out are a user's own comments, targets without a text, and those before which nothing happened: there is no
        preference to align.
        Raises DataError where none is left.
        """
        histories = self.histories
        row = np.flatnonzero(histories.item_split == Split.TRAIN)
        row = row[self.words.has_title(histories.item[row])]
        items = Targets(row, histories.item[row], np.zeros_like(row))
        record = np.repeat(np.arange(len(histories.record_item)), np.diff(histories.comment_offsets))
        user = np.searchsorted(histories.record_offsets, record, side="right") - 1
        is_target = (histories.record_split[record] == Split.TRAIN) & (self.pool.author[histories.comment] != user)
        is_target &= self.pool.created[histories.comment] < histories.start[record]
        row, comment = record[is_target], histories.comment[is_target]
        has_text = self.words.has_text(comment)
        comments = Targets(row[has_text], histories.record_item[row[has_text]], comment[has_text])
        both = Targets(
            *(np.concatenate([getattr(part, field.name) for part in (items, comments)]) for field in fields(Targets))
        )
        windows = self._windows(both)
        both = both[(windows.end > windows.begin) | (windows.other_end > windows.other_begin)]
        if len(both) == 0:
            raise DataError("no training target has a text and an event before it: there is nothing to align on")
        return both

    def batch(self, step: int, *, batch_size: int, rank: int = 0, num_ranks: int = 1) -> InstanceBatch:
        """This process's `batch_size` instances of a step, dealt from the step's `batch_size * num_ranks`.

        The stream goes through all targets once an epoch, in an order that seed and epoch fix, and on into the next
        epoch without a break. The same step gives the same batch, whatever was asked before.
        """
        first = step * batch_size * num_ranks
        place = np.arange(first + rank, first + batch_size * num_ranks, num_ranks)
        targets = self.targets[self._order(place)]
        windows = self._windows(targets)
        items: list[Sides] = []
        records: list[Sides] = []
        answers: list[int] = []
        for index, at in enumerate(place.tolist()):
            rng = np.random.default_rng([self.seed, _INSTANCE, at])
            # what is to be predicted, of the target and of the records before it, is not given away by an entry
            never = set(self.histories.comments_of(targets.row[index])) if targets.comment[index] else set[int]()
            for row in range(windows.other_begin[index], windows.other_end[index]):
                never.update(self.histories.comments_of(row))
            rows = range(windows.begin[index], windows.end[index])
            items += self.diversification(self.histories.item_entries(rows), two_of_the_hottest, never=never, rng=rng)
            rows = range(windows.other_begin[index], windows.other_end[index])
            happened = self.histories.record_entries(rows, record_comments=self.record_comments)
            sides = self.diversification(happened, mixed_and_dealt, never=never, rng=rng)
            records += sides
            user = int(windows.user[index])
            answers += [self._answer(*pair, user) for pair in zip(happened, sides, strict=True)]
        return told(
            targets,
            windows,
            items,
            records,
            answers,
            drawn=self._drawn(targets, windows, place),
            histories=self.histories,
            words=self.words,
            positions=self._positions(step),
        )

    def _drawn(self, targets: Targets, windows: Windows, place: Ints) -> Drawn:
        """Negatives of a step's instances; what the same record chose is none."""
        items, comments = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for index, at in enumerate(place.tolist() if self.num_negatives else ()):
            rng = np.random.default_rng([self.seed, _NEGATIVES, at])
            record = np.arange(windows.other_begin[index], windows.other_end[index])
            record = record[self.histories.record_split[record] == Split.TRAIN]
            if targets.comment[index]:
                record = np.append(record, targets.row[index])
            else:
                items.append(self._items_before(windows.request[index], targets.item[index], rng))
            comments.append(self._others_under(record, windows.user[index], rng))
        return Drawn(np.concatenate(items), np.concatenate(comments))

    def _items_before(self, moment: int, target: int, rng: np.random.Generator) -> Ints:
        last = int(np.searchsorted(self.item_created, moment, side="right"))
        first = 0
        if self.active_days is not None:
            first = int(np.searchsorted(self.item_created, moment - int(self.active_days * DAY)))
        ids = 1 + rng.integers(first, last, self.num_negatives if first < last else 0)
        kept: Ints = ids[ids != target]
        return kept

    def _others_under(self, record: Ints, user: int, rng: np.random.Generator) -> Ints:
        histories = self.histories
        item, start = histories.record_item[record], histories.start[record]
        drawn = self.pool.sample(item, start, np.full_like(item, user), count=self.num_negatives, rng=rng)
        first, last = histories.comment_offsets[record], histories.comment_offsets[record + 1]
        return drawn[~np.isin(drawn, histories.comment[ranges(first, last)])]

    def _answer(self, record: Happened, sides: Sides, user: int) -> int:
        """The last comment of another that existed when a record began, if the SR side is told of it; else 0."""
        created, author = self.pool.created, self.pool.author
        existing = [each for each in record.comments if created[each] < record.time and author[each] != user]
        told = [each for each in existing if each in sides.sequential]
        return told[-1] if told else 0

    def _order(self, place: Ints) -> Ints:
        """Which target stands at each place of the endless stream."""
        count = len(self.targets)
        epoch, within = np.divmod(place, count)
        target = np.empty_like(place)
        for each in np.unique(epoch).tolist():
            target[epoch == each] = _permutation(self.seed, each, count)[within[epoch == each]]
        return target

    def _positions(self, step: int) -> Ints:
        """Eq 3: for each table drawn without replacement and put in order, afresh a step."""
        rng = np.random.default_rng([self.seed, _POSITIONS, step])
        drawn = [rng.choice(self.num_positions, self.length, replace=False) for _ in range(2)]
        return np.sort(np.stack(drawn), axis=1)

    def _windows(self, targets: Targets) -> Windows:
        """Both histories before each target; item events are the anchor in both tasks."""
        columns = np.empty((7, len(targets)), np.int64)
        tasks: tuple[tuple[Task, NDArray[np.bool_]], ...] = (
            ("item", targets.comment == 0),
            ("comment", targets.comment > 0),
        )
        for task, is_chosen in tasks:
            found = target_windows(self.histories, task, targets.row[is_chosen], length=self.length)
            anchor, other = (found.begin, found.end), (found.other_begin, found.other_end)
            items, records = (anchor, other) if task == "item" else (other, anchor)
            columns[:, is_chosen] = np.stack([found.user, *items, items[1], *records, found.request])
        return Windows(*columns)


def told_with(dataset: Dataset, item_comments: ItemComments, *, seed: int) -> tuple[Histories, HotComments]:
    """The histories with item events told with these comments, and what may be added to them."""
    histories, hot = Histories.of(dataset), HotComments.of(dataset)
    if item_comments == "random":
        hot = HotComments.any_of(dataset, seed=seed)
        histories = replace(histories, hot_comment=hot.hottest_before(histories.time, histories.item))
    elif item_comments == "none":
        histories = replace(histories, hot_comment=np.zeros_like(histories.item))
    return histories, hot


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Ints:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(count)
