"""What UniSRec is pre-trained for: to tell the next item, and a history from others when it lacks entries.

Paper: Hou et al. (KDD 2022), arXiv 2206.05941, section 3.3: sequence-item contrast `Seen.item_contrast`,
    sequence-sequence contrast `_sequence_contrast`.
Differs from the paper: at every position, not a history's last alone, where the negatives are the distinct items of the
    batch (of this process) that existed then. The other view of a history lacks entries; words are not dropped.
    One dataset, not several.
Checked against: loops in float64 (tests/test_pretraining.py).

Shapes: R rows, L positions, B histories, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reeltalk.data.batch import Batch, ItemTargets, PackedHistory
from reeltalk.losses import info_nce
from reeltalk.models.cloze import is_end
from reeltalk.models.cosine_transformer import CosineTransformer
from reeltalk.models.unisrec import UniSRec
from reeltalk.objectives import Terms
from reeltalk.pretraining.seen import Seen


class UniSRecPretraining(BaseModel):
    """Defaults are its authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_drop: float = Field(0.2, ge=0, lt=1, description="share of a history's entries that its other view lacks")
    sequence_weight: float = Field(1e-3, ge=0, description="lambda: of sequence-sequence contrast")


def unisrec_objective(recommender: UniSRec, batch: Batch, targets: ItemTargets, settings: UniSRecPretraining) -> Terms:
    """Terms item and sequence, the latter with its weight."""
    seen = Seen.of(recommender, batch, targets)
    terms = {"item": seen.item_contrast(targets)}
    if settings.sequence_weight:
        total, count = _sequence_contrast(recommender, batch.items, targets, seen, settings.item_drop)
        terms["sequence"] = (settings.sequence_weight * total, count)
    return terms


def _sequence_contrast(
    recommender: CosineTransformer, history: PackedHistory, targets: ItemTargets, seen: Seen, item_drop: float
) -> tuple[Tensor, int]:
    """The preference at the end of each history against the one where entries are missing; others are negatives.

    But for those with the same next item, which is what both views are to find.
    """
    other, last_RL = without_some(history, item_drop)
    other_RLD = recommender.preferences(other, seen.x_RLD)
    is_last_T = (targets.position_T >= 0) & is_end(history).flatten()[targets.position_T.clamp(min=0)]
    position_B, item_B = targets.position_T[is_last_T], targets.item_T[is_last_T]
    width = history.item_RL.shape[1]
    kept_B = position_B // width * width + last_RL.flatten()[position_B]
    loss = info_nce(
        F.embedding(position_B, seen.preference_RLD.flatten(0, 1)),
        F.embedding(kept_B, other_RLD.flatten(0, 1)),
        torch.arange(len(position_B), device=position_B.device),
        item_B[:, None] == item_B,
        temperature=recommender.temperature,
    )
    return loss, len(position_B)


def without_some(history: PackedHistory, share: float) -> tuple[PackedHistory, Tensor]:
    """The history without a random share of its entries, and the column of the last that is left up to each entry.

    What is left moves up, as if the others had not been; the first entry of a history always stays. Entries that are
    left out stand where they stood as padding.
    """
    column_RL = torch.arange(history.item_RL.shape[1], device=history.item_RL.device).expand_as(history.item_RL)
    is_left_RL = (torch.rand(column_RL.shape, device=column_RL.device) >= share) | (history.position_RL <= 0)
    gone_RL = (~is_left_RL).cumsum(1)
    first_RL = column_RL - history.position_RL.clamp(min=0)
    position_RL = history.position_RL - (gone_RL - gone_RL.gather(1, first_RL))
    last_RL = torch.where(is_left_RL, column_RL, 0).cummax(1).values
    segment_RL = torch.where(is_left_RL, history.segment_RL, 0)
    return replace(history, segment_RL=segment_RL, position_RL=position_RL), last_RL
