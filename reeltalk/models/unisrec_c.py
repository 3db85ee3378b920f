"""UniSRec_C: UniSRec's model over comments in place of items.

Paper: Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems (KDD 2022), arXiv
    2206.05941: parametric whitening and mixture of experts `unisrec.Adaptor`; the transformer over the records; the
    temperature of its contrastive losses. LSVCR's baseline (arXiv 2403.13574, section 5.1.2) mirrors this structure for
    comments.
Differs from the paper: no pre-training on other domains; a record is the mean of its comments' embeddings. A learned
    entry stands for the records of someone who has none.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, D width, E text width, U texts, T targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.losses import unit
from reeltalk.models.attention import Encoder, event_mask, masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, with_start
from reeltalk.models.recommender import Items, initialise
from reeltalk.models.unisrec import Adaptor


class UniSRecCSettings(CommentSettings):
    """Sizes of UniSRec_C; defaults as in its authors' program, the width LSVCR's."""

    dropout: float = Field(0.5, ge=0, lt=1, description="of the records' embeddings, and within layers")
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    num_experts: int = Field(8, gt=0)
    text_dropout: float = Field(0.2, ge=0, lt=1, description="of the text vectors that an expert reads")
    temperature: float = Field(0.07, gt=0)


class UniSRecC(CommentRecommender):
    """A causal transformer over the records, scored by cosines."""

    def __init__(self, settings: UniSRecCSettings, items: Items, *, history_length: int) -> None:
        width, dim = items.title_vectors_NE.shape[1], settings.dim
        adaptor = Adaptor(width, dim, num_experts=settings.num_experts, dropout=settings.text_dropout)
        super().__init__(settings, items, text_map=adaptor)
        self.temperature = settings.temperature
        self.start_D = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.positions = nn.Embedding(history_length, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.encoder = Encoder(
            dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            inner_dim=settings.inner_dim,
            dropout=settings.dropout,
        )
        initialise(self)

    def candidates(self, comment_UD: Tensor) -> Tensor:
        return unit(comment_UD)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        x_RLD = with_start(x_RLD, records, self.start_D) + self.positions(records.position_RL.clamp(min=0))
        x_RLD = self.dropped(self.input_norm(x_RLD))
        h_RLD = self.encoder(x_RLD, masked_bias(event_mask(records), x_RLD.dtype))
        return unit(F.embedding(position_T, h_RLD.flatten(0, 1))) / self.temperature
