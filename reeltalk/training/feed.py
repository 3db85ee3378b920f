"""Windows in, batches out: the one place where histories, text vectors, negatives and candidate features meet.

Shapes: T targets, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from reeltalk.data.batch import Batch, CommentTargets, ItemTargets, PackedWindows, distinct_comments
from reeltalk.data.dataset import Task
from reeltalk.data.features import CommentFeatures
from reeltalk.data.histories import NOW, Histories, Windows
from reeltalk.data.pool import CommentPool
from reeltalk.data.ragged import Ints, Ragged, ranges
from reeltalk.data.raw import DAY
from reeltalk.text.lookup import TextLookup


@dataclass(frozen=True)
class Feed:
    """Makes the batches of one task; the same windows always give the same batch."""

    histories: Histories
    item_created: Ints  # [N] rising
    text: TextLookup
    task: Task
    pool: CommentPool | None
    features: CommentFeatures | None
    has_start: bool
    record_comments: int
    num_negatives: int
    active_days: float | None = None

    @cached_property
    def num_features(self) -> int:
        return 0 if self.features is None else 2

    @cached_property
    def _targets(self) -> Ints:
        """Item and time of every event, and of one after them: a request's target is yet to come. [2, events + 1]"""
        return np.stack([np.append(self.histories.item, 0), np.append(self.histories.time, NOW)])

    def item_batch(self, windows: Windows) -> tuple[Batch, ItemTargets]:
        """The windows with their targets, for training or for scoring the whole catalogue."""
        packed = self._packed(windows)
        rows, window = packed.target_rows()
        position = packed.target_positions(rows, window, "item")
        item, moment = self._targets[:, rows]
        existing = np.maximum(np.searchsorted(self.item_created, moment, side="right"), item)
        outdated = np.zeros_like(existing)
        if self.active_days is not None:
            outdated = np.searchsorted(self.item_created, moment - int(self.active_days * DAY))
            outdated = np.minimum(outdated, np.maximum(item - 1, 0))
        targets = ItemTargets(*(torch.from_numpy(column) for column in (position, item, outdated, existing)))
        return self._batch(packed, distinct_comments(packed.comments())), targets

    def comment_batch(self, windows: Windows, *, rng: np.random.Generator) -> tuple[Batch, CommentTargets]:
        """For training: one target for each comment of each target record, with freshly drawn negatives."""
        assert self.pool is not None
        packed = self._packed(windows)
        rows, window = packed.target_rows()
        histories = self.histories
        begin, end = histories.comment_offsets[rows], histories.comment_offsets[rows + 1]
        target = np.repeat(np.arange(len(rows)), end - begin)
        positive = histories.comment[ranges(begin, end)]
        moment = histories.start[rows][target]
        is_others = self.pool.author[positive] != windows.user[window][target]
        is_target = is_others & (self.pool.created[positive] < moment)  # what was not there could not be chosen
        target, positive, moment = target[is_target], positive[is_target], moment[is_target]
        item = histories.record_item[rows][target]
        negative = self.pool.sample(item, moment, windows.user[window][target], count=self.num_negatives, rng=rng)
        for chosen in range(int((end - begin).max(initial=0))):  # a negative must not be another positive of the record
            other = histories.comment[np.minimum(begin + chosen, end - 1)][target]
            negative = np.where(negative == other[:, None], 0, negative)
        candidate = np.concatenate([positive[:, None], negative], axis=1)
        position = packed.target_positions(rows, window, "comment")[target]
        return self._comment_batch(packed, position, item, candidate, moment)

    def candidate_batch(self, windows: Windows, items: Ints, candidates: Ragged) -> tuple[Batch, CommentTargets]:
        """For ranking: one target a window, its candidates in the given order, padded with 0."""
        packed = self._packed(windows)
        rows, window = packed.target_rows()
        width = max(1, int(candidates.lengths.max(initial=0)))
        candidate = np.zeros((len(candidates), width), np.int64)
        column = np.arange(len(candidates.values)) - np.repeat(candidates.offsets[:-1], candidates.lengths)
        candidate[candidates.owners, column] = candidates.values
        position = packed.target_positions(rows, window, "comment")
        return self._comment_batch(packed, position, items, candidate, windows.request)

    def _packed(self, windows: Windows) -> PackedWindows:
        return PackedWindows.of(
            self.histories, windows, self.task, has_start=self.has_start, record_comments=self.record_comments
        )

    def _batch(self, packed: PackedWindows, comment_U: Ints) -> Batch:
        return packed.batch(comment_U, self.text.comments(comment_U))

    def _comment_batch(
        self, packed: PackedWindows, position: Ints, item: Ints, candidate: Ints, moment: Ints
    ) -> tuple[Batch, CommentTargets]:
        comment_U = distinct_comments([*packed.comments(), candidate])
        features = np.zeros((*candidate.shape, self.num_features), np.float32)
        if self.features is not None:
            is_there = candidate > 0
            moments = np.broadcast_to(moment[:, None], candidate.shape)
            features[is_there] = self.features(candidate[is_there], moments[is_there])
        targets = CommentTargets(
            position_T=torch.from_numpy(position),
            item_T=torch.from_numpy(item),
            candidate_TC=torch.from_numpy(np.searchsorted(comment_U, candidate)),
            feature_TCF=torch.from_numpy(features),
        )
        return self._batch(packed, comment_U), targets


def shuffled(
    windows: Windows, *, batch_size: int, seed: int, epoch: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[Windows]:
    """The windows of one epoch in an order that seed and epoch fix, dealt evenly to the ranks.

    Every rank gets the same number of batches: the last one is filled up from the front where the windows do not
    divide.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(windows))
    for start in range(0, len(order), batch_size * num_ranks):
        chunk = order[start : start + batch_size * num_ranks]
        if len(chunk) < num_ranks:
            chunk = np.concatenate([chunk, np.resize(order, num_ranks - len(chunk))])
        yield windows[chunk[rank::num_ranks]]
