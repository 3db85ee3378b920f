"""ZAM: the watched title as a query over the records, which may also turn to nothing at all.

Paper: Ai et al., A Zero Attention Model for Personalized Product Search (CIKM 2019), arXiv 1908.11322: the query
    embedding `query`; the attention function f(q, i) = (i · tanh(W_f q + b_f)) · W_h `key_of_query`; the zero vector,
    which adds exp(f(q, 0)) = 1 to the denominator; q + u, the query with what was found. As LSVCR's baseline (its
    section 5.1.2) the query is the title of the watched item, purchases are records of comments.
Differs from the paper: text vectors stand for queries and items, in place of embeddings learnt as a language model.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, Q queries of a row, D width, E text width, U texts, T targets, H hidden units.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.models.attention import masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, TextMap, with_start
from reeltalk.models.queries import Queries
from reeltalk.models.recommender import Items


class ZAMSettings(CommentSettings):
    """Sizes of ZAM."""

    num_units: int = Field(4, gt=0, description="hidden units of the attention function, the paper's beta")


class ZAM(CommentRecommender):
    """The start entry is the zero vector: it has no part in the mixture but takes its share of the attention."""

    def __init__(self, settings: ZAMSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, items)
        width, dim = items.title_vectors_NE.shape[1], settings.dim
        self.query = TextMap(width, dim)
        self.attention = nn.Linear(dim, dim * settings.num_units)
        self.units = nn.Linear(settings.num_units, 1, bias=False)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        queries = Queries.of(records, position_T)
        x_RLD = with_start(self.dropped(x_RLD), records, x_RLD.new_zeros(()))
        query_TD = torch.tanh(self.query(title_TE))
        key_RQD = queries.laid(self.key_of_query(query_TD))
        score_RQL = torch.bmm(key_RQD, x_RLD.to(key_RQD.dtype).transpose(1, 2))
        share_RQL = (score_RQL + masked_bias(queries.mask_RQL, score_RQL.dtype)).softmax(dim=-1)
        return query_TD + queries.taken(torch.bmm(share_RQL.to(x_RLD.dtype), x_RLD))

    def key_of_query(self, query_TD: Tensor) -> Tensor:
        """What f(q, i) multiplies i with: tanh(W_f q + b_f), summed over the hidden units with weights W_h. [T, D]"""
        hidden_TDH = torch.tanh(self.attention(query_TD)).view(*query_TD.shape, self.units.in_features)
        key_TD: Tensor = self.units(hidden_TDH)[..., 0]
        return key_TD
