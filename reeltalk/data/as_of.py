"""What had happened strictly before a moment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reeltalk.data.ragged import Ints

Ids = npt.NDArray[np.integer]


class EventsBefore:
    """Events of many keys (users, items, comments), asked what came strictly before a time.

    `order` sorts the events by key and time; positions are positions in that order, and the events of a key start at
    `starts[key]`. Keys run 0..num_keys - 1. One sorted array holds key and time as a single integer, so that a question
    is one binary search; for that, times are replaced by their ranks among the distinct ones, `times`.
    """

    def __init__(self, keys: Ids, times: Ints, *, num_keys: int) -> None:
        self.times, ranks = np.unique(times, return_inverse=True)
        composite = self._combine(keys, ranks)
        self.order = np.argsort(composite, kind="stable")
        self._composite = composite[self.order]
        self.starts = np.searchsorted(self._composite, self._combine(np.arange(num_keys), 0))

    def stops(self, keys: Ids, times: Ints) -> Ints:
        """For each key and time, the position after the key's last event strictly before the time."""
        return np.searchsorted(self._composite, self._combine(keys, np.searchsorted(self.times, times)))

    def counts(self, keys: Ids, times: Ints) -> Ints:
        """For each key and time, how many of the key's events came strictly before the time."""
        return self.stops(keys, times) - self.starts[keys]

    def _combine(self, keys: Ids, ranks: Ints | int) -> Ints:
        return keys.astype(np.int64) * (len(self.times) + 1) + ranks
