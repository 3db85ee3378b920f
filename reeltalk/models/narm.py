"""NARM: a recurrent network whose every state looks back, by additive attention, for what the user is after.

Paper: Li et al., Neural Attentive Session-based Recommendation (CIKM 2017), arXiv 1711.04725. Global encoder
    (eq 5): the state itself; local encoder (eq 6), with its weights (eq 7, 8)
    alpha_tj = v . sigmoid(A1 h_t + A2 h_j), which are not normalised (its authors' code takes a softmax):
    `additive_attention`; both joined (eq 9) and the bilinear decoder emb . B c (eq 10): `item_preferences`.
Differs from the paper: RecBole's sizes. torch's unit resets U h instead of h: tanh(W x + r * (U h)).
Checked against: a slow loop over one history in float64 (tests/test_item_models.py).

Shapes: R rows, L positions, D width, H hidden width; P places, step after step, C histories that have an entry at a
step, T steps up to it.
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
from reeltalk.models.recurrence import gru_states
from reeltalk.models.steps import Steps, slices


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
        steps = Steps.of(batch.items.segment_RL)
        dropped = self.settings.input_dropout
        x_PD = dropout(self.item_embedding(steps.take(batch.items.item_RL)), dropped, training=self.training)
        state_PH = gru_states(self.gru, x_PD, steps.counts)
        local_PH = additive_attention(
            self.query(state_PH), self.key(state_PH), state_PH, self.weight.weight[0], counts=steps.counts
        )
        context_PX = torch.cat([state_PH, local_PH.to(state_PH.dtype)], dim=1)
        preference_PD: Tensor = self.decoder(dropout(context_PX, self.settings.dropout, training=self.training))
        return steps.rows(preference_PD)


def additive_attention(
    query_PH: Tensor, key_PH: Tensor, value_PH: Tensor, weight_H: Tensor, *, counts: list[int]
) -> Tensor:
    """Of each entry the sum of the values up to it, weighted by weight . sigmoid(its query + their key): [P, H].

    Nothing of the size of pairs x H is kept: it is made again, step by step, in the backward pass. Keys and values are
    laid out histories x steps of the longest. In float32, or in float64 where that is given.
    """
    inputs = [widened(x) for x in (query_PH, key_PH, value_PH, weight_H)]
    with torch.autocast(query_PH.device.type, enabled=False):
        local_PH: Tensor = _AdditiveAttention.apply(*inputs, counts)  # type: ignore[no-untyped-call]
    return local_PH


class _AdditiveAttention(torch.autograd.Function):
    """The longest history comes first, so what came before a step is a block of a grid, steps x histories."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query_PH: Tensor, key_PH: Tensor, value_PH: Tensor, weight_H: Tensor, counts: list[int]
    ) -> Tensor:
        ctx.save_for_backward(query_PH, key_PH, value_PH, weight_H)
        ctx.counts = counts  # type: ignore[attr-defined]
        key, value = _grid(key_PH, counts), _grid(value_PH, counts)
        local_PH = torch.zeros_like(value_PH)
        for step, now in enumerate(slices(counts)):
            past = slice(step + 1), slice(counts[step])
            alpha_TC = (key[past] + query_PH[now]).sigmoid_() @ weight_H
            torch.sum(alpha_TC[..., None] * value[past], 0, out=local_PH[now])
        return local_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_local_PH: Tensor) -> tuple[Tensor | None, ...]:
        query_PH, key_PH, value_PH, weight_H = ctx.saved_tensors  # type: ignore[attr-defined]
        counts: list[int] = ctx.counts  # type: ignore[attr-defined]
        key, value = _grid(key_PH, counts), _grid(value_PH, counts)
        d_key, d_value = torch.zeros_like(key), torch.zeros_like(value)
        d_query_PH, d_weight_H = torch.zeros_like(query_PH), torch.zeros_like(weight_H)
        for step, now in enumerate(slices(counts)):
            past = slice(step + 1), slice(counts[step])
            sigmoid_TCH = (key[past] + query_PH[now]).sigmoid_()
            d_local_CH = d_local_PH[now]
            d_alpha_TC = (value[past] * d_local_CH).sum(-1)
            d_value[past].addcmul_((sigmoid_TCH @ weight_H)[..., None], d_local_CH)
            d_weight_H += d_alpha_TC.flatten() @ sigmoid_TCH.flatten(0, 1)
            slope_TCH = torch.addcmul(sigmoid_TCH, sigmoid_TCH, sigmoid_TCH, value=-1).mul_(d_alpha_TC[..., None])
            torch.sum(slope_TCH, 0, out=d_query_PH[now])
            d_key[past] += slope_TCH
        d_key_PH, d_value_PH = (_places(d, counts, len(query_PH)) for d in (d_key, d_value))
        return d_query_PH * weight_H, d_key_PH * weight_H, d_value_PH, d_weight_H, None


def _grid(x_PH: Tensor, counts: list[int]) -> Tensor:
    """Steps x histories x H; zeros where a history has ended."""
    grid = x_PH.new_zeros(len(counts), counts[0], x_PH.shape[1])
    for step, now in enumerate(slices(counts)):
        grid[step, : counts[step]] = x_PH[now]
    return grid


def _places(grid: Tensor, counts: list[int], num_places: int) -> Tensor:
    """Back from a grid; zeros behind the last entry."""
    x_PH = grid.new_zeros(num_places, grid.shape[2])
    for step, now in enumerate(slices(counts)):
        x_PH[now] = grid[step, : counts[step]]
    return x_PH
