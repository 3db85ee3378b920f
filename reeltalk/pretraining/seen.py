"""The items of a batch as negatives of each other: each counts once, and among those that existed at a target's time.

Shapes: R rows, L positions, T targets, U distinct items of the batch, X items made up, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.losses import full_softmax, unit
from reeltalk.models.cosine_transformer import CosineTransformer
from reeltalk.objectives import at_targets


@dataclass(frozen=True)
class Seen:
    """The items of a batch, in order of creation, and what the model makes of them and of the histories."""

    item_U: Tensor
    vector_UD: Tensor
    x_RLD: Tensor
    preference_RLD: Tensor

    @classmethod
    def of(cls, recommender: CosineTransformer, batch: Batch, targets: ItemTargets) -> Seen:
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
        first_T, target_T, existing_T = (
            torch.searchsorted(self.item_U, ids_T.contiguous(), right=is_behind)
            for ids_T, is_behind in ((targets.first_T, True), (targets.item_T, False), (targets.existing_T, True))
        )
        vector_XD = self.vector_UD
        if made_up_XD is not None:
            first_T = torch.zeros_like(first_T)
            target_T, existing_T = target_T + len(made_up_XD), existing_T + len(made_up_XD)
            vector_XD = torch.cat([made_up_XD, vector_XD])
        preference_TD = at_targets(self.preference_RLD, targets)
        loss = full_softmax(preference_TD, unit(vector_XD), target_T, first_T=first_T, existing_T=existing_T)
        return loss, len(preference_TD)
