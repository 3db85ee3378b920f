"""The toy dataset seen from the tests of evaluation: its candidates, and itself with other tables."""

from __future__ import annotations

import polars as pl

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ragged
from reeltalk.evaluation.measure import SavedCandidates


def candidate_lists(dataset: Dataset, task: Task) -> tuple[pl.DataFrame, Ragged]:
    targets = dataset.candidates(task, Split.TEST)
    return targets, SavedCandidates(task, targets, ks=(5,), seed=0).candidates


def with_tables(dataset: Dataset, **tables: pl.DataFrame) -> Dataset:
    """The dataset as if these tables were on disk."""
    changed = Dataset(dataset.path, dataset.manifest)
    changed.__dict__.update(tables)  # where cached properties keep what they read
    return changed


def at_rows(dataset: Dataset, targets: pl.DataFrame) -> pl.DataFrame:
    """Item targets as those of a dataset whose events, sorted by user and time, are others: each its first by then."""
    users, times = (dataset.item_events[name].to_numpy() for name in ("user_id", "time"))
    moments = targets.select("user_id", "time").rows()
    rows = [int(((users < user) | ((users == user) & (times < time))).sum()) for user, time in moments]
    return targets.with_columns(target=pl.Series(rows))
