"""A transformer over item embeddings whose output is held against the same embeddings by cosine and temperature.

What UniSRec and VQ-Rec have in common; they say what an item's embedding is.

Shapes: R rows, L positions, D width, N items, M some items.
"""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.losses import unit
from reeltalk.models.attention import HistoryEncoder, TransformerSettings
from reeltalk.models.recommender import Recommender, Step


class CosineTransformerSettings(TransformerSettings):
    """Sizes and switches of both models; defaults are their authors', but that the encoder is trained."""

    dim: int = Field(300, gt=0)
    temperature: float = Field(0.07, gt=0)
    train_encoder: bool = Field(
        True, description="off: transformer and positions stay as they were pre-trained, as in the paper"
    )


class CosineTransformer(Recommender):
    """A model's `__init__` sets its own parts and calls `initialise` after this one's."""

    has_start = False

    def __init__(self, settings: CosineTransformerSettings, *, history_length: int) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.history_encoder = HistoryEncoder(settings, history_length=history_length)
        if not settings.train_encoder:
            self.history_encoder.positions.requires_grad_(False)
            self.history_encoder.encoder.requires_grad_(False)

    @abstractmethod
    def embeddings(self, item_M: Tensor | None = None) -> Tensor:
        """Of all items, [N + 1, D], or of some, [M, D]."""

    def preferences(self, history: PackedHistory, x_RLD: Tensor) -> Tensor:
        """The output over a history of these embeddings, as unit vectors divided by the temperature."""
        return unit(self.history_encoder(x_RLD, history)) / self.temperature

    def item_vectors(self) -> Tensor:
        return unit(self.embeddings())

    def item_preferences(self, batch: Batch) -> Tensor:
        item_M, place_RL = batch.items.item_RL.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        return self.preferences(batch.items, F.embedding(place_RL, self.embeddings(item_M)))

    def item_step(self, batch: Batch, *, regularise: bool) -> Step:
        embedding_ND = self.embeddings()  # once, as inputs and as targets
        x_RLD = F.embedding(batch.items.item_RL, embedding_ND)
        return Step(self.preferences(batch.items, x_RLD), unit(embedding_ND))
