"""MBHT's second view: a hypergraph over the items of a sequence, and what its neighbours say of a hidden entry.

Shapes: B users, S positions of a sequence, K channels, D width, Y hyperedges.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reeltalk.losses import unit

LEAST_WEIGHT = 0.01  # of an entry in the hyperedge of an item that is not similar at all, as in the authors' code


class ItemHypergraph(nn.Module):
    """Hyperedges join entries by the similarity of their items, and the entries of one item; two convolutions.

    Paper: MBHT (see `reeltalk.models.mbht`).
    """

    def __init__(self, dim: int, *, num_channels: int, num_similar: int, neighbours: tuple[int, int]) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim)
        self.channels = nn.Parameter(1 + torch.empty(num_channels, dim).normal_(std=0.02))
        self.num_similar = num_similar
        self.neighbours = neighbours

    def forward(self, id_BSD: Tensor, is_same_item_BSS: Tensor, is_seen_BS: Tensor) -> Tensor:
        """Of each entry that is seen, what its hyperedges say; of others, the mean over those seen around it."""
        x_BSD = id_BSD * self.gate(id_BSD).sigmoid() * is_seen_BS[..., None]
        incidence_BSY = self._incidence(x_BSD, is_same_item_BSS, is_seen_BS)
        once_BSD = convolved(x_BSD, incidence_BSY)
        x_BSD = (once_BSD + convolved(once_BSD, incidence_BSY)) / 2
        around_BSS = (self._around(x_BSD.shape[1], x_BSD.device) & is_seen_BS[:, None]).to(x_BSD.dtype)
        return torch.where(is_seen_BS[..., None], x_BSD, around_BSS @ x_BSD / _degree(around_BSS, 2))

    def _incidence(self, x_BSD: Tensor, is_same_item_BSS: Tensor, is_seen_BS: Tensor) -> Tensor:
        """How much each entry belongs to each hyperedge: [B, S, Y].

        A hyperedge stands where its item is seen first: S of similar items, then S of items seen more than once.
        """
        is_same_BSS = is_same_item_BSS & is_seen_BS[:, None] & is_seen_BS[..., None]
        is_first_BS = is_seen_BS & ~is_same_BSS.tril(-1).any(dim=2)
        y_BKSD = unit(x_BSD[:, None] * self.channels[:, None])
        similarity_BSS = (y_BKSD @ y_BKSD.transpose(2, 3)).mean(dim=1)
        is_edge_BSS = is_first_BS[:, None] & is_seen_BS[..., None]
        most, edge = similarity_BSS.masked_fill(~is_edge_BSS, -2.0).topk(min(self.num_similar, x_BSD.shape[1]), dim=2)
        similar_BSS = torch.zeros_like(similarity_BSS).scatter(2, edge, most.clamp(min=LEAST_WEIGHT)) * is_edge_BSS
        is_repeated_BSS = is_same_BSS & is_first_BS[:, None] & (is_same_BSS.sum(dim=2, keepdim=True) > 1)
        return torch.cat([similar_BSS, is_repeated_BSS.to(similar_BSS.dtype)], dim=2)

    def _around(self, length: int, device: torch.device) -> Tensor:
        """Which entries are near enough to speak for a hidden one: bool [S, S]."""
        before, after = self.neighbours
        offset_SS = torch.ones(length, length, dtype=torch.bool, device=device)
        return offset_SS.triu(-before) & offset_SS.tril(after)


def convolved(x_BSD: Tensor, incidence_BSY: Tensor) -> Tensor:
    """From entries to hyperedges and back, each time a weighted mean: D_v^-1 M D_e^-1 M^T x."""
    edge_BYD = incidence_BSY.transpose(1, 2) @ x_BSD / _degree(incidence_BSY, 1).transpose(1, 2)
    return incidence_BSY @ edge_BYD / _degree(incidence_BSY, 2)


def _degree(incidence_BSY: Tensor, dim: int) -> Tensor:
    """The sums over `dim`; 1 where nothing belongs."""
    degree = incidence_BSY.sum(dim=dim, keepdim=True)
    return torch.where(degree > 0, degree, 1.0)
