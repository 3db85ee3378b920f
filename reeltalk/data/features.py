"""What is known of a candidate comment at the time of a request: its age, and how often it was turned to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reeltalk.data.as_of import EventsBefore
from reeltalk.data.dataset import Dataset
from reeltalk.data.histories import NOW
from reeltalk.data.ragged import Ints
from reeltalk.data.raw import SECOND


@dataclass(frozen=True)
class CommentFeatures:
    """Features of (comment, time) pairs, counted from what happened strictly before the time."""

    created: Ints  # by comment_id; 0: unknown
    events: EventsBefore  # of comments

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """The features of a dataset's comments."""
        events = dataset.comment_events
        comment, time = (events[name].to_numpy().astype(np.int64) for name in ("comment_id", "time"))
        created = np.concatenate([[0], dataset.comments["created"].to_numpy()]).astype(np.int64)
        return cls(created, EventsBefore(comment, time, num_keys=len(created)))

    @cached_property
    def _end(self) -> int:
        return 1 + max(int(self.events.times.max(initial=0)), int(self.created.max()))

    def __call__(self, comment_ids: NDArray[np.integer], times: Ints) -> NDArray[np.float32]:
        """float32 [n, 2]: log1p of the age in seconds, and log1p of the number of comment events so far.

        A comment of unknown creation time, or one that is yet to come, has age 0; comment_id 0 (none) has zeros. `NOW`,
        a request without a time of its own, is taken to follow all that is known at once.
        """
        times = np.where(times < NOW, times, self._end)
        created = self.created[comment_ids]
        age = np.where(created > 0, np.maximum(times - created, 0), 0) / SECOND
        return np.log1p(np.stack([age, self.events.counts(comment_ids, times)], axis=1)).astype(np.float32)
