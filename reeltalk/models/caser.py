"""Caser: convolutions over the last few items, taken as an image of positions and features.

Paper: Tang and Wang, Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding (WSDM 2018),
    arXiv 1809.07426. The image E of the last items (eq 2): `Caser._windows`; horizontal filters (eq 3 to 5):
    `_horizontal`; vertical filters (eq 6 to 8): `_vertical`; the layer z (eq 9) and the output layer W' z + b'
    (eq 10): `item_preferences`, `item_vectors`.
Differs from the paper: no user embedding P_u in eq 10, as users are open-ended here: one who was never trained on has a
    preference like any other. Horizontal filters have biases, as in public implementations; vertical ones have none.
    Exact softmax over all items that existed, for the next one, in place of binary cross-entropy with sampled negatives
    for the next few.
Checked against: a slow loop over one history in float64 (tests/test_item_models.py).

Shapes: R rows, L positions, W items of a window, D width, F filters, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from reeltalk.data.batch import Batch, PackedHistory
from reeltalk.models.attention import dropout
from reeltalk.models.recommender import Items, Recommender, initialise


class CaserSettings(BaseModel):
    """Sizes of Caser; defaults as in RecBole 1.0, which sees the whole history, and the window of public code."""

    model_config = ConfigDict(extra="forbid")

    dim: int = Field(64, gt=0)
    window: int = Field(5, gt=0, description="how many of the last items are seen")
    num_horizontal: int = Field(16, gt=0, description="filters of each height from 1 to the window's")
    num_vertical: int = Field(8, gt=0)
    dropout: float = Field(0.4, ge=0, lt=1)


class Caser(Recommender):
    """Items as input and as targets have embeddings of their own, as in the paper."""

    has_start = False

    def __init__(self, settings: CaserSettings, items: Items, *, history_length: int) -> None:
        super().__init__()
        self.settings = settings
        window, filters = settings.window, settings.num_horizontal
        self.item_embedding = nn.Embedding(len(items.known_N), settings.dim)
        self.horizontal = nn.ModuleList(nn.Linear(height * settings.dim, filters) for height in range(1, window + 1))
        self.vertical = nn.Linear(window, settings.num_vertical, bias=False)
        self.merge = nn.Linear(window * filters + settings.num_vertical * settings.dim, settings.dim)
        self.target_embedding = nn.Embedding(len(items.known_N), settings.dim)
        initialise(self)
        for part in (*self.horizontal, self.vertical):
            assert isinstance(part, nn.Linear)
            part.reset_parameters()  # scaled by what goes in, as in public code: far smaller, it learns late
        nn.init.xavier_normal_(self.merge.weight)
        self.target_bias = nn.Parameter(torch.zeros(len(items.known_N)))

    def item_vectors(self) -> Tensor:
        """Eq 10: W' and b', which a 1 in the preference meets."""
        return torch.cat([self.target_embedding.weight, self.target_bias[:, None]], dim=1)

    def item_preferences(self, batch: Batch) -> Tensor:
        window_RLWD = self._windows(batch.items)
        x_RLX = torch.cat([self._horizontal(window_RLWD), self._vertical(window_RLWD)], dim=-1)
        z_RLD = self.merge(dropout(x_RLX, self.settings.dropout, training=self.training)).relu()
        return F.pad(z_RLD, (0, 1), value=1.0)

    def _windows(self, history: PackedHistory) -> Tensor:
        """The last items up to each entry, oldest first, zeros where there are fewer: [R, L, W, D]."""
        window = self.settings.window
        back_W = torch.arange(window - 1, -1, -1, device=history.item_RL.device)
        is_there_RLW = history.position_RL[..., None] >= back_W
        item_RLW = F.pad(history.item_RL, (window - 1, 0)).unfold(1, window, 1)
        item_RLW = torch.where(is_there_RLW, item_RLW, 0)  # nothing of what stands beside a history
        x_RLWD: Tensor = self.item_embedding(item_RLW)
        return x_RLWD * is_there_RLW[..., None]

    def _horizontal(self, window_RLWD: Tensor) -> Tensor:
        """Eq 3 to 5: every filter at every place of the window, and the best place of each: [R, L, W * F].

        One product for all: a filter at a place is a row that has zeros for the items beside it.
        """
        window, dim = window_RLWD.shape[2:]
        rows: list[Tensor] = []
        biases: list[Tensor] = []
        places = []
        for filters in self.horizontal:
            assert isinstance(filters, nn.Linear)
            height = filters.in_features // dim
            places.append(window - height + 1)
            for place in range(places[-1]):
                rows.append(F.pad(filters.weight, (place * dim, (window - height - place) * dim)))
                biases.append(filters.bias)
        product_RLX = F.linear(window_RLWD.flatten(2), torch.cat(rows), torch.cat(biases))
        parts = torch.split(product_RLX, [count * self.settings.num_horizontal for count in places], dim=-1)
        best = [part.view(*part.shape[:2], count, -1).amax(dim=2) for part, count in zip(parts, places, strict=True)]
        return torch.cat(best, dim=-1).relu()  # the best of what is left by ReLU is ReLU of the best

    def _vertical(self, window_RLWD: Tensor) -> Tensor:
        """Eq 6 to 8: weighted sums of the window's items: [R, L, F * D]."""
        return torch.matmul(self.vertical.weight, window_RLWD).flatten(2)
