"""Cloze training: hidden entries are predicted from what stands on both sides of them.

A history's start entry stands at its end here, hidden: it is the entry yet to come, and at ranking time the only hidden
one. So the models read the last target of a window, which is no entry of its grid, from there, and every other
target, while training, from its own entry.

Shapes: R rows, L positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reeltalk.data.batch import PackedHistory


def start_columns(history: PackedHistory) -> Tensor:
    """The column of the start entry of each position's history: [R, L], meaningless at padding."""
    column_L = torch.arange(history.position_RL.shape[1], device=history.position_RL.device)
    return torch.where(history.is_start_RL, column_L, 0).cummax(1).values


def next_columns(history: PackedHistory) -> Tensor:
    """The column of the entry that comes after each: [R, L]; after the last one it is the start entry, yet to come."""
    segment_RL = history.segment_RL
    column_L = torch.arange(segment_RL.shape[1], device=segment_RL.device)
    is_followed_RL = torch.zeros_like(segment_RL, dtype=torch.bool)
    is_followed_RL[:, :-1] = segment_RL[:, 1:] == segment_RL[:, :-1]
    return torch.where(is_followed_RL, (column_L + 1).clamp(max=len(column_L) - 1), start_columns(history))


def places(history: PackedHistory) -> Tensor:
    """The place of each entry in its sequence, 0.., the start entry after the last event: [R, L]."""
    count_RL = torch.zeros_like(history.position_RL)
    count_RL = count_RL.scatter_reduce(1, start_columns(history), history.position_RL + 1, "amax")
    return torch.where(history.is_start_RL, count_RL, history.position_RL.clamp(min=0))


def is_end(history: PackedHistory) -> Tensor:
    """Which entries are the last of their history: bool [R, L]."""
    segment_RL = history.segment_RL
    return (segment_RL > 0) & (segment_RL != F.pad(segment_RL[:, 1:], (0, 1)))


def drawn_hidden(history: PackedHistory, *, share: float, end_only: float) -> Tensor:
    """The entries that a training step hides, from torch's global generator: bool [R, L].

    Of the events a share, each on its own; in some of the histories, the share `end_only` of them, none. The entries
    yet to come always.
    """
    device = history.segment_RL.device
    draw_2RL = torch.rand(2, *history.segment_RL.shape, device=device)
    is_kept_whole_RL = draw_2RL[1].gather(1, start_columns(history)) < end_only
    is_event_RL = history.position_RL >= 0
    return history.is_start_RL | (is_event_RL & (draw_2RL[0] < share) & ~is_kept_whole_RL)


def is_next_hidden(history: PackedHistory, is_hidden_RL: Tensor) -> Tensor:
    """The entries whose next one is hidden, and so predicted: bool [R, L]."""
    return is_hidden_RL.gather(1, next_columns(history)) & (history.segment_RL > 0)
