"""MHA: multi-head self-attention over the records of comments, then additive attention.

Paper: LSVCR's baseline "MHA" (arXiv 2403.13574, section 5.1.2). Wu et al., Neural News Recommendation with Multi-Head
    Self-Attention (NRMS, EMNLP 2019), user encoder, eq 6 to 10. No positions, residuals or feed-forward layers there.
Differs from the paper: a record looks at the records up to it, not at later ones, so that one pass serves every prefix;
    heads have query, key and output matrices (Vaswani et al.) where NRMS has one bilinear form. A learned entry stands
    for the records of someone who has none.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, D width, E text width, U texts, T targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.models.att import AdditiveAttention
from reeltalk.models.attention import MultiHeadAttention, event_mask, masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, with_start
from reeltalk.models.recommender import Items


class MHASettings(CommentSettings):
    """Sizes of MHA; NRMS has 16 heads of 16 each, which are too many for LSVCR's width."""

    num_heads: int = Field(4, gt=0)
    attention_dim: int = Field(200, gt=0, description="width of the query of additive attention")


class MHA(CommentRecommender):
    """As ATT, with each record seen in the light of those before it."""

    def __init__(self, settings: MHASettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, items)
        self.start_D = nn.Parameter(torch.zeros(settings.dim))
        self.self_attention = MultiHeadAttention(settings.dim, num_heads=settings.num_heads, dropout=settings.dropout)
        self.attention = AdditiveAttention(settings.dim, settings.attention_dim)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        x_RLD = with_start(self.dropped(x_RLD), records, self.start_D)
        bias_RLL = masked_bias(event_mask(records), x_RLD.dtype)
        h_RLD = self.dropped(self.self_attention(x_RLD, x_RLD, bias_RLL))
        return F.embedding(position_T, self.attention(h_RLD, bias_RLL).flatten(0, 1))
