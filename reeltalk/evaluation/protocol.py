"""How systems are measured: the same targets, candidates and tie breaks for all, from the saved sets and over all items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator
from rich.console import Console
from rich.progress import Progress

from reeltalk.data.as_of import EventsBefore
from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.data.ragged import Ints, Ragged, offsets_of, ranges
from reeltalk.errors import ConfigError, DataError
from reeltalk.evaluation.metrics import Values, coverage, target_metrics
from reeltalk.evaluation.ranker import CatalogueRanker, Ranker, Scores
from reeltalk.evaluation.ranks import candidate_ranks, catalogue_ranks
from reeltalk.evaluation.report import Report
from reeltalk.evaluation.segments import Segments, segments
from reeltalk.evaluation.summary import summarise

TARGETS_AT_ONCE = 1024  # for the saved candidates
BLOCK_BYTES = 64 << 20  # of a block of catalogue scores
LONGEST_TOP = 1000


class EvaluationSettings(BaseModel):
    """How systems are measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ks: tuple[int, ...] = Field(default=(5, 10), min_length=1, description="cut-offs of recall, ndcg, hit and coverage")
    exclude_seen: bool = Field(
        default=True, description="full ranking leaves out what the user turned to before, but for the positive itself"
    )
    full_ranking: bool | None = Field(
        default=None, description="rank all items beside the saved candidates; default: for the item task"
    )
    bootstrap_samples: int = Field(default=1000, ge=0, description="draws of users for the intervals; 0: no intervals")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, description="of tie breaks, bootstrap and max_targets")
    max_targets: int = Field(default=0, ge=0, description="targets drawn at random; 0: all")
    user_long_tail: int | None = Field(
        default=None, ge=0, description="most training events of a long-tail user; default: what 80 % of users do not exceed"
    )
    item_long_tail: int | None = Field(
        default=None, ge=0, description="most training events of a long-tail item; default: what 80 % of items do not exceed"
    )
    history_bins: tuple[int, ...] = Field(default=(1, 5, 10, 20, 50), min_length=1, description="lower bounds")

    @field_validator("ks", "history_bins")
    @classmethod
    def _rising(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if values[0] < 1 or values[-1] > LONGEST_TOP or any(a >= b for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(f"must rise and lie in 1..{LONGEST_TOP}")
        return values


def evaluate(
    dataset: Dataset,
    rankers: Mapping[str, Ranker],
    *,
    split: Split = Split.TEST,
    settings: EvaluationSettings | None = None,
) -> dict[str, Report]:
    """Measure systems of one task beside each other; the report of each holds the figures of all.

    Raises ConfigError where rankers are of different tasks, or full ranking is asked for comments or of a ranker that cannot;
    DataError where the split has no target, or a score is not finite.
    """
    settings = settings or EvaluationSettings()
    task = _task(rankers)
    is_full = _is_full(task, rankers, settings)
    targets = _targets(dataset, task, split, settings)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        sampled = _Sampled.of(task, targets, settings)
        full = _Full.of(dataset, targets, settings) if is_full else None
        measured = {}
        for name, ranker in rankers.items():
            runs = {"sampled": sampled.rank(ranker, progress)}
            if full is not None and isinstance(ranker, CatalogueRanker):
                runs["full"] = full.rank(ranker, progress)
            measured[name] = {
                protocol: Measured(target_metrics(ranks, ks=settings.ks), ranks, candidates, covered)
                for protocol, (ranks, candidates, covered) in runs.items()
            }
        ...
    return {}
