"""The value that picks the epoch to keep: one metric over the saved validation targets."""

from __future__ import annotations

import polars as pl

from reeltalk.data.dataset import Split
from reeltalk.errors import DataError
from reeltalk.evaluation.protocol import EvaluationSettings, mean_metrics
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.system import System


def validation_targets(system: System) -> pl.DataFrame:
    """The validation targets, or a fixed random part of them where `max_validation_targets` says so."""
    train = system.settings.train
    targets = system.dataset.candidates(system.settings.task, Split.VALID)
    if targets.is_empty():
        raise DataError(f"{system.dataset.path} has no validation targets of the {system.settings.task} task to stop by")
    if train.max_validation_targets and len(targets) > train.max_validation_targets:
        targets = targets.sample(train.max_validation_targets, seed=train.seed).sort("target")
    return targets
