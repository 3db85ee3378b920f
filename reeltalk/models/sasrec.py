"""SASRec: a causal transformer over item ids.

Paper: Kang and McAuley, Self-Attentive Sequential Recommendation (ICDM 2018), arXiv 1808.09781.
Differs from the paper: exact softmax over all items that existed in place of one sampled negative with binary
    cross-entropy (as RecBole's default), normalised at the input and after each block, GELU, an inner width of four
    times the width.
Checked against: a slow loop over one history in float64 (tests/test_lsvcr.py); RecBole's SASRec (benchmarks).
"""

from __future__ import annotations

from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.models.attention import HistoryEncoder, TransformerSettings
from reeltalk.models.recommender import Items, Recommender, initialise


class SASRecSettings(TransformerSettings):
    """Sizes of SASRec; defaults as in RecBole."""


class SASRec(Recommender):
    """Shapes: R rows, L positions, D width, N items."""

    has_start = False

    def __init__(self, settings: SASRecSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.history_encoder = HistoryEncoder(settings, history_length=history_length)
        initialise(self)

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        preference_RLD: Tensor = self.history_encoder(self.item_embedding(batch.items.item_RL), batch.items)
        return preference_RLD
