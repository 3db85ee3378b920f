"""UniSRec_C: UniSRec's model over comments in place of items.

Paper: Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems (KDD 2022), arXiv
    2206.05941: eq 2 `Whitening`; eq 3, 4 `ExpertAdaptor`; eq 5, 6 the transformer over the records; the temperature of
    its contrastive losses. LSVCR's baseline (arXiv 2403.13574, section 5.1.2) mirrors this structure for comments.
Differs from the paper: no pre-training on other domains; a record is the mean of its comments' embeddings. A learned
    entry stands for the records of someone who has none.
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, D width, E text width, U texts, T targets, G experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.losses import unit
from reeltalk.models.attention import Encoder, dropout, event_mask, masked_bias
from reeltalk.models.comments import CommentRecommender, CommentSettings, with_start
from reeltalk.models.recommender import Items, initialise

NOISE_FLOOR = 1e-2  # of the gates' deviation


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
        adaptor = ExpertAdaptor(width, dim, num_experts=settings.num_experts, dropout=settings.text_dropout)
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


class Whitening(nn.Module):
    """Parametric whitening: (x - b) W of each of G experts, with learned b and W: [U, G, D]."""

    def __init__(self, width: int, dim: int, *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.dropout = dropout
        self.shift_GE = nn.Parameter(torch.zeros(num_experts, width))
        self.linear = nn.Linear(width, num_experts * dim, bias=False)

    def forward(self, text_UE: Tensor) -> Tensor:
        experts = self.num_experts
        weight_GDE = self.linear.weight.view(experts, -1, self.shift_GE.shape[1])
        shift_GD = torch.einsum("ge,gde->gd", self.shift_GE, weight_GDE)
        mapped_UGD: Tensor = self.linear(dropout(text_UE, self.dropout, training=self.training)).view(
            len(text_UE), experts, -1
        )
        return mapped_UGD - shift_GD


class ExpertAdaptor(nn.Module):
    """A mixture of whitenings, in shares that the text itself decides; in training the gates are noisy."""

    def __init__(self, width: int, dim: int, *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self.experts = Whitening(width, dim, num_experts=num_experts, dropout=dropout)
        self.gate = nn.Linear(width, num_experts, bias=False)
        self.noise = nn.Linear(width, num_experts, bias=False)

    def forward(self, text_UE: Tensor) -> Tensor:
        text_UE = text_UE.to(self.gate.weight.dtype)
        gate_UG = self.gate(text_UE)
        if self.training:
            gate_UG = gate_UG + torch.randn_like(gate_UG) * (F.softplus(self.noise(text_UE)) + NOISE_FLOOR)
        share_UG1 = gate_UG.softmax(dim=-1)[..., None]
        adapted_UD: Tensor = (self.experts(text_UE) * share_UG1).sum(1)
        return adapted_UD
