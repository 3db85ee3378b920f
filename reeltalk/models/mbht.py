"""MBHT: several behaviours as one sequence, read by a multi-scale transformer and a hypergraph of items.

Paper: Yang et al., Multi-Behavior Hypergraph-Enhanced Transformer for Sequential Recommendation (KDD 2022), arXiv
    2207.05584. Embeddings of item, position and behaviour: `_embedded`; low-rank attention, coarser scales and their
    fusion: `MultiScaleAttention`; the hyperedges of similar and of repeated items, convolution, hidden entries read
    from those around them: `reeltalk.models.hypergraph`; both views weighed, prediction: `_preferences`.
Differs from the paper: the behaviours are item events, which are also the target behaviour, and comment records, which
    are context and never predicted. A record that tells of a hidden item is hidden too: at ranking time hardly any
    tells of the item to come. Hidden entries are no vertices of the hypergraph. The fusion of scales starts
    as the identity of the low-rank part, and padding is left out of every sum. Coarser scales are means of neighbours,
    each with an attention of its own; the convolutions have no weights and no dropout of their own, nor the sums of the
    low-rank attention biases, which the authors' code has. Items compete that existed at the time.
Checked against: a slow loop over one user in float64 (tests/test_mbht.py).

Shapes: R rows and L positions of the packed item history, B users of a group, S positions of their merged sequences,
X positions of all groups, C rank, P positions of a coarser scale, H heads, D width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.models.attention import MultiHeadAttention, dropout, masked_bias
from reeltalk.models.cloze import drawn_hidden, is_next_hidden, next_columns
from reeltalk.models.hypergraph import ItemHypergraph
from reeltalk.models.merged import Merged, Sequences, longest_sequence
from reeltalk.models.recommender import Items, Recommender, Step, initialise

BEHAVIOURS = 3  # hidden, item event, comment record


class MBHTSettings(BaseModel):
    """Sizes of MBHT; defaults as in its authors' settings for Retail."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)
    hidden_share: float = Field(0.2, ge=0, lt=1, description="of the item events, how many a training step hides")
    rank: int = Field(5, gt=0, description="entries that low-rank attention sums the sequence up in (C)")
    scales: tuple[int, ...] = Field((4, 20), min_length=1, description="entries that a coarser scale takes as one (p)")
    num_channels: int = Field(2, gt=0, description="of the similarity of items")
    num_similar: int = Field(6, gt=0, description="most similar items that an entry shares a hyperedge with (k)")
    neighbours: tuple[int, int] = Field(
        (10, 6), description="a hidden entry is read from so many entries before and after it (q1, q2)"
    )


class MBHT(Recommender):
    """Both behaviours in one sequence in time order; item events are predicted."""

    has_start, is_causal = True, False

    def __init__(self, settings: MBHTSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        dim, longest = settings.dim, longest_sequence(history_length)
        self.item_embedding = nn.Embedding(len(items.known_N), dim)
        self.hidden_entry = nn.Parameter(torch.empty(dim).normal_(std=0.02))
        self.position_embedding = nn.Embedding(longest, dim)
        self.behaviour_embedding = nn.Embedding(BEHAVIOURS, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(MBHTLayer(settings, longest=longest) for _ in range(settings.num_layers))
        self.hypergraph = ItemHypergraph(
            dim,
            num_channels=settings.num_channels,
            num_similar=settings.num_similar,
            neighbours=settings.neighbours,
        )
        self.view_weight = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Linear(dim, 1, bias=False))
        initialise(self)
        for part in self.modules():
            if isinstance(part, MultiScaleAttention):
                part.start_fusion()

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        return self._preferences(batch, batch.items.is_start_RL)[0]

    def item_step(self, batch: Batch, *, regularise: bool) -> Step:
        is_hidden_RL = drawn_hidden(batch.items, share=self.settings.hidden_share, end_only=0.0)
        preference_RLD, is_predicted_RL = self._preferences(batch, is_hidden_RL)
        return Step(preference_RLD, self.item_vectors(), is_predicted_RL=is_predicted_RL)

    def _preferences(self, batch: Batch, is_hidden_RL: Tensor) -> tuple[Tensor, Tensor]:
        """After each entry whose next one is hidden, what stands there: preferences, which entries these are."""
        merged = Merged.of(batch, is_hidden_RL)
        mixed_XD = torch.cat([self._mixed(group).flatten(0, 1) for group in merged.groups])
        is_predicted_RL = is_next_hidden(batch.items, is_hidden_RL)
        next_slot_RL = merged.slot_RL.gather(1, next_columns(batch.items))
        return F.embedding(next_slot_RL, mixed_XD) * is_predicted_RL[..., None], is_predicted_RL

    def _mixed(self, of: Sequences) -> Tensor:
        """Both views of each entry, weighed: [B, S, D]."""
        is_same_item_BSS = (of.item_BS[:, :, None] == of.item_BS[:, None, :]) & (of.item_BS > 0)[:, None]
        tells_BS = of.is_record_BS & (is_same_item_BSS & of.is_hidden_BS[:, None]).any(dim=2)
        is_seen_BS = of.is_entry_BS & ~of.is_hidden_BS & ~tells_BS
        id_BSD = self.item_embedding(of.item_BS)
        x_BSD = self._embedded(of, id_BSD, is_seen_BS)
        for layer in self.layers:
            x_BSD = layer(x_BSD, of.is_entry_BS)
        views_2BSD = torch.stack([x_BSD, self.hypergraph(id_BSD, is_same_item_BSS, is_seen_BS).to(x_BSD.dtype)])
        mixed_BSD: Tensor = (self.view_weight(views_2BSD).softmax(dim=0) * views_2BSD).sum(dim=0)
        return mixed_BSD

    def _embedded(self, of: Sequences, id_BSD: Tensor, is_seen_BS: Tensor) -> Tensor:
        x_BSD = torch.where(is_seen_BS[..., None], id_BSD, self.hidden_entry)
        behaviour_BS = (1 + of.is_record_BS.long()) * is_seen_BS
        x_BSD = x_BSD + self.position_embedding.weight[: x_BSD.shape[1]] + self.behaviour_embedding(behaviour_BS)
        return dropout(self.input_norm(x_BSD), self.settings.dropout, training=self.training)


class MBHTLayer(nn.Module):
    """Multi-scale attention and feed-forward, with a residual and normalised."""

    def __init__(self, settings: MBHTSettings, *, longest: int) -> None:
        super().__init__()
        self.attention = MultiScaleAttention(settings, longest=longest)
        self.inner = nn.Linear(settings.dim, settings.inner_dim)
        self.outer = nn.Linear(settings.inner_dim, settings.dim)
        self.inner_norm = nn.LayerNorm(settings.dim)
        self.dropout = settings.dropout

    def forward(self, x_BSD: Tensor, is_entry_BS: Tensor) -> Tensor:
        x_BSD = self.attention(x_BSD, is_entry_BS)
        inner = dropout(self.outer(F.gelu(self.inner(x_BSD))), self.dropout, training=self.training)
        output_BSD: Tensor = self.inner_norm(x_BSD + inner)
        return output_BSD


class MultiScaleAttention(nn.Module):
    """Each entry attends to a few sums over the whole sequence, means of neighbours to each other; all is fused."""

    def __init__(self, settings: MBHTSettings, *, longest: int) -> None:
        super().__init__()
        dim = settings.dim
        self.num_heads, self.dropout, self.scales = settings.num_heads, settings.dropout, settings.scales
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.key_sums = nn.Linear(longest, settings.rank, bias=False)
        self.value_sums = nn.Linear(longest, settings.rank, bias=False)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.coarse = nn.ModuleList(
            MultiHeadAttention(dim, num_heads=settings.num_heads, dropout=settings.dropout) for _ in self.scales
        )
        self.coarse_norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.scales)
        self.fusion = nn.Linear(longest, longest)
        self.coarse_fusions = nn.ParameterList(
            nn.Parameter(torch.empty(longest, -(-longest // scale)).normal_(std=0.02)) for scale in self.scales
        )

    @torch.no_grad()
    def start_fusion(self) -> None:
        """Fusion starts near the identity of the fine scale, from where all places learn alike."""
        self.fusion.weight += torch.eye(len(self.fusion.weight))

    def forward(self, x_BSD: Tensor, is_entry_BS: Tensor) -> Tensor:
        length = x_BSD.shape[1]
        fine_BSD = self._fine(x_BSD, is_entry_BS)
        weight, bias = self.fusion.weight[:length, :length], self.fusion.bias[:length]
        fused_BDS = F.linear(fine_BSD.transpose(1, 2), weight, bias)
        for scale, fusion, attention, norm in zip(
            self.scales, self.coarse_fusions, self.coarse, self.coarse_norms, strict=True
        ):
            mean_BPD, is_entry_BP = _means(x_BSD, is_entry_BS, scale)
            bias_BPP = masked_bias(is_entry_BP[:, None].expand(-1, mean_BPD.shape[1], -1), x_BSD.dtype)
            mixed_BPD = dropout(attention(mean_BPD, mean_BPD, bias_BPP), self.dropout, training=self.training)
            coarse_BPD = norm(mean_BPD + mixed_BPD) * is_entry_BP[..., None]
            fused_BDS = fused_BDS + F.linear(coarse_BPD.transpose(1, 2), fusion[:length, : mean_BPD.shape[1]])
        return fused_BDS.transpose(1, 2)

    def _fine(self, x_BSD: Tensor, is_entry_BS: Tensor) -> Tensor:
        """Low-rank attention."""
        batch, length, dim = x_BSD.shape
        head = dim // self.num_heads
        key_BSD, value_BSD = (self.key_value(x_BSD) * is_entry_BS[..., None]).chunk(2, dim=-1)
        key_BCD = torch.matmul(self.key_sums.weight[:, :length], key_BSD)
        value_BCD = torch.matmul(self.value_sums.weight[:, :length], value_BSD)
        query_BHSX, key_BHCX, value_BHCX = (
            part.view(batch, -1, self.num_heads, head).transpose(1, 2)
            for part in (self.query(x_BSD) * head**-0.5, key_BCD, value_BCD)
        )
        weight_BHSC = dropout((query_BHSX @ key_BHCX.transpose(2, 3)).softmax(-1), self.dropout, training=self.training)
        mixed_BSD = self.out((weight_BHSC @ value_BHCX).transpose(1, 2).reshape(batch, length, dim))
        x_BSD = self.norm(x_BSD + dropout(mixed_BSD, self.dropout, training=self.training))
        return x_BSD * is_entry_BS[..., None]


def _means(x_BSD: Tensor, is_entry_BS: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Means of each `scale` entries that follow one another, and which of them are of any entry: [B, P, D], [B, P]."""
    room = -x_BSD.shape[1] % scale
    batch, _, dim = x_BSD.shape
    total_BPD = F.pad(x_BSD * is_entry_BS[..., None], (0, 0, 0, room)).view(batch, -1, scale, dim).sum(dim=2)
    count_BP = F.pad(is_entry_BS, (0, room)).view(batch, -1, scale).sum(dim=2)
    return total_BPD / count_BP.clamp(min=1)[..., None], count_BP > 0
