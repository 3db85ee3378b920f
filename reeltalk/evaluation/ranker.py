"""What can be evaluated: anything that scores candidates. Models, floors and the oracle look alike to the protocol."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from reeltalk.data.dataset import Task
from reeltalk.data.ragged import Ragged

Scores = npt.NDArray[np.float32]


class Ranker(Protocol):
    """Scores candidates from what was known strictly before each target's time; a higher score ranks higher.

    Of the target's own user that is what stands before the row `target` of the events or records.
    """

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        """One finite score a candidate, flat, in the order of `candidates.values`.

        `targets` are consecutive rows of `Dataset.candidates(task, split)`; row i of `candidates` holds the item ids
        (comment ids) of target i, the positives first. A ranker must not use that order, nor the columns positive and
        positives.
        """
        ...


@runtime_checkable
class CatalogueRanker(Ranker, Protocol):
    """A ranker of the item task that can score the whole catalogue."""

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        """[len(targets), num_items] float32 (bfloat16 is widened) on the CPU; column j scores item_id j + 1.

        The evaluator overwrites the tensor and is done with it before it asks again, so one buffer can serve every
        call.
        """
        ...
