"""What a model is pre-trained for, before it is fine-tuned: one function and one line in `PRETRAINING` a model.

A function takes recommender, batch, item targets and its own settings, and gives loss terms as (sum, count), weights
included: what is minimised is the sum of their means.

Shapes: R rows, L positions, T targets, U distinct items of the batch, B histories, D width, M codes of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reeltalk.data.batch import Batch, ItemTargets, PackedHistory
from reeltalk.errors import ConfigError, nearest
from reeltalk.losses import full_softmax, info_nce, unit
from reeltalk.models.cosine_transformer import CosineTransformer
from reeltalk.models.unisrec import UniSRec
from reeltalk.models.vqrec import VQRec
from reeltalk.objectives import Terms, at_targets


class UniSRecPretraining(BaseModel):
    """Defaults are its authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_drop: float = Field(0.2, ge=0, lt=1, description="share of a history's entries that its other view lacks")
    sequence_weight: float = Field(1e-3, ge=0, description="lambda: of sequence-sequence contrast")


class VQRecPretraining(BaseModel):
    """Defaults are its authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    redrawn_codes: float = Field(0.75, ge=0, le=1, description="rho: share of its codes that a made-up item has not")


@dataclass(frozen=True)
class Pretraining:
    """What the step must know of a model's pre-training.

    sizes: settings of the model that fine-tuning must have as they were. fixed: settings that pre-training needs so.
    of_text_alone: the weights know no item ids, so they start models of other datasets too.
    """

    settings: type[BaseModel]
    objective: Callable[..., Terms]
    sizes: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    of_text_alone: bool = False


def unisrec_objective(recommender: UniSRec, batch: Batch, targets: ItemTargets, settings: UniSRecPretraining) -> Terms:
    """Sequence-item and sequence-sequence contrast (arXiv 2206.05941, section 3.3).

    Differs from the paper: at every position, not a history's last alone, where the negatives are the distinct items of
    the batch (of this process) that existed then. The other view of a history lacks entries; words are not dropped.
    """
    seen = _Seen.of(recommender, batch, targets)
    terms = {"item": seen.item_contrast(targets)}
    if settings.sequence_weight:
        total, count = _sequence_contrast(recommender, batch.items, targets, seen, settings.item_drop)
        terms["sequence"] = (settings.sequence_weight * total, count)
    return terms


def vqrec_objective(recommender: VQRec, batch: Batch, targets: ItemTargets, settings: VQRecPretraining) -> Terms:
    """Contrast with items of the batch and with made-up ones (arXiv 2210.12316, section 3.3).

    A made-up item has some of an item's codes, the rest drawn anew. Differs from the paper: as `unisrec_objective`; a
    target competes with what was made of all items of the batch, not of itself alone. One dataset, so no mixed domains.
    """
    seen = _Seen.of(recommender, batch, targets)
    made_up_UM = redrawn(recommender.code_NM[seen.item_U], recommender.num_codes, settings.redrawn_codes)
    return {"item": seen.item_contrast(targets, recommender.code_embeddings(made_up_UM))}


PRETRAINING: dict[str, Pretraining] = {
    "unisrec": Pretraining(
        UniSRecPretraining,
        unisrec_objective,
        sizes=("dim", "num_layers", "num_heads", "inner_dim", "num_experts"),
        fixed={"use_item_ids": False, "train_encoder": True},
        of_text_alone=True,
    ),
    "vqrec": Pretraining(
        VQRecPretraining,
        vqrec_objective,
        sizes=("dim", "num_layers", "num_heads", "inner_dim", "num_codebooks", "num_codes"),
    ),
}


def pretraining_of(name: str) -> Pretraining:
    """The pre-training of a model; raises ConfigError where it has none."""
    if name not in PRETRAINING:
        raise ConfigError(f"model {name!r} has no pre-training;{nearest(name, PRETRAINING)}")
    return PRETRAINING[name]


@dataclass(frozen=True)
class _Seen:
    """The items of a batch, in order of creation, and what the model makes of them and of the histories."""

    item_U: Tensor
    vector_UD: Tensor
    x_RLD: Tensor
    preference_RLD: Tensor

    @classmethod
    def of(cls, recommender: CosineTransformer, batch: Batch, targets: ItemTargets) -> _Seen:
        item_RL = batch.items.item_RL
        item_U = torch.cat([item_RL.flatten(), targets.item_T]).unique()  # type: ignore[no-untyped-call]
        item_U = item_U[item_U > 0]
        vector_UD = recommender.embeddings(item_U)
        x_RLD = F.embedding(torch.searchsorted(item_U, item_RL), vector_UD)  # padding has some item's
        return cls(item_U, vector_UD, x_RLD, recommender.preferences(batch.items, x_RLD))

    def item_contrast(self, targets: ItemTargets, made_up_XD: Tensor | None = None) -> tuple[Tensor, int]:
        """Each target among the batch's items that existed at its time and were not outdated.

        With what is made up it competes too, and then with outdated items: competitors are a range of rows.
        """
        is_fresh_T = targets.item_T > targets.first_T
        first_T, target_T, existing_T = (
            torch.searchsorted(self.item_U, ids_T.contiguous(), right=is_behind)
            for ids_T, is_behind in ((targets.first_T, True), (targets.item_T, False), (targets.existing_T, True))
        )
        vector_XD = self.vector_UD
        if made_up_XD is not None:
            first_T = torch.zeros_like(first_T)
            target_T, existing_T = target_T + len(made_up_XD), existing_T + len(made_up_XD)
            vector_XD = torch.cat([made_up_XD, vector_XD])
        preference_TD = at_targets(self.preference_RLD, targets)[is_fresh_T]
        loss = full_softmax(
            preference_TD,
            unit(vector_XD),
            target_T[is_fresh_T],
            first_T=first_T[is_fresh_T],
            existing_T=existing_T[is_fresh_T],
        )
        return loss, len(preference_TD)


def _sequence_contrast(
    recommender: CosineTransformer, history: PackedHistory, targets: ItemTargets, seen: _Seen, item_drop: float
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


def is_end(history: PackedHistory) -> Tensor:
    """Which entries are the last of their history: bool [R, L]."""
    segment_RL = history.segment_RL
    return (segment_RL > 0) & (segment_RL != F.pad(segment_RL[:, 1:], (0, 1)))


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


def redrawn(code_UM: Tensor, num_codes: int, share: float) -> Tensor:
    """The codes of some items with a random share drawn anew, each from its own codebook."""
    first_M = num_codes * torch.arange(code_UM.shape[1], dtype=code_UM.dtype, device=code_UM.device)
    drawn_UM = first_M + torch.randint_like(code_UM, num_codes)
    return torch.where(torch.rand(code_UM.shape, device=code_UM.device) < share, drawn_UM, code_UM)
