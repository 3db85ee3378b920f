"""LSVCR's sequential model: what someone watches and what they say under it, read together.

Paper: Zheng et al., A Large Language Model Enhanced Sequential Recommender for Joint Video and Comment Recommendation
    (RecSys 2025), arXiv 2403.13574. Section 4.1: eq 1, 2 `_entries`; eq 3 `_positions`; eq 4 `item_encoder`,
    `record_encoder`; eq 5, 6 `_fuse`; eq 7 `item_attention`; eq 8 `comment_attention`; section 4.4.1: ID embeddings joining
    inputs and targets (eq 17, 19 `item_vectors`, `comment_vectors`), eq 16 `regularisation`.
Differs from the paper: one pass gives the preference after every event, so an entry looks at the other history as known
    before the next event, not before the request (the last entry: before the request, as in the paper). A learned start
    entry opens each history, so that a user with one empty history, or two, has a preference. The negatives of eq 16 are
    shared by the pairs of a batch.
Checked against: slow float64 loops written from the equations (tests/test_lsvcr.py).

Shapes: R rows, L positions, K comments of an entry, D width, E text width, N items, T targets, U distinct comments.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.losses import id_text_regularisation, unit
from reeltalk.models.attention import Encoder, TransformerLayer, causal_mask, dropout, known_mask, masked_bias
from reeltalk.models.recommender import Recommender, initialise

MAX_REGULARISATION_PAIRS = 1024


class LSVCRSettings(BaseModel):
    """Sizes and switches of LSVCR; defaults are the paper's and its reference implementation's."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.3, ge=0, lt=1)
    text_dim: int = Field(256, gt=0, description="width of a text vector after the text map")
    text_map: Literal["mlp", "linear", "none"] = Field(
        "mlp", description="what maps raw text vectors to text_dim; none: they are mapped already (aligned)"
    )
    temperature: float = Field(0.07, gt=0)
    use_item_ids: bool = Field(True, description="off: text alone speaks for an item, also one never seen")
    num_regularisation_negatives: int = Field(99, gt=0)


class LSVCR(Recommender):
    """The sequential model of LSVCR for one task or both; parameters of the other task stay untouched."""

    has_start = True

    def __init__(
        self, settings: LSVCRSettings, *, title_vectors_NE: Tensor, history_length: int
    ) -> None:
        super().__init__()
        self.settings = settings
        width, dim = title_vectors_NE.shape[1], settings.dim
        self.register_buffer("title_vectors_NE", title_vectors_NE, persistent=False)
        self.text_map = text_map(settings, width)
        self.text_adapter = nn.Linear(settings.text_dim if settings.text_map != "none" else width, dim, bias=False)
        self.merge_text = nn.Linear(2 * dim, dim)
        if settings.use_item_ids:
            self.item_embedding = nn.Embedding(len(title_vectors_NE), dim)
            self.id_gate = nn.Parameter(torch.ones(()))
        self.starts = nn.ParameterList([nn.Parameter(torch.empty(dim).normal_(std=0.02)) for _ in range(2)])
        self.positions = nn.ModuleList([nn.Embedding(history_length, dim) for _ in range(2)])
        self.input_norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2)])
        sizes = {"num_heads": settings.num_heads, "inner_dim": settings.inner_dim}
        self.item_encoder = Encoder(dim, num_layers=settings.num_layers, dropout=settings.dropout, **sizes)
        self.record_encoder = Encoder(dim, num_layers=settings.num_layers, dropout=settings.dropout, **sizes)
        self.item_fusion = TransformerLayer(dim, dropout=settings.dropout, **sizes)
        self.record_fusion = TransformerLayer(dim, dropout=settings.dropout, **sizes)
        self.merge_items = nn.Linear(2 * dim, dim)
        self.merge_records = nn.Linear(2 * dim, dim)
        # no bias where it would move all scores of a softmax alike
        self.item_weight = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, 1, bias=False)
        )
        self.watched_query = nn.Linear(dim, dim)
        self.record_key = nn.Linear(dim, dim, bias=False)
        initialise(self)

    def item_vectors(self) -> Tensor:
        """Eq 17: ID embedding plus title embedding, as a unit vector."""
        title_ND = self._titles()
        return unit(title_ND + self.item_embedding.weight if self.settings.use_item_ids else title_ND)

    def comment_vectors(self, text_UE: Tensor) -> Tensor:
        """Eq 19: the comment's text embedding, as a unit vector."""
        return unit(self._text(text_UE))

    def item_preferences(self, batch: Batch) -> Tensor:
        """Eq 7 at every position, as a unit vector divided by the temperature."""
        fused_RLD = self._fused_items(batch, self._titles())
        weight_RLL = self._additive_weights(fused_RLD, batch.items)
        return unit(torch.bmm(weight_RLL, fused_RLD)) / self.settings.temperature

    def item_attention(self, batch: Batch) -> Tensor:
        """Alpha of eq 7: how much each entry of the item history speaks in each preference. [R, L, L], rows sum to one."""
        return self._additive_weights(self._fused_items(batch, self._titles()), batch.items)

    def comment_preferences(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        """Eq 8 for each target, as a unit vector divided by the temperature."""
        title_ND = self._titles()
        fused_RLD = self._fused_records(batch, title_ND)
        weight_TL = self._query_weights(fused_RLD, batch.records, title_ND[item_T], position_T)
        row_T = position_T // fused_RLD.shape[1]
        mixed_TD = torch.bmm(weight_TL[:, None], fused_RLD[row_T])[:, 0]
        return unit(mixed_TD) / self.settings.temperature

    def comment_attention(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        """Beta of eq 8: how much each entry of the records speaks in each target's preference. [T, L], rows sum to one."""
        title_ND = self._titles()
        return self._query_weights(self._fused_records(batch, title_ND), batch.records, title_ND[item_T], position_T)

    def regularisation(self, batch: Batch) -> tuple[Tensor, int] | None:
        """Eq 16: ID and text embeddings of the same entry agree, on both histories."""
        if not self.settings.use_item_ids:
            return None
        title_ND, comment_UD = self._titles(), self._text(batch.comment_text_UE)
        total, count = title_ND.new_zeros(()), 0
        for history in (batch.items, batch.records):
            is_event = (history.item_RL > 0).flatten().nonzero()[:, 0]
            is_event = is_event[torch.randperm(len(is_event), device=is_event.device)[:MAX_REGULARISATION_PAIRS]]
            if len(is_event) < 2:
                continue
            item_M = history.item_RL.flatten()[is_event]
            text_MD = self._entry_text(title_ND[item_M], history.comment_RLK.flatten(0, 1)[is_event], comment_UD)
            negative_C = torch.randperm(len(item_M), device=item_M.device)[: self.settings.num_regularisation_negatives]
            total = total + id_text_regularisation(
                self.item_embedding(item_M), text_MD, item_M, negative_C, temperature=self.settings.temperature
            )
            count += len(item_M)
        return total, count

    def _titles(self) -> Tensor:
        return self._text(self.title_vectors_NE)

    def _text(self, text_UE: Tensor) -> Tensor:
        adapted: Tensor = self.text_adapter(self.text_map(text_UE.to(self.text_adapter.weight.dtype)))
        return adapted

    def _entry_text(self, title_MD: Tensor, comment_MK: Tensor, comment_UD: Tensor) -> Tensor:
        """Eq 1 and 2: title beside the mean of the entry's comments; row 0 of comment_UD stands for none."""
        has_MK = (comment_MK > 0).to(comment_UD.dtype)
        if comment_MK.shape[1] == 1:
            mean_MD = F.embedding(comment_MK[:, 0], comment_UD)
        else:
            count_M1 = has_MK.sum(1, keepdim=True).clamp(min=1)
            none_M1 = (has_MK.sum(1, keepdim=True) == 0).to(comment_UD.dtype)
            share_MK = has_MK / count_M1
            share_MK = torch.cat([share_MK[:, :1] + none_M1, share_MK[:, 1:]], dim=1)
            mean_MD = (F.embedding(comment_MK, comment_UD) * share_MK[..., None]).sum(1)
        merged: Tensor = self.merge_text(torch.cat([title_MD, mean_MD], dim=1))
        return merged

    def _entries(self, history: PackedHistory, which: int, title_ND: Tensor, comment_UD: Tensor) -> Tensor:
        item_M = history.item_RL.flatten()
        x_MD = self._entry_text(F.embedding(item_M, title_ND), history.comment_RLK.flatten(0, 1), comment_UD)
        if self.settings.use_item_ids:
            x_MD = x_MD + self.id_gate * self.item_embedding(item_M)
        x_RLD = x_MD.view(*history.item_RL.shape, -1) + self.positions[which](history.position_RL.clamp(min=0))
        is_start = (history.position_RL < 0) & (history.segment_RL > 0)
        x_RLD = torch.where(is_start[..., None], self.starts[which].to(x_RLD.dtype), x_RLD)
        return dropout(self.input_norms[which](x_RLD), self.settings.dropout, training=self.training)

    def _encoded(self, batch: Batch, title_ND: Tensor) -> tuple[Tensor, Tensor]:
        comment_UD = self._text(batch.comment_text_UE)
        items_RLD = self._entries(batch.items, 0, title_ND, comment_UD)
        records_RLD = self._entries(batch.records, 1, title_ND, comment_UD)
        return (
            self.item_encoder(items_RLD, masked_bias(causal_mask(batch.items), items_RLD.dtype)),
            self.record_encoder(records_RLD, masked_bias(causal_mask(batch.records), records_RLD.dtype)),
        )

    def _fused_items(self, batch: Batch, title_ND: Tensor) -> Tensor:
        items_RLD, records_RLD = self._encoded(batch, title_ND)
        bias_RLM = masked_bias(known_mask(batch.records, batch.items), items_RLD.dtype)
        other_RLD = self.item_fusion(items_RLD, records_RLD, bias_RLM)
        fused: Tensor = self.merge_items(torch.cat([items_RLD, other_RLD], dim=-1))
        return fused

    def _fused_records(self, batch: Batch, title_ND: Tensor) -> Tensor:
        items_RLD, records_RLD = self._encoded(batch, title_ND)
        bias_RLM = masked_bias(known_mask(batch.items, batch.records), records_RLD.dtype)
        other_RLD = self.record_fusion(records_RLD, items_RLD, bias_RLM)
        fused: Tensor = self.merge_records(torch.cat([records_RLD, other_RLD], dim=-1))
        return fused

    def _additive_weights(self, fused_RLD: Tensor, history: PackedHistory) -> Tensor:
        """A softmax over each prefix; as a matrix of rows it needs no running sum and stays exact in half precision."""
        score_RL = self.item_weight(fused_RLD)[..., 0]
        bias_RLL = masked_bias(causal_mask(history), score_RL.dtype)
        return (score_RL[:, None, :] + bias_RLL).softmax(dim=-1)

    def _query_weights(self, fused_RLD: Tensor, history: PackedHistory, title_TD: Tensor, position_T: Tensor) -> Tensor:
        length, dim = fused_RLD.shape[1:]
        row_T, column_T = position_T // length, position_T % length
        key_TLD = self.record_key(fused_RLD)[row_T]
        score_TL = torch.bmm(key_TLD, self.watched_query(title_TD)[..., None])[..., 0] * dim**-0.5
        segment_TL = history.segment_RL[row_T]
        is_same = segment_TL == segment_TL.gather(1, column_T[:, None])
        is_past = torch.arange(length, device=position_T.device) <= column_T[:, None]
        return (score_TL + masked_bias(is_same & is_past, score_TL.dtype)).softmax(dim=-1)


def text_map(settings: LSVCRSettings, width: int) -> nn.Module:
    """From raw text vectors to text_dim: the reference's two-layer GELU map, one linear layer, or nothing."""
    if settings.text_map == "none":
        return nn.Identity()
    if settings.text_map == "linear":
        return nn.Linear(width, settings.text_dim)
    hidden = max(1, width // 4)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, settings.text_dim))
