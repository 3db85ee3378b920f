"""DMT: a transformer for each behaviour, and a mixture of experts over what they make of it.

Paper: Gu et al., Deep Multifaceted Transformers for Multi-objective Ranking in Large-Scale E-commerce Recommender
    Systems (CIKM 2020). Section 4.1, embeddings: `_placed`; 4.2, positions, one encoder and one decoder a behaviour:
    `_placed`, `_interest`; 4.3, experts, gate and tower: `_mixed`. The behaviours are item events, and comment records
    as events of their item.
Differs from the paper: it ranks given candidates, with the candidate as the decoder's query; here a learned query takes
    its place, and the tower is one linear layer that ends in a vector instead of a number, so that one pass gives the
    preference after every event and a score is a dot product. Encoders are causal for it, and at an event the records
    are read as known before the next one. GELU in place of ReLU in encoders and decoders. One task, so one gate
    (linear) and one tower. One dropout for all layers, where the authors' code drops .5, .3 and .2 in an expert's, and
    no L2 on embeddings. Left out: further tasks and their loss, the bias tower (it reads where on a page an item was
    shown, which logs of events do not tell), categories, brands and dense features. Exact softmax over all items that
    existed.
Checked against: a slow loop over one user in float64 (tests/test_dmt.py).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.models.attention import (
    Dropout,
    Encoder,
    TransformerLayer,
    causal_mask,
    dropout,
    known_mask,
    masked_bias,
)
from reeltalk.models.recommender import Items, Recommender, initialise


class DMTSettings(BaseModel):
    """Sizes of DMT; those of the experts and the attention as in the authors' code, the width that of other models."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(1, gt=0, description="layers of each behaviour's encoder")
    num_heads: int = Field(4, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    num_experts: int = Field(4, gt=0)
    expert_dims: tuple[int, ...] = Field((512, 256, 128), min_length=1, description="widths of an expert's layers")


class DMT(Recommender):
    """Shapes: R rows, L positions of items, M of records, D width, X width of all interests, E experts, Y width
    of their output."""

    has_start = True

    def __init__(self, settings: DMTSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.dim
        self.scale = dim**0.5  # of what goes in, beside its position, as in the authors' code
        self.item_embedding = nn.Embedding(len(items.known_N), dim)
        self.starts = nn.ParameterList([nn.Parameter(torch.empty(dim).normal_(std=0.02)) for _ in range(2)])
        self.queries = nn.ParameterList([nn.Parameter(torch.empty(dim).normal_(std=0.02)) for _ in range(2)])
        self.positions = nn.ModuleList([nn.Embedding(history_length, dim) for _ in range(2)])
        sizes = {"num_heads": settings.num_heads, "inner_dim": settings.inner_dim}
        self.encoders = nn.ModuleList(
            Encoder(dim, num_layers=settings.num_layers, dropout=settings.dropout, **sizes) for _ in range(2)
        )
        self.decoders = nn.ModuleList(TransformerLayer(dim, dropout=settings.dropout, **sizes) for _ in range(2))
        initialise(self)
        # three layers of 0.02 would let next to nothing through: experts start as torch starts a linear layer
        self.gate = nn.Linear(2 * dim, settings.num_experts)
        self.experts = nn.ModuleList(_expert(2 * dim, settings) for _ in range(settings.num_experts))
        self.tower = nn.Linear(settings.expert_dims[-1], dim)

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        masks = (causal_mask(batch.items), known_mask(batch.records, batch.items))
        interests = [
            self._interest(which, history, mask_RLM)
            for which, (history, mask_RLM) in enumerate(zip((batch.items, batch.records), masks, strict=True))
        ]
        return self._mixed(torch.cat(interests, dim=-1))

    def _interest(self, which: int, history: PackedHistory, mask_RLM: Tensor) -> Tensor:
        """What a behaviour says after each item event: [R, L, D]. mask_RLM: which of its entries are known there."""
        x_RMD = self._placed(which, history)
        encoded_RMD = self.encoders[which](x_RMD, masked_bias(causal_mask(history), x_RMD.dtype))
        query_RLD = (self.scale * self.queries[which]).expand(*mask_RLM.shape[:2], -1)
        interest_RLD: Tensor = self.decoders[which](query_RLD, encoded_RMD, masked_bias(mask_RLM, x_RMD.dtype))
        return interest_RLD

    def _placed(self, which: int, history: PackedHistory) -> Tensor:
        x_RLD = self.scale * self.item_embedding(history.item_RL)
        x_RLD = x_RLD + self.positions[which](history.position_RL.clamp(min=0))
        x_RLD = torch.where(history.is_start_RL[..., None], self.scale * self.starts[which], x_RLD)
        return dropout(x_RLD, self.settings.dropout, training=self.training)

    def _mixed(self, x_RLX: Tensor) -> Tensor:
        """The experts' outputs, weighed by the gate, through the tower: [R, L, D]."""
        share_RLE = self.gate(x_RLX).softmax(dim=-1)
        output_RLEY = torch.stack([expert(x_RLX) for expert in self.experts], dim=-2)
        preference_RLD: Tensor = self.tower((output_RLEY * share_RLE[..., None]).sum(dim=-2))
        return preference_RLD


def _expert(width: int, settings: DMTSettings) -> nn.Sequential:
    widths = pairwise((width, *settings.expert_dims))
    layers = [(nn.Linear(before, after), nn.ReLU(), Dropout(settings.dropout)) for before, after in widths]
    return nn.Sequential(*(part for layer in layers for part in layer))
