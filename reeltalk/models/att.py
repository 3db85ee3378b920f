"""ATT: additive attention over the records of comments.

Paper: LSVCR's baseline "ATT" (arXiv 2403.13574, section 5.1.2). Wu et al., Neural News Recommendation with Attentive
    Multi-View Learning (NAML, IJCAI 2019), arXiv 1907.05576, user encoder, attention over what was browsed:
    `AdditiveAttention`.
Differs from the paper: a learned entry stands for the records of someone who has none.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, D width, E text width, U texts, T targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.models.attention import event_mask, masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, with_start
from reeltalk.models.recommender import Items


class ATTSettings(CommentSettings):
    """Sizes of ATT; defaults are NAML's."""

    attention_dim: int = Field(200, gt=0, description="width of the attention query")


class ATT(CommentRecommender):
    """The preference is a mixture of what someone chose before, in no order."""

    def __init__(self, settings: ATTSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, items)
        self.start_D = nn.Parameter(torch.zeros(settings.dim))
        self.attention = AdditiveAttention(settings.dim, settings.attention_dim)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        x_RLD = with_start(self.dropped(x_RLD), records, self.start_D)
        mixed_RLD = self.attention(x_RLD, masked_bias(event_mask(records), x_RLD.dtype))
        return F.embedding(position_T, mixed_RLD.flatten(0, 1))


class AdditiveAttention(nn.Module):
    """q · tanh(V x + v), as a softmax over the entries that each position may look at: their mixture."""

    def __init__(self, dim: int, attention_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, attention_dim)
        self.query = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, x_RLD: Tensor, bias_RLL: Tensor) -> Tensor:
        """bias_RLL: `masked_bias` of who may look at whom."""
        score_RL = self.query(torch.tanh(self.hidden(x_RLD)))[..., 0]
        share_RLL = (score_RL[:, None, :] + bias_RLL).softmax(dim=-1)
        return torch.bmm(share_RLL.to(x_RLD.dtype), x_RLD)
