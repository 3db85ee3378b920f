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
