"""GRU4Rec: a recurrent network over item ids.

Paper: Hidasi et al., Session-based Recommendations with Recurrent Neural Networks (ICLR 2016), arXiv 1511.06939.
    Section 3, the gated recurrent unit (eq 2 to 5): `GRU4Rec.gru`; section 3.1, input and output: `item_preferences`,
    `item_vectors`.
Differs from the paper: as commonly trained today (RecBole's defaults), with item embeddings in place of one-hot input,
    which also are the output layer after a linear map to their width, and dropout on them; exact softmax over all items
    that existed in place of TOP1 or BPR against the batch; whole histories in place of sessions in parallel, each from
    a zero state. torch's unit resets U h instead of h: tanh(W x + r * (U h)).
Checked against: a slow loop over one history in float64 (tests/test_item_models.py).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch
from reeltalk.models.attention import dropout
from reeltalk.models.recommender import Items, Recommender, initialise
from reeltalk.models.recurrence import gru_states
from reeltalk.models.steps import Steps


class GRU4RecSettings(BaseModel):
    """Sizes of GRU4Rec; defaults as in RecBole."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    hidden_dim: int = Field(128, gt=0)
    num_layers: int = Field(1, gt=0)
    dropout: float = Field(0.3, ge=0, lt=1, description="on the items that go in")


class GRU4Rec(Recommender):
    """Shapes: R rows, L positions, D width, N items; P places, step after step."""

    has_start = False

    def __init__(self, settings: GRU4RecSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.dropout = settings.dropout
        self.gru = nn.GRU(settings.dim, settings.hidden_dim, settings.num_layers, bias=False)
        self.out = nn.Linear(settings.hidden_dim, settings.dim)
        initialise(self)
        self.out.reset_parameters()

    def item_vectors(self) -> Tensor:
        return self.item_embedding.weight

    def item_preferences(self, batch: Batch) -> Tensor:
        steps = Steps.of(batch.items.segment_RL)
        x_PD = dropout(self.item_embedding(steps.take(batch.items.item_RL)), self.dropout, training=self.training)
        preference_PD: Tensor = self.out(gru_states(self.gru, x_PD, steps.counts))
        return steps.rows(preference_PD)
