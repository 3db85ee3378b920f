"""What VQ-Rec is pre-trained for: to tell the next item from others, and from made-up ones.

Paper: Hou et al. (WWW 2023), arXiv 2210.12316, section 3.3. A made-up (semi-synthetic) item has some of an item's
    codes, the rest drawn anew: `redrawn`.
Differs from the paper: at every position, as UniSRec's; a target competes with what was made of all items of the batch,
    not of itself alone. One dataset, so no mixed domains.
Checked against: loops in float64 (tests/test_pretraining.py).

Shapes: U distinct items of the batch, M codes of an item.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.models.vqrec import VQRec
from reeltalk.objectives import Terms
from reeltalk.pretraining.seen import Seen


class VQRecPretraining(BaseModel):
    """Defaults are its authors'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    redrawn_codes: float = Field(0.75, ge=0, le=1, description="rho: share of its codes that a made-up item has not")


def vqrec_objective(recommender: VQRec, batch: Batch, targets: ItemTargets, settings: VQRecPretraining) -> Terms:
    """One term: the next item among those of the batch and made-up ones."""
    seen = Seen.of(recommender, batch, targets)
    made_up_UM = redrawn(recommender.code_NM[seen.item_U], recommender.num_codes, settings.redrawn_codes)
    return {"item": seen.item_contrast(targets, recommender.code_embeddings(made_up_UM))}


def redrawn(code_UM: Tensor, num_codes: int, share: float) -> Tensor:
    """The codes of some items with a random share drawn anew, each from its own codebook."""
    first_M = num_codes * torch.arange(code_UM.shape[1], dtype=code_UM.dtype, device=code_UM.device)
    drawn_UM = first_M + torch.randint_like(code_UM, num_codes)
    return torch.where(torch.rand(code_UM.shape, device=code_UM.device) < share, drawn_UM, code_UM)
