"""Settings of an evaluation."""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, field_validator

from reeltalk.evaluation.item_to_item import EASESettings, ItemKNNSettings

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
    seed: int = Field(default=0, ge=0, description="of tie breaks, bootstrap, max_targets and the random order")
    max_targets: int = Field(default=0, ge=0, description="targets drawn at random; 0: all")
    user_long_tail: int | None = Field(
        default=None,
        ge=0,
        description="most training events of a long-tail user; default: what 80 % of users stay within",
    )
    item_long_tail: int | None = Field(
        default=None,
        ge=0,
        description="most training events of a long-tail item; default: what 80 % of items stay within",
    )
    history_bins: tuple[int, ...] = Field(
        default=(1, 5, 10, 20, 50), min_length=1, description="where bins of history lengths begin, beside 0"
    )
    item_knn: ItemKNNSettings = ItemKNNSettings()
    ease: EASESettings = EASESettings()

    @field_validator("ks", "history_bins")
    @classmethod
    def _must_rise(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if values[0] < 1 or values[-1] > LONGEST_TOP or any(a >= b for a, b in pairwise(values)):
            raise ValueError(f"must rise within 1..{LONGEST_TOP}")
        return values
