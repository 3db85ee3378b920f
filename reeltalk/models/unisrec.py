"""UniSRec: text vectors whitened by a mixture of experts, read by a transformer; with item ids or from text alone.

Paper: Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems (KDD 2022), arXiv
    2206.05941. Parametric whitening, mixture of experts and gating with Gaussian noise `Adaptor`; transductive
    fine-tuning, text and ID embeddings added, `embeddings`; the transformer with positions, and cosine with
    temperature, in `CosineTransformer`. What it is pre-trained for is in `reeltalk.pretraining`.
Differs from the paper: an item without a training event has no ID embedding. The items of a step go through the adaptor
    once, as inputs and as targets, so both see the same noise; its experts share one dropout. Fine-tuning trains the
    transformer too unless `train_encoder` is off.
Checked against: a slow loop over one history in float64 (tests/test_text_models.py).

Shapes: D width, E text width, G experts, N items, M some items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from reeltalk.models.attention import dropout
from reeltalk.models.cosine_transformer import CosineTransformer, CosineTransformerSettings
from reeltalk.models.recommender import Items, initialise
from reeltalk.precision import as_factor

NOISE_FLOOR = 1e-2  # of the gates' deviation, as in the authors' program


class UniSRecSettings(CosineTransformerSettings):
    """Sizes and switches of UniSRec; defaults are its authors'."""

    num_experts: int = Field(8, gt=0)
    adaptor_dropout: float = Field(0.2, ge=0, lt=1)
    use_item_ids: bool = Field(True, description="off: text alone speaks for an item (the paper's inductive setting)")


class Adaptor(nn.Module):
    """From text vectors to embeddings: sum over experts of gate x whitening, (x - shift) weight."""

    def __init__(self, width: int, dim: int, *, num_experts: int, dropout: float) -> None:
        super().__init__()
        self.shift_GE = nn.Parameter(torch.zeros(num_experts, width))
        self.weight_GDE = nn.Parameter(torch.empty(num_experts, dim, width).normal_(std=0.02))
        self.gate_GE = nn.Parameter(torch.zeros(num_experts, width))
        self.noise_GE = nn.Parameter(torch.zeros(num_experts, width))
        self.dropout = dropout

    def forward(self, text_ME: Tensor) -> Tensor:
        """[M, D]; while it trains, Gaussian noise of a learnt size joins the gates."""
        x_ME = as_factor(text_ME, self.weight_GDE)
        gate_MG = F.linear(x_ME, self.gate_GE)
        if self.training:
            gate_MG = gate_MG + torch.randn_like(gate_MG) * (F.softplus(F.linear(x_ME, self.noise_GE)) + NOISE_FLOOR)
        x_ME = dropout(x_ME, self.dropout, training=self.training)
        shift_GD = torch.einsum("gde,ge->gd", self.weight_GDE, self.shift_GE)
        whitened_MX = F.linear(x_ME, self.weight_GDE.flatten(0, 1), -shift_GD.flatten())
        whitened_MGD = whitened_MX.view(len(x_ME), *shift_GD.shape)
        share_M1G = gate_MG.softmax(dim=-1).to(whitened_MGD.dtype)[:, None]
        mixed_MD: Tensor = torch.bmm(share_M1G, whitened_MGD)[:, 0]
        return mixed_MD


class UniSRec(CosineTransformer):
    """Item task, "text + ID" or from text alone."""

    title_vectors_NE: Tensor
    known_N1: Tensor

    def __init__(self, settings: UniSRecSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, history_length=history_length)
        self.use_item_ids = settings.use_item_ids
        num_rows, width = items.title_vectors_NE.shape
        self.register_buffer("title_vectors_NE", items.title_vectors_NE, persistent=False)
        if settings.use_item_ids:
            self.item_embedding = nn.Embedding(num_rows, settings.dim)
            self.register_buffer("known_N1", items.known_N[:, None].float(), persistent=False)
        self.adaptor = Adaptor(width, settings.dim, num_experts=settings.num_experts, dropout=settings.adaptor_dropout)
        initialise(self)

    def embeddings(self, item_M: Tensor | None = None) -> Tensor:
        title_ME = self.title_vectors_NE if item_M is None else self.title_vectors_NE[item_M]
        embedding_MD: Tensor = self.adaptor(title_ME)
        if not self.use_item_ids:
            return embedding_MD
        if item_M is None:
            return embedding_MD + self.known_N1 * self.item_embedding.weight
        return embedding_MD + self.known_N1[item_M] * F.embedding(item_M, self.item_embedding.weight)
