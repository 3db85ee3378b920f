"""BERT4Rec: a transformer over item ids that looks both ways, trained to fill in hidden entries.

Paper: Sun et al., BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer
    (CIKM 2019), arXiv 1904.06690. Section 3.3, 3.4: `_encoded`; eq 7 `_preferences`, `item_vectors`; section 3.6:
    `item_step` (training), `item_preferences` (test: one hidden entry at the end).
Differs from the paper: the hidden entry at the end is in every training step, not only in samples of its own, so each
    step also trains what ranking asks for; in `end_only_share` of the histories nothing else is hidden (the paper's
    samples that hide the last item alone). Hidden entries are redrawn each step, not drawn ten times beforehand. The
    embeddings are normalised, as is the output layer before its product with the items, and the layers after each
    block, as in the authors' code. Items compete that existed at the target's time. No weight decay, warm-up or falling
    rate by default (`train.weight_decay`, `train.warmup_steps`), which that code has.
Checked against: a slow loop over one history in float64 (tests/test_cloze.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.models.attention import Encoder, dropout, masked_bias, same_history_mask
from reeltalk.models.cloze import drawn_hidden, is_next_hidden, next_columns, places
from reeltalk.models.recommender import Items, Recommender, Step, initialise


class BERT4RecSettings(BaseModel):
    """Sizes of BERT4Rec; defaults as in the paper and its authors' settings for MovieLens."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    num_layers: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    inner_dim: int = Field(256, gt=0)
    dropout: float = Field(0.2, ge=0, lt=1)
    hidden_share: float = Field(0.2, ge=0, lt=1, description="of the events, how many a training step hides (rho)")
    end_only_share: float = Field(0.1, ge=0, le=1, description="of the histories, in how many it hides none")


class BERT4Rec(Recommender):
    """Shapes: R rows, L positions, D width, N items."""

    has_start, is_causal = True, False

    def __init__(self, settings: BERT4RecSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.item_bias = nn.Parameter(torch.zeros(len(items.known_N), 1))
        self.hidden_entry = nn.Parameter(torch.empty(settings.dim).normal_(std=0.02))
        self.position_embedding = nn.Embedding(history_length + 1, settings.dim)
        self.input_norm = nn.LayerNorm(settings.dim)
        self.encoder = Encoder(
            settings.dim,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            inner_dim=settings.inner_dim,
            dropout=settings.dropout,
        )
        self.out = nn.Linear(settings.dim, settings.dim)
        self.output_norm = nn.LayerNorm(settings.dim)
        initialise(self)

    def item_vectors(self) -> Tensor:
        """Eq 7: E, and b^O as one more component."""
        return torch.cat([self.item_embedding.weight, self.item_bias], dim=1)

    def item_preferences(self, batch: Batch) -> Tensor:
        return self._preferences(batch.items, batch.items.is_start_RL)[0]

    def item_step(self, batch: Batch, *, regularise: bool) -> Step:
        settings = self.settings
        is_hidden_RL = drawn_hidden(batch.items, share=settings.hidden_share, end_only=settings.end_only_share)
        preference_RLD, is_predicted_RL = self._preferences(batch.items, is_hidden_RL)
        return Step(preference_RLD, self.item_vectors(), is_predicted_RL=is_predicted_RL)

    def _preferences(self, history: PackedHistory, is_hidden_RL: Tensor) -> tuple[Tensor, Tensor]:
        """Eq 7: after each entry whose next one is hidden, what stands there: preferences, which entries these are."""
        is_predicted_RL = is_next_hidden(history, is_hidden_RL)
        x_RLD = self.output_norm(F.gelu(self.out(self._encoded(history, is_hidden_RL))))
        x_RLD = F.pad(x_RLD, (0, 1), value=1.0)  # for b^O
        next_RLD = next_columns(history)[..., None].expand(-1, -1, x_RLD.shape[2])
        return x_RLD.gather(1, next_RLD) * is_predicted_RL[..., None], is_predicted_RL

    def _encoded(self, history: PackedHistory, is_hidden_RL: Tensor) -> Tensor:
        x_RLD = torch.where(is_hidden_RL[..., None], self.hidden_entry, self.item_embedding(history.item_RL))
        x_RLD = self.input_norm(x_RLD + self.position_embedding(places(history)))
        x_RLD = dropout(x_RLD, self.settings.dropout, training=self.training)
        encoded_RLD: Tensor = self.encoder(x_RLD, masked_bias(same_history_mask(history), x_RLD.dtype))
        return encoded_RLD
