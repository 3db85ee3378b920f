"""Attention over packed histories: the blocks that every sequential model here is built from.

Shapes: R rows, L query positions, M key positions, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import PackedHistory
from reeltalk.errors import ConfigError


def same_history_mask(history: PackedHistory) -> Tensor:
    """May position i look at position j of the same history: same user. bool [R, L, L]."""
    return history.segment_RL[:, :, None] == history.segment_RL[:, None, :]


def causal_mask(history: PackedHistory) -> Tensor:
    """May position i look at position j of the same history: same user, j no later than i. bool [R, L, L]."""
    return same_history_mask(history).tril_()


def event_mask(history: PackedHistory) -> Tensor:
    """`causal_mask` without the start entries: they stand for a history without events, and only see themselves."""
    is_start_RL = history.is_start_RL
    is_itself = torch.eye(is_start_RL.shape[1], dtype=torch.bool, device=is_start_RL.device)
    return causal_mask(history) & (~is_start_RL[:, None] | is_itself)


def known_mask(of: PackedHistory, at: PackedHistory) -> Tensor:
    """May an entry of `at` look at an entry of `of`, the same user's other history: known before the next target.

    bool [R, L, M]. Start entries are always known; times must be strictly earlier, so nothing of the target leaks.
    """
    is_same = at.segment_RL[:, :, None] == of.segment_RL[:, None, :]
    return is_same & (of.known_RL[:, None, :] < at.horizon_RL[:, :, None])


def masked_bias(mask_RLM: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where attention is allowed, a large negative number elsewhere: finite, so a row of padding stays finite."""
    return torch.where(mask_RLM, 0.0, -30_000.0).to(dtype)


def looked_up(table_X: Tensor, index: Tensor) -> Tensor:
    """table_X[index], of few numbers many times: [..] as index.

    Threads would race to add up the gradient of the plain form, whose last bits then differ from run to run.
    """
    return table_X.index_select(0, index.flatten()).view(index.shape)


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Dropout from one random byte an element: on processors several times faster than torch's, which draws 32 bits.

    The probability is rounded to 1/256 and the rest scaled by the rounded one, so the mean stays exact.
    """
    if not training or probability == 0.0:
        return x
    if x.is_cuda:
        return F.dropout(x, probability)
    threshold = min(round(probability * 256), 255)
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
    return x * keep.to(x.dtype).mul_(256 / (256 - threshold))


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.probability, training=self.training)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with dropout on its weights.

    Every query of a user must be allowed at least one key (itself, or a start entry); padding may look at anything, its
    result is never read.
    """

    def __init__(self, dim: int, *, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, query_RLD: Tensor, key_RMD: Tensor, bias_RLM: Tensor) -> Tensor:
        """bias_RLM: `masked_bias` of who may look at whom, in the dtype of the products."""
        rows, length, dim = query_RLD.shape
        head = dim // self.num_heads
        if rows == 1 and not self.training:  # a request: one call in place of many, which many rows gain nothing by
            query = self.query(query_RLD).view(1, length, self.num_heads, head).transpose(1, 2)
            key, value = self.key_value(key_RMD).view(1, -1, 2, self.num_heads, head).transpose(1, 3).unbind(2)
            bias = bias_RLM.to(query.dtype)[:, None]
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)
            answer: Tensor = self.out(mixed.reshape(1, length, dim))
            return answer
        query = self._heads(self.query(query_RLD) * head**-0.5, head)
        key, value = (self._heads(part, head) for part in self.key_value(key_RMD).chunk(2, dim=-1))
        bias = bias_RLM.to(query.dtype)[:, None].expand(-1, self.num_heads, -1, -1).flatten(0, 1)
        weight = torch.baddbmm(bias, query, key.transpose(1, 2)).softmax(dim=-1)
        weight = dropout(weight, self.dropout, training=self.training)
        mixed = torch.bmm(weight, value).view(rows, self.num_heads, length, head).transpose(1, 2)
        output: Tensor = self.out(mixed.reshape(rows, length, dim))
        return output

    def _heads(self, x_RLD: Tensor, head: int) -> Tensor:
        return x_RLD.view(*x_RLD.shape[:2], self.num_heads, head).transpose(1, 2).flatten(0, 1)


class TransformerLayer(nn.Module):
    """Attention and feed-forward with residuals, normalised after each (as SASRec in RecBole and LSVCR's reference)."""

    def __init__(self, dim: int, *, num_heads: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads=num_heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, inner_dim)
        self.outer = nn.Linear(inner_dim, dim)
        self.inner_norm = nn.LayerNorm(dim)
        self.dropout = dropout

    def forward(self, query_RLD: Tensor, key_RMD: Tensor, bias_RLM: Tensor) -> Tensor:
        mixed = dropout(self.attention(query_RLD, key_RMD, bias_RLM), self.dropout, training=self.training)
        x_RLD = self.attention_norm(query_RLD + mixed)
        inner = self.outer(F.gelu(self.inner(x_RLD)))
        output: Tensor = self.inner_norm(x_RLD + dropout(inner, self.dropout, training=self.training))
        return output


class Encoder(nn.Module):
    """A stack of transformer layers, one history attending to itself."""

    def __init__(self, dim: int, *, num_layers: int, num_heads: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads=num_heads, inner_dim=inner_dim, dropout=dropout) for _ in range(num_layers)
        )

    def forward(self, x_RLD: Tensor, bias_RLL: Tensor) -> Tensor:
        for layer in self.layers:
            x_RLD = layer(x_RLD, x_RLD, bias_RLL)
        return x_RLD


class TransformerSettings(BaseModel):
    """Sizes of a causal transformer over one history; defaults as RecBole's SASRec has them."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)


class HistoryEncoder(nn.Module):
    """Positions added, normalised, then a causal encoder: what SASRec and the models built on it do with embeddings."""

    def __init__(self, settings: TransformerSettings, *, history_length: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(history_length, settings.dim)
        self.input_norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout
        self.encoder = Encoder(
            settings.dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            inner_dim=settings.inner_dim,
            dropout=settings.dropout,
        )

    def forward(self, x_RLD: Tensor, history: PackedHistory, *, looks_ahead: bool = False) -> Tensor:
        """looks_ahead: entries see those after them too."""
        x_RLD = x_RLD + self.positions(history.position_RL.clamp(min=0))
        x_RLD = dropout(self.input_norm(x_RLD), self.dropout, training=self.training)
        mask_RLL = same_history_mask(history) if looks_ahead else causal_mask(history)
        output: Tensor = self.encoder(x_RLD, masked_bias(mask_RLL, x_RLD.dtype))
        return output
