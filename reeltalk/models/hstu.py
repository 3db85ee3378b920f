"""HSTU: attention without softmax, which looks at what lies how far back, in entries and in time.

Paper: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations (ICML 2024), arXiv 2402.17152. Pointwise projection, spatial aggregation and pointwise
    transformation (eq 1, 2, 3): `HSTULayer.forward`; rab^{p,t}: `time_buckets`, `HSTULayer.bias`.
Differs from the paper: items alone, without actions between them; exact softmax over all items that existed, not
    sampled ones. What the paper leaves open is as in its public code: a layer's input is normalised, the sum of eq 2 is
    divided by the greatest length of a history, times count back from the next target's, input and output are as
    `item_preferences` has them. A request without a time of its own (`NOW`) is taken to follow the last event at once.
Checked against: a slow loop over one history in float64 (tests/test_item_models.py).

Shapes: R rows, L positions, M positions looked at, D width, H heads, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.data.histories import NOW
from reeltalk.errors import ConfigError
from reeltalk.losses import unit
from reeltalk.models.attention import causal_mask, dropout, looked_up, masked_bias
from reeltalk.models.recommender import Items, Recommender, initialise

BUCKETS_A_FACTOR_E = 1 / 0.301
"""Time buckets are this many to each factor e, from one second up; with 128 of them the last is never reached."""


class HSTUSettings(BaseModel):
    """Sizes of HSTU; defaults as in its public settings for histories of 50 items (Amazon Books)."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(4, gt=0)
    num_heads: int = Field(4, gt=0)
    num_time_buckets: int = Field(128, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    temperature: float = Field(0.05, gt=0)


class HSTU(Recommender):
    """A preference is a unit vector divided by the temperature, an item's vector a unit vector."""

    has_start = False

    def __init__(self, settings: HSTUSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.position_embedding = nn.Embedding(history_length, settings.dim)
        self.layers = nn.ModuleList(
            HSTULayer(settings, history_length=history_length) for _ in range(settings.num_layers)
        )
        initialise(self)
        nn.init.normal_(self.position_embedding.weight, std=settings.dim**-0.5)
        for layer in self.layers:
            assert isinstance(layer, HSTULayer)
            nn.init.xavier_uniform_(layer.out.weight)

    def item_vectors(self) -> Tensor:
        return unit(self.item_embedding.weight)

    def item_preferences(self, batch: Batch) -> Tensor:
        history = batch.items
        x_RLD = self.item_embedding(history.item_RL) * self.settings.dim**0.5
        x_RLD = x_RLD + self.position_embedding(history.position_RL.clamp(min=0))
        x_RLD = dropout(x_RLD, self.settings.dropout, training=self.training)
        bucket_RLM = time_buckets(history, count=self.settings.num_time_buckets)
        mask_RLM = masked_bias(causal_mask(history), x_RLD.dtype)
        for layer in self.layers:
            x_RLD = layer(x_RLD, bucket_RLM, mask_RLM)
        return unit(x_RLD) / self.settings.temperature


class HSTULayer(nn.Module):
    """One layer: eq 1 (what each entry offers), 2 (what it gathers), 3 (what passes its gate), and a residual."""

    def __init__(self, settings: HSTUSettings, *, history_length: int) -> None:
        super().__init__()
        if settings.dim % settings.num_heads:
            raise ConfigError(f"dim={settings.dim} is not a multiple of num_heads={settings.num_heads}")
        self.num_heads, self.dropout = settings.num_heads, settings.dropout
        self.history_length = history_length
        self.offer = nn.Linear(settings.dim, 4 * settings.dim, bias=False)  # f1
        self.out = nn.Linear(settings.dim, settings.dim)  # f2
        self.by_distance = nn.Parameter(torch.empty(history_length).normal_(std=0.02))
        self.by_time = nn.Parameter(torch.empty(settings.num_time_buckets).normal_(std=0.02))

    def forward(self, x_RLD: Tensor, bucket_RLM: Tensor, mask_RLM: Tensor) -> Tensor:
        """mask_RLM: 0 where an entry may look, so low elsewhere that SiLU leaves nothing."""
        rows, length, dim = x_RLD.shape
        gate, value, query, key = F.silu(self.offer(_norm(x_RLD))).chunk(4, dim=-1)  # eq 1
        value, query, key = (self._heads(part) for part in (value, query, key))
        bias = self.bias(bucket_RLM, mask_RLM).to(query.dtype)
        bias = bias[:, None].expand(-1, self.num_heads, -1, -1).flatten(0, 1)
        weight = F.silu(torch.baddbmm(bias, query, key.transpose(1, 2))) / self.history_length
        gathered = torch.bmm(weight, value).view(rows, self.num_heads, length, -1).transpose(1, 2)  # eq 2
        passed = _norm(gathered.reshape(rows, length, dim)) * gate
        output: Tensor = x_RLD + self.out(dropout(passed, self.dropout, training=self.training))  # eq 3
        return output

    def bias(self, bucket_RLM: Tensor, mask_RLM: Tensor) -> Tensor:
        """rab^{p,t}, the same for all heads: by how many entries lie between two, and by the time."""
        place_L = torch.arange(bucket_RLM.shape[1], device=bucket_RLM.device)
        distance_LM = (place_L[:, None] - place_L).clamp(0, self.history_length - 1)
        return looked_up(self.by_time, bucket_RLM) + looked_up(self.by_distance, distance_LM) + mask_RLM

    def _heads(self, x_RLD: Tensor) -> Tensor:
        rows, length, dim = x_RLD.shape
        return x_RLD.view(rows, length, self.num_heads, dim // self.num_heads).transpose(1, 2).flatten(0, 1)


def time_buckets(history: PackedHistory, *, count: int) -> Tensor:
    """How long before the next target each entry happened, in steps of a logarithmic scale: [R, L, M] of 0..count - 1.

    The target's time is known when it is asked for, and all that is read here of what comes after an entry.
    """
    asked_RL = torch.where(history.horizon_RL < int(NOW), history.horizon_RL, history.known_RL)
    seconds_RLM: Tensor = (asked_RL[:, :, None] - history.known_RL[:, None, :]) / 1_000
    return (seconds_RLM.clamp_(min=1).log_() * BUCKETS_A_FACTOR_E).long().clamp_(max=count - 1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
