"""A trained system as a ranker of candidates and of the whole catalogue: what validation and evaluation see of it.

Shapes: B targets, N items, D width.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.data.histories import shared_windows, target_windows
from reeltalk.data.ragged import Ints, Ragged
from reeltalk.evaluation.ranker import Scores
from reeltalk.objectives import comment_scores, target_preferences
from reeltalk.training.system import System

WINDOWS_A_BATCH = 512
PAIRS_AT_ONCE = 1 << 12  # of targets and candidates: 2 MiB of vectors at width 64, which stay in cache


class SystemRanker:
    """Scores in float32 from each target's own window: the last events of either history before it.

    Vectors and preferences are made once, with the weights as they are then: a ranker is for one evaluation.
    """

    def __init__(self, system: System, *, name: str | None = None) -> None:
        self.system = system
        self.name = name or system.settings.name
        system.eval()
        self._item_vectors: Tensor | None = None
        self._preferences = torch.empty(0)  # of the targets asked for so far
        self._num_known = 0
        self._place = np.full(len(system.feed.histories.item), -1)  # of each target among them, -1: not yet
        self._scores = torch.empty(0)

    @property
    def task(self) -> Task:
        return self.system.settings.task

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        """[N + 1, D] float32 on the CPU, made once."""
        if self._item_vectors is None:
            self._item_vectors = self.system.recommender.item_vectors().float().cpu()
        return self._item_vectors

    @torch.inference_mode()
    def preferences(self, targets: pl.DataFrame) -> Tensor:
        """Item task: the preference right before each target, [B, D] float32 on the CPU."""
        rows = targets["target"].to_numpy().astype(np.int64)
        missing = rows[self._place[rows] < 0]
        if len(missing):
            made = self._make_preferences(missing)
            start, stop = self._num_known, self._num_known + len(made)
            if stop > len(self._preferences):  # at least twice the room, so that little is copied
                self._preferences = torch.cat([self._preferences, made.new_empty(stop, made.shape[1])])
            self._preferences[start:stop] = made
            self._place[missing] = np.arange(start, stop)
            self._num_known = stop
        return self._preferences[torch.from_numpy(self._place[rows])]

    def _make_preferences(self, rows: Ints) -> Tensor:
        system = self.system
        histories, length = system.feed.histories, system.settings.data.history_length
        if system.recommender.is_causal:
            windows, place = shared_windows(histories, rows, length=length)
        else:
            windows, place = target_windows(histories, "item", rows, length=length), np.arange(len(rows))
        parts = []
        for start in range(0, len(windows), WINDOWS_A_BATCH):
            batch, wanted = system.feed.item_batch(windows[start : start + WINDOWS_A_BATCH])
            device = self._device()
            parts.append(target_preferences(system.recommender, batch.to(device), wanted.to(device)).float().cpu())
        return torch.cat(parts)[torch.from_numpy(place)]

    @torch.inference_mode()
    def catalogue_scores(self, targets: pl.DataFrame) -> Tensor:
        """[B, N] float32; column j is item_id j + 1. The memory is the next call's too."""
        vectors_ND = self.item_vectors()[1:]
        if len(self._scores) < len(targets):
            self._scores = torch.empty(len(targets), len(vectors_ND))
        return torch.mm(self.preferences(targets), vectors_ND.T, out=self._scores[: len(targets)])

    @torch.inference_mode()
    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        """One score a candidate, in the order of `candidates.values`."""
        if self.task == "item":
            owner = torch.from_numpy(candidates.owners)
            chosen = torch.from_numpy(candidates.values.astype(np.int64))
            return paired_dots(self.preferences(targets), owner, self.item_vectors(), chosen).numpy()
        return self._comment_scores(targets, candidates)

    def _comment_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        system = self.system
        rows, items = (targets[name].to_numpy().astype(np.int64) for name in ("target", "item_id"))
        windows = target_windows(system.feed.histories, "comment", rows, length=system.settings.data.history_length)
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(windows), WINDOWS_A_BATCH):
            stop = min(start + WINDOWS_A_BATCH, len(windows))
            batch, wanted = system.feed.candidate_batch(
                windows[start:stop], items[start:stop], candidates.rows(start, stop)
            )
            device = self._device()
            score_BC, is_candidate_BC = system.read(comment_scores, batch.to(device), wanted.to(device))
            parts.append(score_BC[is_candidate_BC].cpu().numpy())
        return np.concatenate(parts)

    def _device(self) -> torch.device:
        return next(self.system.parameters()).device


def paired_dots(a_BD: Tensor, row_M: Tensor, b_ND: Tensor, column_M: Tensor) -> Tensor:
    """a_BD[row_M] times b_ND[column_M], summed over D: [M]. The memory of a few pairs serves all of them."""
    left, right = (torch.empty(PAIRS_AT_ONCE, each.shape[1]) for each in (a_BD, b_ND))
    dot_M = torch.empty(len(row_M))
    for dot, row, column in zip(*(torch.split(each, PAIRS_AT_ONCE) for each in (dot_M, row_M, column_M)), strict=True):
        a = torch.index_select(a_BD, 0, row, out=left[: len(dot)])
        b = torch.index_select(b_ND, 0, column, out=right[: len(dot)])
        torch.sum(a.mul_(b), dim=1, out=dot)
    return dot_M
