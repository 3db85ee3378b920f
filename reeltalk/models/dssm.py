"""DSSM: the watched title and a comment through a network each; near to each other where the comment is chosen.

Paper: Huang et al., Learning Deep Structured Semantic Models for Web Search using Clickthrough Data (CIKM 2013).
    Eq 3, 4 `Tower`; eq 5, cosine of both sides, and the smoothing factor of eq 6 `comment_vectors`,
    `comment_preferences`. As LSVCR's baseline it has no comment history and lacks personal information (its section
    5.2), so nothing of the user is read: the query is the title of the watched item, the documents are its comments.
Differs from the paper: a text encoder's vectors in place of hashed letter trigrams; a network for each side (LSVCR's
    "dual encoders"); 64 outputs as LSVCR's other baselines have, not 128.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: D width, E text width, U texts, T targets.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.losses import unit
from reeltalk.models.recommender import Items, Recommender


class DSSMSettings(BaseModel):
    """Sizes of DSSM; defaults are the paper's, the width LSVCR's; the paper gives no number for the smoothing."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    inner_dim: int = Field(300, gt=0, description="width of both hidden layers")
    smoothing: float = Field(10.0, gt=0, description="what cosines are multiplied by")


class Tower(nn.Sequential):
    """Three layers with tanh, also the last."""

    def __init__(self, width: int, settings: DSSMSettings) -> None:
        sizes = (width, settings.inner_dim, settings.inner_dim, settings.dim)
        layers = [(nn.Linear(size, following), nn.Tanh()) for size, following in pairwise(sizes)]
        super().__init__(*(part for layer in layers for part in layer))
        for part in self:
            if isinstance(part, nn.Linear):  # the paper's uniform distribution
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, text_UE: Tensor) -> Tensor:
        semantic_UD: Tensor = super().forward(text_UE.to(next(self.parameters()).dtype))  # type: ignore[no-untyped-call]
        return unit(semantic_UD)


class DSSM(Recommender):
    """All users are alike to it."""

    has_start = True
    title_vectors_NE: Tensor

    def __init__(self, settings: DSSMSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.smoothing = settings.smoothing
        self.register_buffer("title_vectors_NE", items.title_vectors_NE, persistent=False)
        self.title_tower = Tower(items.title_vectors_NE.shape[1], settings)
        self.comment_tower = Tower(items.title_vectors_NE.shape[1], settings)

    def comment_vectors(self, text_UE: Tensor) -> Tensor:
        vector_UD: Tensor = self.comment_tower(text_UE)
        return vector_UD

    def comment_preferences(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        preference_TD: Tensor = self.title_tower(F.embedding(item_T, self.title_vectors_NE)) * self.smoothing
        return preference_TD
