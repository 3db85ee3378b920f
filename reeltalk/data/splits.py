"""Which part of the log an event belongs to: by cut points in time, or each user's last two events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reeltalk.data.dataset import Split

MIN_EVENTS = 3  # leave-one-out: a user with fewer keeps all of them for training


@dataclass(frozen=True)
class Cuts:
    """Milliseconds at which the validation and the test window begin; the test window has no end."""

    valid: int
    test: int

    def split_of(self, times: NDArray[np.int64]) -> NDArray[np.uint8]:
        """TRAIN before `valid`, VALID from there on, TEST from `test` on."""
        return np.searchsorted([self.valid, self.test], times, side="right").astype(np.uint8)


def leave_one_out(users: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Each user's last row TEST, the last but one VALID, the rest TRAIN; rows sorted by user and time."""
    first = np.searchsorted(users, users, side="left")
    after = np.searchsorted(users, users, side="right")
    from_end = after - np.arange(len(users))
    split = np.where(from_end == 1, Split.TEST, np.where(from_end == 2, Split.VALID, Split.TRAIN))
    return np.where(after - first < MIN_EVENTS, Split.TRAIN, split).astype(np.uint8)
