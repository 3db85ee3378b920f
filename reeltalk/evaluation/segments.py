"""Kinds of targets that a mean hides: cold-start users, long-tail items, what training never saw, short histories.

users
    By training events of the task's kind (item events; comment records): ``cold-start`` none, ``long-tail`` up to a
    threshold, ``others``. And, as a part of cold-start, ``unseen``: no training event of either kind.
items
    The positive, or the watched item of the comment task, by training events of the task's kind: ``unseen`` no training
    event of either kind, ``long-tail`` up to a threshold, ``others``.
history
    By events of the task's kind before the target, in bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ints

LONG_TAIL_SHARE = 0.8  # of the users (items) with a training event; the rest are the others

Members = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Segments:
    """Which targets belong to which segment, and the thresholds that say so."""

    members: dict[str, dict[str, Members]]  # partition -> segment -> [targets]
    user_long_tail: int
    item_long_tail: int


def segments(
    dataset: Dataset,
    task: Task,
    targets: pl.DataFrame,
    *,
    user_long_tail: int | None = None,
    item_long_tail: int | None = None,
    history_bins: Sequence[int] = (1, 5, 10, 20, 50),
) -> Segments:
    """The segments of targets (rows of `Dataset.candidates`).

    A threshold that is not given is the least number of training events that 80 % of the users (items) with any do
    not exceed. History bins start at 0 and at each given length.
    """
    own, other = dataset.item_events, dataset.comment_records
    if task == "comment":
        own, other = other, own
    users, user_threshold = _by_training_events(own, "user_id", targets["user_id"], user_long_tail)
    item_of_target = targets["positive" if task == "item" else "item_id"]
    items, item_threshold = _by_training_events(own, "item_id", item_of_target, item_long_tail)
    known_user = (users > 0) | _is_in_training(other, "user_id", targets["user_id"])
    known_item = (items > 0) | _is_in_training(other, "item_id", item_of_target)
    return Segments(
        members={
            "users": {
                "cold-start": users == 0,
                "long-tail": (users > 0) & (users <= user_threshold),
                "others": users > user_threshold,
                "unseen": ~known_user,
            },
            "items": {
                "unseen": ~known_item,
                "long-tail": known_item & (items <= item_threshold),
                "others": items > item_threshold,
            },
            "history": _bins(_history_lengths(dataset, task, targets), history_bins),
        },
        user_long_tail=user_threshold,
        item_long_tail=item_threshold,
    )


def _training_counts(events: pl.DataFrame, key: str) -> pl.DataFrame:
    return events.filter(pl.col("split") == int(Split.TRAIN)).group_by(key).len("events")


def _by_training_events(events: pl.DataFrame, key: str, keys: pl.Series, threshold: int | None) -> tuple[Ints, int]:
    """The number of training events of each key, and the long-tail threshold."""
    counts = _training_counts(events, key)
    found = keys.to_frame(key).join(counts, on=key, how="left", maintain_order="left")["events"].fill_null(0)
    if threshold is None:
        enough = math.ceil(LONG_TAIL_SHARE * len(counts))
        threshold = int(counts["events"].sort()[enough - 1]) if enough else 0
    return found.to_numpy().astype(np.int64), threshold


def _is_in_training(events: pl.DataFrame, key: str, keys: pl.Series) -> Members:
    return keys.is_in(_training_counts(events, key)[key].implode()).to_numpy()


def _history_lengths(dataset: Dataset, task: Task, targets: pl.DataFrame) -> Ints:
    users = (dataset.item_events if task == "item" else dataset.comment_records)["user_id"].to_numpy()
    rows: Ints = targets["target"].to_numpy().astype(np.int64)
    return rows - np.searchsorted(users, users[rows])


def _bins(lengths: Ints, bins: Sequence[int]) -> dict[str, Members]:
    """Members of each bin, the first from 0, the last without end.

    >>> {name: members.tolist() for name, members in _bins(np.array([0, 4, 7]), (1, 5)).items()}
    {'0': [True, False, False], '1-4': [False, True, False], '5+': [False, False, True]}
    """
    edges = [0, *bins]
    names = [str(low) if low + 1 == high else f"{low}-{high - 1}" for low, high in pairwise(edges)]
    place = np.searchsorted(edges, lengths, side="right") - 1
    return {name: place == i for i, name in enumerate([*names, f"{edges[-1]}+"])}
