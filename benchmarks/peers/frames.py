"""The generated logs as pandas frames, split leave-one-out, for peers that read frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True)
class Split:
    """Columns user_id, item_id, timestamp; each user's events in order.

    `train` lacks each user's last two events; `valid` and `test` hold one event a user, the last but one and the last.
    """

    train: pd.DataFrame
    valid: pd.DataFrame
    test: pd.DataFrame


def leave_one_out(logs: Path) -> Split:
    """Read what `benchmarks.logs.write` wrote into the folder `logs`, and split it."""
    events = pd.read_csv(logs / f"{logs.name}.inter", sep="\t")
    events.columns = pd.Index([name.partition(":")[0] for name in events.columns])
    from_end = events.groupby("user_id").cumcount(ascending=False)
    return Split(train=events[from_end > 1], valid=events[from_end == 1], test=events[from_end == 0])
