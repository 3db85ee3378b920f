"""TEM: a transformer over the watched title and the records of comments; what it makes of the title is the preference.

Paper: Bi et al., A Transformer-based Embedding Model for Personalized Product Search (SIGIR 2020), arXiv 2005.08936:
    the query embedding `query`; the sequence of query and purchases through transformer layers, read at the query. As
    LSVCR's baseline (its section 5.1.2) the query is the title of the watched item, purchases are records of comments.
Differs from the paper: a record looks at the records up to it, and not at the query, so that one pass serves every
    target of a user; with one layer nothing but the query's place is read, and it is the paper's. Text vectors stand
    for queries and items, in place of embeddings learnt as a language model. Learned positions, where its authors'
    program has fixed ones; a layer's output is normalised, where theirs normalises its input; two heads, not eight.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, Q queries of a row, M queries and entries of a row, D width, E text width, U texts,
T targets.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.models.attention import Encoder, TransformerLayer, event_mask, masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, TextMap
from reeltalk.models.queries import Queries
from reeltalk.models.recommender import Items, initialise


class TEMSettings(CommentSettings):
    """Sizes of TEM; layers as its authors' program has them by default, where its instructions for TEM say one."""

    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)


class TEM(CommentRecommender):
    """Without a record, the query looks at itself alone."""

    def __init__(self, settings: TEMSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, items)
        width, dim = items.title_vectors_NE.shape[1], settings.dim
        self.query = TextMap(width, dim)
        self.positions = nn.Embedding(history_length + 1, dim)  # row 0 is the query's
        self.encoder = Encoder(
            dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            inner_dim=settings.inner_dim,
            dropout=settings.dropout,
        )
        initialise(self.positions)
        initialise(self.encoder)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        queries = Queries.of(records, position_T)
        query_TD = torch.tanh(self.query(title_TE)) + self.positions.weight[0]
        query_RQD = queries.laid(self.dropped(query_TD))
        # start entries are seen by themselves alone
        x_RLD = self.dropped(x_RLD + self.positions(records.position_RL + 1))
        entry_bias_RLL = masked_bias(event_mask(records), x_RLD.dtype)
        is_itself = torch.eye(query_RQD.shape[1], dtype=torch.bool, device=x_RLD.device).expand(len(x_RLD), -1, -1)
        is_event_R1L = (records.position_RL >= 0)[:, None]
        query_bias_RQM = masked_bias(torch.cat([is_itself, queries.mask_RQL & is_event_R1L], dim=2), x_RLD.dtype)
        for layer in self.encoder.layers:
            assert isinstance(layer, TransformerLayer)
            read_RMD = torch.cat([query_RQD.to(x_RLD.dtype), x_RLD], dim=1)
            query_RQD, x_RLD = layer(query_RQD, read_RMD, query_bias_RQM), layer(x_RLD, x_RLD, entry_bias_RLL)
        return queries.taken(query_RQD)
