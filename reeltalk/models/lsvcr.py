"""LSVCR's sequential model: what someone watches and what they say under it, read together.

Paper: Zheng et al., A Large Language Model Enhanced Sequential Recommender for Joint Video and Comment Recommendation
    (RecSys 2025), arXiv 2403.13574. Section 4.1: eq 1, 2 `_entries`; eq 3 `_placed`; eq 4 `_encoded`; eq 5, 6
    `_fused_items`, `_fused_records`; eq 7, 8 `_item_readout`, `_comment_readout`; section 4.3 `alignment_step`; section
    4.4.1: ID embeddings joining inputs and targets (eq 17, 19 `item_vectors`, `comment_vectors`), eq 16
    `_regularisation`.
Differs from the paper: one pass gives the preference after every event, so an entry looks at the other history as known
    before the next event, not before the request (the last entry: before the request, as in the paper). A learned start
    entry opens each history, so that a user with one empty history, or two, has a preference. Eq 16 is a mean over the
    pairs of both histories together, at most 1,024 of each, of items that were trained on; their negatives are shared
    by the batch. Without comments (section 5.3) the fusion stays, over a history that is its start entry alone. In
    training a window's targets share the other history's last entries before the window's end. Text map and adapter
    start as a whitened PCA of the titles `start_text_map`, W1 and the fusion with identities. With `use_recency` (off),
    eq 7 knows how many events ago an entry was, too.
Checked against: slow float64 loops written from the equations (tests/test_lsvcr.py).

Shapes: R rows, L positions, K comments of an entry, D width, E text width, N items, T targets, U distinct comments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import AlignmentBatch, Batch, PackedHistory, PackedPair
from reeltalk.losses import id_text_regularisation, unit
from reeltalk.models.attention import (
    Encoder,
    TransformerLayer,
    causal_mask,
    dropout,
    known_mask,
    looked_up,
    masked_bias,
)
from reeltalk.models.comments import mean_comments
from reeltalk.models.queries import Queries
from reeltalk.models.recommender import Items, Recommender, Step, initialise
from reeltalk.precision import as_factor

MAX_REGULARISATION_PAIRS = 1024
PCA_TEXTS = 20_000


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
    use_recency: bool = Field(
        False, description="eq 7 weighs an entry by how many events ago it was, too; in the paper by what it is alone"
    )


class LSVCR(Recommender):
    """The sequential model of LSVCR for one task or both; parameters of the other task stay untouched."""

    has_start = True
    title_vectors_NE: Tensor
    known_N1: Tensor

    def __init__(self, settings: LSVCRSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        width, dim = items.title_vectors_NE.shape[1], settings.dim
        self.register_buffer("title_vectors_NE", items.title_vectors_NE, persistent=False)
        self.text_map = text_map(settings, width)
        self.text_adapter = nn.Linear(settings.text_dim if settings.text_map != "none" else width, dim, bias=False)
        self.merge_text = nn.Linear(2 * dim, dim)
        if settings.use_item_ids:
            self.item_embedding = nn.Embedding(len(items.known_N), dim)
            # of an item without a training event nothing was learnt: its text alone speaks for it
            self.register_buffer("known_N1", items.known_N[:, None].float(), persistent=False)
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
        if settings.use_recency:
            # a start entry stands one before the first event
            self.recency = nn.Parameter(torch.zeros(history_length + 1))
        self.watched_query = nn.Linear(dim, dim)
        self.record_key = nn.Linear(dim, dim, bias=False)
        initialise(self)
        with torch.no_grad():
            # an entry reads at first as what it is held against: its title, and half of its comments
            self.merge_text.weight.copy_(torch.cat([torch.eye(dim), torch.eye(dim) / 2], dim=1))
            for merge in (self.merge_items, self.merge_records):  # and comes through as its own encoder gives it
                merge.weight[:, :dim] = torch.eye(dim)

    def fit(self, items: Items) -> None:
        item_M = items.with_titles()
        self.start_text_map(items.title_vectors_NE[item_M[torch.randperm(len(item_M))[:PCA_TEXTS]]])

    @torch.no_grad()
    def start_text_map(self, text_UE: Tensor) -> None:
        """Start text map and adapter as a whitened PCA of some texts' vectors; what it does not need stays random.

        Two units with opposite weights pass a component through the GELU: GELU(x) - GELU(-x) = x.
        """
        if not len(self.text_map) or not len(text_UE):
            return
        first, last = self.text_map[0], self.text_map[-1]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        is_mlp = first is not last
        most = min(first.out_features // (2 if is_mlp else 1), last.out_features, self.settings.dim)
        mean_E = text_UE.mean(0, dtype=torch.float64)
        x_UE = text_UE - mean_E
        variance_E, direction_EE = torch.linalg.eigh(x_UE.T @ x_UE / max(len(text_UE) - 1, 1))
        variance_E, direction_CE = variance_E.flip(0), direction_EE.T.flip(0)
        rank = min(most, int((variance_E > variance_E[0] * 1e-8).sum()))
        whitened = direction_CE[:rank] / variance_E[:rank, None].sqrt()
        for sign in (1, -1) if is_mlp else (1,):
            rows = slice(0, rank) if sign == 1 else slice(rank, 2 * rank)
            first.weight[rows] = sign * whitened
            first.bias[rows] = -sign * whitened @ mean_E
            if is_mlp:
                last.weight[:rank, rows] = sign * torch.eye(rank)
        if is_mlp:
            last.weight[:rank, 2 * rank :] = 0
        self.text_adapter.weight[:rank] = 0
        self.text_adapter.weight[:rank, :rank] = torch.eye(rank)

    def item_vectors(self) -> Tensor:
        """Eq 17: ID embedding plus title embedding, as a unit vector."""
        return self._item_vectors(self._text(self.title_vectors_NE))

    def comment_vectors(self, text_UE: Tensor) -> Tensor:
        """Eq 19: the comment's text embedding, as a unit vector."""
        return unit(self._text(text_UE))

    def item_preferences(self, batch: Batch) -> Tensor:
        """Eq 7 at every position, as a unit vector divided by the temperature."""
        return self._item_preferences(batch, self._entries(batch, self._texts(batch)))[0]

    def item_attention(self, batch: Batch) -> Tensor:
        """Alpha of eq 7: how much each item entry speaks in each preference. [R, L, L], rows sum to one."""
        return self._item_preferences(batch, self._entries(batch, self._texts(batch)))[1]

    def comment_preferences(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        """Eq 8 for each target, as a unit vector divided by the temperature."""
        texts = self._texts(batch, item_T)
        return self._comment_preferences(batch, self._entries(batch, texts), position_T, texts.titles(item_T))[0]

    def comment_attention(self, batch: Batch, position_T: Tensor, item_T: Tensor) -> Tensor:
        """Beta of eq 8: how much each record entry speaks in each target's preference. [T, L], rows sum to one."""
        texts = self._texts(batch, item_T)
        return self._comment_preferences(batch, self._entries(batch, texts), position_T, texts.titles(item_T))[1]

    def item_step(self, batch: Batch, *, regularise: bool) -> Step:
        title_ND = self._text(self.title_vectors_NE)
        entries = self._entries(batch, Texts(title_ND, None, self._text(batch.comment_text_UE)))
        preference_RLD, _ = self._item_preferences(batch, entries)
        return Step(preference_RLD, self._item_vectors(title_ND), self._regularisation(entries) if regularise else None)

    def comment_step(self, batch: Batch, position_T: Tensor, item_T: Tensor, *, regularise: bool) -> Step:
        texts = self._texts(batch, item_T)
        entries = self._entries(batch, texts)
        preference_TD, _ = self._comment_preferences(batch, entries, position_T, texts.titles(item_T))
        return Step(preference_TD, unit(texts.comment_UD), self._regularisation(entries) if regularise else None)

    def alignment_step(self, batch: AlignmentBatch, text_UE: Tensor) -> AlignmentStep:
        """Section 4.3, both tasks in one pass and without ID embeddings: what eq 10, 12 and 14 read of this model.

        text_UE: vectors of the batch's distinct texts, with gradient where the encoder is trained; row 0, which stands
        for no text, is zeros. Raises ValueError where the model has ID embeddings.
        """
        if self.settings.use_item_ids:
            raise ValueError("alignment learns from texts alone; build the model with use_item_ids=False")
        text_UD = self._text(text_UE)
        items_RLD, records_RLD = self._encoded(batch, self._entries(batch, Texts(text_UD, None, text_UD)))
        watched_TD = F.embedding(batch.watched_T, text_UD)
        fused_items_RLD = self._fused_items(batch, items_RLD, records_RLD)
        fused_records_RLD = self._fused_records(batch, items_RLD, records_RLD)
        by_item_RLD = self._item_readout(fused_items_RLD, batch.items)[0]
        by_items, by_comments = [], []
        for fused_RLD, by_item, history, position_T in (
            (fused_items_RLD, by_item_RLD, batch.items, batch.item_position_T),
            (
                fused_records_RLD,
                self._item_readout(fused_records_RLD, batch.records)[0],
                batch.records,
                batch.record_position_T,
            ),
        ):
            by_items.append(F.embedding(position_T, by_item.flatten(0, 1)))
            by_comments.append(self._comment_readout(fused_RLD, history, position_T, watched_TD)[0])
        is_item_T1 = batch.is_item_T[:, None]
        prefixes = [F.embedding(batch.prefix_item_P, by_item_RLD.flatten(0, 1))]
        if len(batch.prefix_record_Q):
            title_QD = F.embedding(batch.prefix_watched_Q, text_UD)
            prefixes.append(self._comment_readout(fused_records_RLD, batch.records, batch.prefix_record_Q, title_QD)[0])
        return AlignmentStep(
            torch.where(is_item_T1, by_items[0], by_comments[1]),
            torch.where(is_item_T1, by_items[1], by_comments[0]),
            F.embedding(batch.target_T, text_UD),
            torch.cat(prefixes),
            F.embedding(torch.cat([batch.prefix_title_P, batch.prefix_answer_Q]), text_UD),
            F.embedding(batch.negative_N, text_UD),
        )

    def _text(self, text_UE: Tensor) -> Tensor:
        """LLM(x): text map and adapter. Two linear layers in a row are multiplied first: same map at half the work."""
        adapter = self.text_adapter.weight
        x_UE = as_factor(text_UE, adapter)
        if not len(self.text_map):
            return F.linear(x_UE, adapter)
        last = self.text_map[-1]
        assert isinstance(last, nn.Linear)
        return F.linear(self.text_map[:-1](x_UE), adapter @ last.weight, adapter @ last.bias)

    def _texts(self, batch: Batch, *more_items: Tensor) -> Texts:
        """The texts of what is in the batch, which are few beside all items."""
        used_P = torch.cat([batch.items.item_RL.flatten(), batch.records.item_RL.flatten(), *more_items]).unique()  # type: ignore[no-untyped-call]
        row_N = used_P.new_zeros(len(self.title_vectors_NE))
        row_N[used_P] = torch.arange(len(used_P), device=used_P.device)
        return Texts(self._text(self.title_vectors_NE[used_P]), row_N, self._text(batch.comment_text_UE))

    def _item_vectors(self, title_ND: Tensor) -> Tensor:
        return unit(title_ND + self.known_N1 * self.item_embedding.weight if self.settings.use_item_ids else title_ND)

    def _entries(self, batch: PackedPair, texts: Texts) -> Entries:
        """Eq 1 and 2 for both histories; with ID embeddings and positions, what eq 4 reads."""
        histories = (batch.items, batch.records)
        item_M = torch.cat([history.item_RL.flatten() for history in histories])
        comment_MD = torch.cat([texts.comments(history.comment_RLK.flatten(0, 1)) for history in histories])
        z_MD = self.merge_text(torch.cat([texts.titles(item_M), comment_MD], dim=1))
        id_MD = self.known_N1[item_M] * self.item_embedding(item_M) if self.settings.use_item_ids else None
        x_MD = z_MD if id_MD is None else z_MD + self.id_gate * id_MD
        items_MD, records_MD = x_MD.split([history.item_RL.numel() for history in histories])
        items_RLD, records_RLD = self._placed(items_MD, batch.items, 0), self._placed(records_MD, batch.records, 1)
        return Entries(items_RLD, records_RLD, item_M, id_MD, z_MD)

    def _placed(self, x_MD: Tensor, history: PackedHistory, which: int) -> Tensor:
        """Positions (eq 3; in fine-tuning the whole table in order) and start entries put in: [R, L, D]."""
        x_RLD = x_MD.view(*history.item_RL.shape, -1) + self.positions[which](history.position_RL.clamp(min=0))
        x_RLD = torch.where(history.is_start_RL[..., None], self.starts[which].to(x_RLD.dtype), x_RLD)
        return dropout(self.input_norms[which](x_RLD), self.settings.dropout, training=self.training)

    def _encoded(self, batch: PackedPair, entries: Entries) -> tuple[Tensor, Tensor]:
        dtype = entries.items_RLD.dtype
        return (
            self.item_encoder(entries.items_RLD, masked_bias(causal_mask(batch.items), dtype)),
            self.record_encoder(entries.records_RLD, masked_bias(causal_mask(batch.records), dtype)),
        )

    def _item_preferences(self, batch: Batch, entries: Entries) -> tuple[Tensor, Tensor]:
        """Eq 4, 5, 7: preferences, alpha."""
        return self._item_readout(self._fused_items(batch, *self._encoded(batch, entries)), batch.items)

    def _comment_preferences(
        self, batch: Batch, entries: Entries, position_T: Tensor, title_TD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq 4, 6, 8: preferences, beta."""
        fused_RLD = self._fused_records(batch, *self._encoded(batch, entries))
        return self._comment_readout(fused_RLD, batch.records, position_T, title_TD)

    def _fused_items(self, batch: PackedPair, items_RLD: Tensor, records_RLD: Tensor) -> Tensor:
        """Eq 5."""
        bias_RLM = masked_bias(known_mask(batch.records, batch.items), items_RLD.dtype)
        other_RLD = self.item_fusion(items_RLD, records_RLD, bias_RLM)
        fused_RLD: Tensor = self.merge_items(torch.cat([items_RLD, other_RLD], dim=-1))
        return fused_RLD

    def _fused_records(self, batch: PackedPair, items_RLD: Tensor, records_RLD: Tensor) -> Tensor:
        """Eq 6."""
        bias_RLM = masked_bias(known_mask(batch.items, batch.records), records_RLD.dtype)
        other_RLD = self.record_fusion(records_RLD, items_RLD, bias_RLM)
        fused_RLD: Tensor = self.merge_records(torch.cat([records_RLD, other_RLD], dim=-1))
        return fused_RLD

    def _item_readout(self, fused_RLD: Tensor, history: PackedHistory) -> tuple[Tensor, Tensor]:
        """Eq 7, F_v: preferences, alpha; a softmax over each prefix as a matrix of rows is exact in half precision."""
        score_RL = self.item_weight(fused_RLD)[..., 0]
        bias_RLL = masked_bias(causal_mask(history), score_RL.dtype)
        if self.settings.use_recency:
            ago_RLL = (history.position_RL[:, :, None] - history.position_RL[:, None, :]).clamp(min=0)
            recency_RLL = looked_up(self.recency, ago_RLL)
            bias_RLL = bias_RLL + recency_RLL.to(score_RL.dtype)  # in this order: its gradient is a long sum
        alpha_RLL = (score_RL[:, None, :] + bias_RLL).softmax(dim=-1)
        return unit(torch.bmm(alpha_RLL, fused_RLD)) / self.settings.temperature, alpha_RLL

    def _comment_readout(
        self, fused_RLD: Tensor, history: PackedHistory, position_T: Tensor, title_TD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eq 8, F_c: preferences and beta, with the queries of a row's targets side by side: [R, Q, D]."""
        queries = Queries.of(history, position_T)
        query_RQD = queries.laid(self.watched_query(title_TD) * fused_RLD.shape[-1] ** -0.5)
        score_RQL = torch.bmm(query_RQD, self.record_key(fused_RLD).transpose(1, 2))
        beta_RQL = (score_RQL + masked_bias(queries.mask_RQL, score_RQL.dtype)).softmax(dim=-1)
        mixed_TD = queries.taken(torch.bmm(beta_RQL, fused_RLD))
        return unit(mixed_TD) / self.settings.temperature, queries.taken(beta_RQL)

    def _regularisation(self, entries: Entries) -> tuple[Tensor, int] | None:
        """Eq 16: ID and text embeddings of the same entry agree, on both histories."""
        if entries.id_MD is None:
            return None
        total, count = entries.z_MD.new_zeros(()), 0
        num_items = entries.items_RLD.shape[0] * entries.items_RLD.shape[1]
        for first, last in ((0, num_items), (num_items, len(entries.item_M))):
            item_M = entries.item_M[first:last]
            event_M = first + ((item_M > 0) & (self.known_N1[item_M, 0] > 0)).nonzero()[:, 0]
            event_M = event_M[torch.randperm(len(event_M), device=event_M.device)[:MAX_REGULARISATION_PAIRS]]
            if len(event_M) < 2:
                continue
            negative_C = torch.arange(
                min(len(event_M), self.settings.num_regularisation_negatives), device=event_M.device
            )
            total = total + id_text_regularisation(
                entries.id_MD[event_M],
                entries.z_MD[event_M],
                entries.item_M[event_M],
                negative_C,
                temperature=self.settings.temperature,
            )
            count += len(event_M)
        return total, count


@dataclass(frozen=True)
class AlignmentStep:
    """What alignment reads of the model, one row an instance: [T, D] each; of prefixes one row each.

    preference_TD: s, by F_o of the instance's task over the history that the task predicts; other_TD: by the same F_o
    over the other history (eq 12); target_TD: e = LLM(T) (eq 14). prefix_XD and prefix_target_XD: s and e of eq 14 with
    an entry of a history as target. negative_ND: vectors of the drawn negatives.
    """

    preference_TD: Tensor
    other_TD: Tensor
    target_TD: Tensor
    prefix_XD: Tensor
    prefix_target_XD: Tensor
    negative_ND: Tensor


@dataclass(frozen=True)
class Texts:
    """Text embeddings of a step: titles, of all items or of those that row_N gives a row, and the batch's comments."""

    title_PD: Tensor
    row_N: Tensor | None
    comment_UD: Tensor

    def titles(self, item_M: Tensor) -> Tensor:
        """[M, D]"""
        return F.embedding(item_M if self.row_N is None else self.row_N[item_M], self.title_PD)

    def comments(self, comment_MK: Tensor) -> Tensor:
        """The mean over each entry's comments: [M, D]; where there are none, row 0, the embedding of an empty text."""
        return mean_comments(comment_MK, self.comment_UD)


@dataclass(frozen=True)
class Entries:
    """What both encoders read, and all entries of items, then records, in a row: item ids, ID and text embeddings."""

    items_RLD: Tensor
    records_RLD: Tensor
    item_M: Tensor
    id_MD: Tensor | None
    z_MD: Tensor


def text_map(settings: LSVCRSettings, width: int) -> nn.Sequential:
    """From raw text vectors to text_dim: the reference's two-layer GELU map, one linear layer, or nothing."""
    if settings.text_map == "none":
        return nn.Sequential()
    if settings.text_map == "linear":
        return nn.Sequential(nn.Linear(width, settings.text_dim))
    hidden = max(1, width // 4)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, settings.text_dim))
