"""Candidate sets: for every validation and test target its positives and negatives, drawn once and saved.

Nothing that did not exist at the target's time is drawn: an item exists from its creation on, a comment strictly
after its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from reeltalk.data.dataset import ID, Split
from reeltalk.data.histories import offsets_by_id, rows_before
from reeltalk.data.ragged import Ints
from reeltalk.data.raw import DAY
from reeltalk.data.sampling import Bools, draw_distinct

_AT_ONCE = 16_384  # targets whose candidates are drawn in one go: bounds memory, and keeps the pace


def _column(frame: pl.DataFrame, name: str) -> Ints:
    return frame[name].to_numpy().astype(np.int64)


def pick_targets(split: pl.Series, *, most: int, rng: np.random.Generator) -> Ints:
    """Rows that are validation or test targets, in order; `most` of each part drawn at random, or all where it is 0."""
    parts = split.to_numpy()
    picked = []
    for part in (Split.VALID, Split.TEST):
        rows = np.flatnonzero(parts == part)
        picked.append(rng.choice(rows, most, replace=False) if 0 < most < len(rows) else rows)
    return np.sort(np.concatenate(picked))


@dataclass(frozen=True)
class ItemPool:
    """Which items may be negatives at a time: those that existed, or of those the ones active in the days before."""

    created: Ints  # of item_id 1.., never falling
    event_time: Ints  # of all item events, in order of time
    event_item: Ints
    previous_time: Ints  # of the same item's previous event, -1 where there is none
    pair: Ints  # sorted: user_id * (num_items + 1) + item_id
    pair_row: Ints  # the event in which that user first turned to that item
    pair_time: Ints  # and when

    @classmethod
    def of(cls, items: pl.DataFrame, *, item_events: pl.DataFrame) -> ItemPool:
        """`item_events` sorted by user and time."""
        user, item, time = (_column(item_events, name) for name in ("user_id", "item_id", "time"))
        pair, first = np.unique(user * (len(items) + 1) + item, return_index=True)
        by_time = np.argsort(time, kind="stable")
        event_time, event_item = time[by_time], item[by_time]
        by_item = np.argsort(event_item, kind="stable")
        previous_time = np.full(len(item), -1, dtype=np.int64)
        same = event_item[by_item][1:] == event_item[by_item][:-1]
        previous_time[by_item[1:][same]] = event_time[by_item[:-1][same]]
        return cls(_column(items, "created"), event_time, event_item, previous_time, pair, first, time[first])

    def existing(self, times: Ints) -> Ints:
        """How many items existed at each time: they are the ids 1 up to that number."""
        return np.searchsorted(self.created, times, side="right")

    def _pair(self, user: Ints, item: Ints) -> tuple[Ints, Bools]:
        """The place of each pair, and whether there is one: the user ever turned to the item."""
        key = user * (len(self.created) + 1) + item
        at = np.minimum(np.searchsorted(self.pair, key), len(self.pair) - 1)
        return at, self.pair[at] == key

    def draw(
        self, targets: Ints, events: pl.DataFrame, *, wanted: int, active_days: float | None, rng: np.random.Generator
    ) -> tuple[Ints, Ints, int]:
        """Rows and items of the negatives of `targets`, whose events are `events`; sorted.

        Also how many were filled up from outside the active ones.
        """
        user, positive, time = (_column(events, name) for name in ("user_id", "item_id", "time"))
        is_repeat = self.pair_row[self._pair(user, positive)[0]] < targets

        def is_negative(row: Ints, item: Ints) -> Bools:
            at, is_pair = self._pair(user[row], item)
            is_unseen = ~is_pair | (self.pair_time[at] > time[row])
            return np.where(is_repeat[row], item != positive[row], is_unseen)

        num_wanted = np.full(len(user), wanted)
        rows = items = np.empty(0, dtype=np.int64)
        if active_days is not None:
            rows, items = self._draw_active(time, num_wanted, int(active_days * DAY), is_negative, rng)
            num_wanted = num_wanted - np.bincount(rows, minlength=len(user))
        chosen = np.sort(rows * (len(self.created) + 1) + items)

        def is_valid(row: Ints, item: Ints) -> Bools:
            return is_negative(row, item) & ~_among(chosen, row * (len(self.created) + 1) + item)

        more_rows, more_items = draw_distinct(
            np.ones(len(user), dtype=np.int64), self.existing(time), num_wanted, is_valid=is_valid, rng=rng
        )
        filled_up = len(more_rows) if active_days is not None else 0
        rows, items = np.concatenate([rows, more_rows]), np.concatenate([items, more_items])
        order = np.lexsort((items, rows))
        return rows[order], items[order], filled_up

    def _draw_active(
        self,
        time: Ints,
        wanted: Ints,
        window: int,
        is_negative: Callable[[Ints, Ints], Bools],
        rng: np.random.Generator,
    ) -> tuple[Ints, Ints]:
        since = time - window
        if self.created[0] > 0:  # ordered: every creation time is known
            start = np.searchsorted(self.created, since, side="left") + 1
            return draw_distinct(start, self.existing(time) + 1 - start, wanted, is_valid=is_negative, rng=rng)

        # each item that is active in the window has one first event there: to draw those is to draw items uniformly
        def is_valid(row: Ints, event: Ints) -> Bools:
            is_first = self.previous_time[event] < since[row]
            return is_first & is_negative(row, self.event_item[event])

        start = np.searchsorted(self.event_time, since, side="left")
        size = np.searchsorted(self.event_time, time, side="left") - start
        rows, events = draw_distinct(start, size, wanted, is_valid=is_valid, rng=rng)
        return rows, self.event_item[events]


def item_candidates(
    item_events: pl.DataFrame,
    *,
    items: pl.DataFrame,
    targets: Ints,
    num_negatives: int,
    active_days: float | None,
    rng: np.random.Generator,
    advance: Callable[[float], None] = lambda share: None,
) -> tuple[pl.DataFrame, int]:
    """Candidate sets of the item task for `targets`, rows of `item_events`; and how many negatives were filled up.

    Negatives existed at the target's time and are none of the items that the user had turned to until then, this one
    included. Where the target is itself one that the user had turned to before, all others may be negatives: else to
    have been there would give it away. `advance` is told the share done after each part.
    """
    pool = ItemPool.of(items, item_events=item_events)
    parts, num_filled = [], 0
    for begin in _begins(len(targets)):
        chosen = targets[begin : begin + _AT_ONCE]
        part = item_events[chosen]
        rows, negatives, filled = pool.draw(chosen, part, wanted=num_negatives, active_days=active_days, rng=rng)
        num_filled += filled
        parts.append(part.with_columns(_lists(rows, negatives, len(part), "negatives")))
        advance(len(part) / max(len(targets), 1))
    found = pl.concat(parts).with_columns(pl.Series("target", targets, dtype=ID))
    has_negatives = found.filter(pl.col("negatives").list.len() > 0)
    return has_negatives.rename({"item_id": "positive"}), num_filled


def comment_positives(
    comment_events: pl.DataFrame, *, comment_records: pl.DataFrame, comments: pl.DataFrame
) -> pl.DataFrame:
    """Validation and test records (record_id, positives): their distinct comments that existed before their start.

    The user's own are none, as they are no candidates of a request.
    """
    records = comment_records.filter(pl.col("split") != int(Split.TRAIN)).select("record_id", "start", "user_id")
    return (
        comment_events.join(records, on="record_id")
        .join(comments.select("comment_id", "created", author="user_id"), on="comment_id")
        .filter(pl.col("created") < pl.col("start"), pl.col("author") != pl.col("user_id"))
        .select("record_id", "comment_id")
        .unique()
        .sort("record_id", "comment_id")
        .group_by("record_id", maintain_order=True)
        .agg(pl.col("comment_id").alias("positives"))
    )


def comment_candidates(
    positives: pl.DataFrame,
    *,
    comment_records: pl.DataFrame,
    comments: pl.DataFrame,
    num_items: int,
    most: int,
    rng: np.random.Generator,
    advance: Callable[[float], None] = lambda share: None,
) -> pl.DataFrame:
    """Candidate sets of the comment task: at most `most` comments of the item that existed, positives included.

    Negatives are not written by the user and are no positives; records without any are left out.
    """
    offsets = offsets_by_id(_column(comments, "item_id"), num_items)
    created, author = _column(comments, "created"), _column(comments, "user_id")
    parts = []
    for begin in _begins(len(positives)):
        part = positives[begin : begin + _AT_ONCE].join(
            comment_records, on="record_id", how="left", maintain_order="left"
        )
        user, item, time = (_column(part, name) for name in ("user_id", "item_id", "start"))
        taken = part["positives"].list.len().to_numpy().astype(np.int64)
        own = np.repeat(np.arange(len(part)), taken) * (len(comments) + 1) + part["positives"].explode().to_numpy()

        def is_valid(row: Ints, position: Ints, user: Ints = user, own: Ints = own) -> Bools:
            is_own: Bools = author[position] == user[row]
            return ~is_own & ~_among(own, row * (len(comments) + 1) + position + 1)

        rows, position = draw_distinct(
            offsets[item],
            rows_before(offsets, created, item, time) - offsets[item],
            np.maximum(most - taken, 1),
            is_valid=is_valid,
            rng=rng,
        )
        parts.append(part.with_columns(_lists(rows, position + 1, len(part), "negatives")))
        advance(len(part) / max(len(positives), 1))
    has_negatives = pl.concat(parts).filter(pl.col("negatives").list.len() > 0)
    return has_negatives.rename({"record_id": "target", "start": "time"})


def _begins(num_targets: int) -> range:
    """Where each part begins; there is always one, be it empty."""
    return range(0, max(num_targets, 1), _AT_ONCE)


def _among(known: Ints, values: Ints) -> Bools:
    """Whether each value stands in the sorted array `known`."""
    if len(known) == 0:
        return np.zeros(len(values), dtype=bool)
    is_known: Bools = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return is_known


def _lists(rows: Ints, values: Ints, num_rows: int, name: str) -> pl.Series:
    """A list column from (row, value) pairs sorted by row; empty lists for rows that have none."""
    pairs = pl.DataFrame({"row": rows, name: pl.Series(values, dtype=ID)})
    lists = pairs.group_by("row", maintain_order=True).agg(name)
    every = pl.DataFrame({"row": np.arange(num_rows)}).join(lists, on="row", how="left", maintain_order="left")
    return every[name].fill_null(pl.lit([], dtype=pl.List(ID))) if every[name].null_count() else every[name]
