"""GRU: a recurrent network over the records of comments; its last state is the preference.

Paper: LSVCR's baseline "GRU" (arXiv 2403.13574, section 5.1.2). Cell: Cho et al., Learning Phrase Representations using
    RNN Encoder-Decoder (2014), arXiv 1406.1078, eq 5 to 8. The last state as user vector: An et al., LSTUR (ACL 2019),
    section 3.2; its long-term vector starts the recurrence, as in LSTUR-ini.
Differs from the paper: the long-term vector is one for all, not one a user: no model here knows users by an id, so that
    people unseen in training can be served. torch's unit resets U h instead of h: tanh(W x + r * (U h)).
Checked against: a slow float64 loop (tests/test_comment_models.py).

Shapes: R rows, L positions, D width, E text width, U texts, T targets, S histories, P steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltalk.data.batch import ALIGN, PackedHistory
from reeltalk.models.comments import CommentRecommender, CommentSettings
from reeltalk.models.recommender import Items


class GRUSettings(CommentSettings):
    """Sizes of GRU."""


class GRU(CommentRecommender):
    """Before the first record the state is a learned one."""

    def __init__(self, settings: GRUSettings, items: Items, *, history_length: int) -> None:
        super().__init__(settings, items)
        self.start_D = nn.Parameter(torch.zeros(settings.dim))
        self.cell = nn.GRU(settings.dim, settings.dim, batch_first=True)

    def preferences(self, records: PackedHistory, x_RLD: Tensor, position_T: Tensor, title_TE: Tensor) -> Tensor:
        cell_RL, num_histories, num_steps = untangled(records)
        is_event_RL = (records.position_RL >= 0) & (records.segment_RL > 0)
        x_XD = self.dropped(x_RLD[is_event_RL]).to(self.start_D.dtype)
        x_SPD = x_XD.new_zeros(num_histories * num_steps, x_XD.shape[1]).index_copy(0, cell_RL[is_event_RL], x_XD)
        start_1SD = self.start_D.expand(1, num_histories, -1).contiguous()
        state_SPD, _ = self.cell(x_SPD.view(num_histories, num_steps, -1), start_1SD)
        step_T, cell_T = (grid.flatten()[position_T] for grid in (records.position_RL, cell_RL))
        state_TD = F.embedding(cell_T.clamp(min=0), state_SPD.flatten(0, 1))
        return torch.where(step_T[:, None] < 0, self.start_D.to(state_TD.dtype), state_TD)


def untangled(history: PackedHistory) -> tuple[Tensor, int, int]:
    """A grid with a row for each packed history, one event a step: each entry's flat place [R, L], the grid's sizes.

    Start entries have none. Sizes are rounded up, so that few shapes occur.
    """
    is_start_RL = history.is_start_RL
    history_RL = is_start_RL.flatten().cumsum(0).view(is_start_RL.shape) - 1
    num_histories = -(-int(is_start_RL.sum()) // ALIGN) * ALIGN
    num_steps = (max(0, int(history.position_RL.max())) // ALIGN + 1) * ALIGN
    return history_RL * num_steps + history.position_RL, num_histories, num_steps
