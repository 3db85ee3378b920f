"""Caser: convolutions over the last few items, taken as an image of positions and features.

Paper: Tang and Wang, Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding (WSDM 2018),
    arXiv 1809.07426. The image E of the last items: `Caser._windows`; horizontal filters (eq 3 to 5): `_horizontal`;
    vertical filters (eq 6 to 8): `_vertical`; the layer z (eq 9) and the output layer W' z + b' (eq 10):
    `item_preferences`, `item_vectors`.
Differs from the paper: no user embedding P_u in eq 10, as users are open-ended here: one who was never trained on has a
    preference like any other. Horizontal filters have biases, as in public implementations. Exact softmax over all
    items for the next one, in place of binary cross-entropy with sampled negatives for the next few.
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
    """Sizes of Caser; defaults as in RecBole."""

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
        back_W = torch.arange(self.settings.window - 1, -1, -1, device=history.item_RL.device)
        x_RLD = self.item_embedding(history.item_RL)
        padded_RLD = F.pad(x_RLD, (0, 0, len(back_W) - 1, 0))
        is_there_RLW = history.position_RL[..., None] >= back_W
        return padded_RLD.unfold(1, len(back_W), 1).transpose(2, 3) * is_there_RLW[..., None]

    def _horizontal(self, window_RLWD: Tensor) -> Tensor:
        """Eq 3 to 5: every filter at every place of the window, and the best place of each: [R, L, W * F]."""
        best = []
        for height, filters in enumerate(self.horizontal, start=1):
            place_RLPX = window_RLWD.unfold(2, height, 1).transpose(3, 4).flatten(3)
            best.append(filters(place_RLPX).amax(dim=2).relu())  # the best of what ReLU leaves
        return torch.cat(best, dim=-1)

    def _vertical(self, window_RLWD: Tensor) -> Tensor:
        """Eq 6 to 8: weighted sums of the window's items: [R, L, D * F]."""
        sum_RLDF: Tensor = self.vertical(window_RLWD.transpose(2, 3))
        return sum_RLDF.flatten(2)
