"""NARM: a recurrent network whose every state looks back, by additive attention, for what the user is after.

Paper: Li et al., Neural Attentive Session-based Recommendation (CIKM 2017), arXiv 1711.04725. Global encoder
    (eq 5): the state itself; local encoder (eq 6): `NARM._local`, with its weights (eq 7, 8)
    alpha_tj = v . sigmoid(A1 h_t + A2 h_j) in `additive_scores`, which are not normalised; both joined (eq 9) and the
    bilinear decoder emb . B c (eq 10): `item_preferences`.
Differs from the paper: RecBole's sizes. Weights are not normalised, as in the paper; its authors' code
    takes a softmax. torch's unit resets U h instead of h: tanh(W x + r * (U h)).
Checked against: a slow loop over one history in float64 (tests/test_item_models.py).

Shapes: R rows, L positions, D width, H hidden width; T positions and G histories of a grid, P pairs of its positions.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from reeltalk.data.batch import Batch
from reeltalk.losses import widened
from reeltalk.models.attention import dropout
from reeltalk.models.recommender import Items, Recommender, initialise
from reeltalk.models.segments import Segments

BLOCK_ELEMENTS = 1 << 18
"""Of A1 h_t + A2 h_j, made at once: 1 MiB, which stays in cache."""


class NARMSettings(BaseModel):
    """Sizes of NARM; defaults as in RecBole."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    hidden_dim: int = Field(128, gt=0)
    num_layers: int = Field(1, gt=0)
    input_dropout: float = Field(0.25, ge=0, lt=1, description="on the items that go in")
    dropout: float = Field(0.5, ge=0, lt=1, description="on both encoders' results")


class NARM(Recommender):
    """The two encoders share one recurrent network: their states have the same values, as in its authors' code."""

    has_start = False

    def __init__(self, settings: NARMSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        hidden = settings.hidden_dim
        self.settings = settings
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.gru = nn.GRU(settings.dim, hidden, settings.num_layers, bias=False)
        self.query = nn.Linear(hidden, hidden, bias=False)  # A1
        self.key = nn.Linear(hidden, hidden, bias=False)  # A2
        self.weight = nn.Linear(hidden, 1, bias=False)  # v
        self.decoder = nn.Linear(2 * hidden, settings.dim, bias=False)  # B
        initialise(self)
        for linear in (self.query, self.key, self.weight, self.decoder):
            nn.init.xavier_normal_(linear.weight)

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        segments = Segments.of(batch.items.segment_RL)
        contexts = []
        for item_TG in segments.grids(batch.items.item_RL):
            x_TGD = dropout(self.item_embedding(item_TG), self.settings.input_dropout, training=self.training)
            state_TGH = self.gru(x_TGD)[0]
            contexts.append(torch.cat([state_TGH, self._local(state_TGH).to(state_TGH.dtype)], dim=-1))
        context_RLX = dropout(segments.rows(contexts), self.settings.dropout, training=self.training)
        preference_RLD: Tensor = self.decoder(context_RLX)
        return preference_RLD

    def _local(self, state_TGH: Tensor) -> Tensor:
        """The sum of the states up to each position, weighted by alpha: [T, G, H]."""
        length, count = state_TGH.shape[:2]
        t_P, j_P = torch.tril_indices(length, length, device=state_TGH.device)
        score_PG = additive_scores(
            self.query(state_TGH), self.key(state_TGH), self.weight.weight[0], position_P=t_P, other_P=j_P
        )
        alpha = score_PG.new_zeros(length * length, count).index_copy(0, t_P * length + j_P, score_PG)
        alpha_GTT = alpha.view(length, length, count).permute(2, 0, 1)
        return torch.bmm(alpha_GTT, state_TGH.transpose(0, 1).to(alpha_GTT.dtype)).transpose(0, 1)


def additive_scores(
    query_TGH: Tensor, key_TGH: Tensor, weight_H: Tensor, *, position_P: Tensor, other_P: Tensor
) -> Tensor:
    """weight . sigmoid(query of a position + key of another), for all pairs of positions of each history: [P, G].

    Nothing of the size of pairs x H is kept: it is made again, block by block, in the backward pass. In float32, or in
    float64 where that is given.
    """
    inputs = [widened(x).contiguous() for x in (query_TGH, key_TGH, weight_H)]
    with torch.autocast(query_TGH.device.type, enabled=False):
        score_PG: Tensor = _AdditiveScores.apply(*inputs, position_P, other_P)  # type: ignore[no-untyped-call]
    return score_PG


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query_TGH: Tensor, key_TGH: Tensor, weight_H: Tensor, position_P: Tensor, other_P: Tensor
    ) -> Tensor:
        ctx.save_for_backward(query_TGH, key_TGH, weight_H, position_P, other_P)
        blocks = _blocks(query_TGH, position_P, other_P)
        return torch.cat([_sigmoid(query_TGH, key_TGH, t_B, j_B) @ weight_H for t_B, j_B in blocks])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_score_PG: Tensor) -> tuple[Tensor | None, ...]:
        query_TGH, key_TGH, weight_H, position_P, other_P = ctx.saved_tensors  # type: ignore[attr-defined]
        d_query, d_key, d_weight = (torch.zeros_like(x) for x in (query_TGH, key_TGH, weight_H))
        start = 0
        for t_B, j_B in _blocks(query_TGH, position_P, other_P):
            sigmoid_BGH = _sigmoid(query_TGH, key_TGH, t_B, j_B)
            d_score_BG = d_score_PG[start : start + len(t_B)]
            start += len(t_B)
            d_weight += d_score_BG.flatten() @ sigmoid_BGH.flatten(0, 1)
            slope_BGH = torch.addcmul(sigmoid_BGH, sigmoid_BGH, sigmoid_BGH, value=-1).mul_(d_score_BG[..., None])
            d_query.index_add_(0, t_B, slope_BGH)
            d_key.index_add_(0, j_B, slope_BGH)
        return d_query * weight_H, d_key * weight_H, d_weight, None, None


def _blocks(query_TGH: Tensor, position_P: Tensor, other_P: Tensor) -> zip[tuple[Tensor, Tensor]]:
    pairs = max(1, BLOCK_ELEMENTS // max(1, query_TGH[0].numel()))
    return zip(torch.split(position_P, pairs), torch.split(other_P, pairs), strict=True)


def _sigmoid(query_TGH: Tensor, key_TGH: Tensor, t_B: Tensor, j_B: Tensor) -> Tensor:
    return query_TGH.index_select(0, t_B).add_(key_TGH.index_select(0, j_B)).sigmoid_()
