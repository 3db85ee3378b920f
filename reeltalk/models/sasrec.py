"""SASRec: a causal transformer over item ids.

Paper: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018), arXiv 1808.09781.
Differs from the paper: exact softmax over all items in place of one sampled negative with binary cross-entropy (as
    RecBole's default), normalised after each block, GELU.
Checked against: a slow loop over one history in float64 (tests/test_models.py); RecBole's SASRec (benchmarks).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.models.attention import Encoder, causal_mask, dropout, masked_bias
from reeltalk.models.recommender import Recommender, initialise


class SASRecSettings(BaseModel):
    """Sizes of SASRec; defaults as in RecBole."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)


class SASRec(Recommender):
    """Shapes: R rows, L positions, D width, N items."""

    has_start = False

    def __init__(self, settings: SASRecSettings, *, num_items: int, history_length: int) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(num_items + 1, settings.dim)
        self.position_embedding = nn.Embedding(history_length, settings.dim)
        self.input_norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout
        self.encoder = Encoder(
            settings.dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            inner_dim=settings.inner_dim,
            dropout=settings.dropout,
        )
        initialise(self)

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        history = batch.items
        x_RLD = self.item_embedding(history.item_RL) + self.position_embedding(history.position_RL.clamp(min=0))
        x_RLD = dropout(self.input_norm(x_RLD), self.dropout, training=self.training)
        preference_RLD: Tensor = self.encoder(x_RLD, masked_bias(causal_mask(history), x_RLD.dtype))
        return preference_RLD
