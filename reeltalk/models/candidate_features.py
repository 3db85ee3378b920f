"""What is known of a comment besides its words, as an option of every comment system: its age and the answers so far.

Not in the LSVCR paper. Where people answer what is fresh (forums, feeds), words alone cannot beat newest-first order.

Shapes: T targets, C candidates, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_FEATURES = 2
HIDDEN = 32


class CandidateFeatures(nn.Module):
    """A small network from features to a number that is added to the score.

    Features come from `reeltalk.data.features.CommentFeatures`: log1p of the age in seconds, log1p of the answers so
    far. They are read as they are and relative to the other candidates of the same target: how old the freshest one is,
    what share of the candidates is fresher, how many answers the least answered one has, and what share has fewer.
    """

    scale_F: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3 * NUM_FEATURES, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1, bias=False))
        self.linear = nn.Linear(3 * NUM_FEATURES, 1, bias=False)
        self.register_buffer("scale_F", torch.tensor([10.0, 2.0]))

    def forward(self, feature_TCF: Tensor, is_candidate_TC: Tensor) -> Tensor:
        """A number for each candidate: [T, C]; what stands at padding means nothing."""
        scaled_TCF = feature_TCF / self.scale_F
        hidden_TC1 = ~is_candidate_TC[..., None]
        least_T1F = scaled_TCF.masked_fill(hidden_TC1, torch.inf).amin(1, keepdim=True).clamp(max=1e4)
        scaled_TFC = scaled_TCF.transpose(1, 2).contiguous()
        rising_TFC = scaled_TFC.masked_fill(hidden_TC1.transpose(1, 2), torch.inf).sort(dim=-1).values
        num_less_TCF = torch.searchsorted(rising_TFC, scaled_TFC).transpose(1, 2)
        share_TCF = num_less_TCF / is_candidate_TC.sum(1).clamp(min=1)[:, None, None]
        read = torch.cat([scaled_TCF, scaled_TCF - least_T1F, share_TCF], dim=-1)
        score_TC: Tensor = (self.network(read) + self.linear(read))[..., 0]
        return score_TC
