"""FDSA: one transformer over item ids, one over what the items are, joined at the end.

Paper: Zhang et al., Feature-level Deeper Self-Attention Network for Sequential Recommendation (IJCAI 2019), doi
    10.24963/ijcai.2019/600. Item-based and feature-based self-attention blocks `item_encoder`, `feature_encoder`; the
    fully connected layer over both `merge`; prediction by the item embeddings `item_vectors`.
Differs from the paper: an item's feature is its title's text vector through a linear map, where the paper has category,
    brand and words. With one feature the vanilla attention over features is the feature itself (a softmax over one is
    one), so it has no weights here. Exact softmax over all items that existed in place of one sampled negative with
    binary cross-entropy, normalised after each block, GELU, as SASRec here; the joined vector is normalised and dropped
    out, as in RecBole. Each transformer has positions and an input normalisation of its own.
Checked against: a slow loop over one history in float64 (tests/test_text_models.py).

Shapes: R rows, L positions, D width, E text width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.models.attention import HistoryEncoder, TransformerSettings, dropout
from reeltalk.models.recommender import Items, Recommender, initialise
from reeltalk.precision import as_factor


class FDSASettings(TransformerSettings):
    """Sizes of FDSA, the same for both transformers; defaults as in RecBole."""


class FDSA(Recommender):
    """Item task; an item without a title has the feature that the linear map gives to zeros."""

    has_start = False
    title_vectors_NE: Tensor

    def __init__(self, settings: FDSASettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        num_rows, width = items.title_vectors_NE.shape
        self.register_buffer("title_vectors_NE", items.title_vectors_NE, persistent=False)
        self.item_embedding = nn.Embedding(num_rows, settings.dim)
        self.feature_map = nn.Linear(width, settings.dim)
        self.item_encoder = HistoryEncoder(settings, history_length=history_length)
        self.feature_encoder = HistoryEncoder(settings, history_length=history_length)
        self.merge = nn.Linear(2 * settings.dim, settings.dim)
        self.output_norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout
        initialise(self)

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        history = batch.items
        title_RLE = F.embedding(history.item_RL, self.title_vectors_NE)
        feature_RLD = self.feature_map(as_factor(title_RLE, self.feature_map.weight))
        item_RLD = self.item_encoder(self.item_embedding(history.item_RL), history)
        joined_RLD = self.merge(torch.cat([item_RLD, self.feature_encoder(feature_RLD, history)], dim=-1))
        return dropout(self.output_norm(joined_RLD), self.dropout, training=self.training)
