"""What a model is pre-trained for, before it is fine-tuned: a file named after its paper, and a line in `PRETRAINING`.

An objective takes recommender, batch, item targets and its own settings, and gives loss terms as (sum, count), weights
included: what is minimised is the sum of their means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from reeltalk.errors import ConfigError, nearest
from reeltalk.models.recommender import Recommender
from reeltalk.objectives import Terms
from reeltalk.pretraining.s3rec import S3RecInPretraining, S3RecPretraining, s3rec_objective
from reeltalk.pretraining.unisrec import UniSRecPretraining, unisrec_objective
from reeltalk.pretraining.vqrec import VQRecPretraining, vqrec_objective


@dataclass(frozen=True)
class Pretraining:
    """What the step must know of a model's pre-training.

    sizes: settings of the model that fine-tuning must have as they were. fixed: settings that pre-training needs so.
    of_text_alone: the weights know no item ids, so they start models of other datasets too. trains: settings that, off,
    leave a part as it was pre-trained, and so need a start.

    around: makes, of the recommender and the text vectors of titles, the model that is trained and validated in its
    place, with parts that fine-tuning is not given; where None, the recommender itself. All need text vectors.
    """

    settings: type[BaseModel]
    objective: Callable[..., Terms]
    sizes: tuple[str, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    of_text_alone: bool = False
    trains: tuple[str, ...] = ()
    around: Callable[..., Recommender] | None = None


_TRANSFORMER = ("dim", "num_layers", "num_heads", "inner_dim")
PRETRAINING: dict[str, Pretraining] = {
    "s3rec": Pretraining(S3RecPretraining, s3rec_objective, sizes=_TRANSFORMER, around=S3RecInPretraining),
    "unisrec": Pretraining(
        UniSRecPretraining,
        unisrec_objective,
        sizes=(*_TRANSFORMER, "num_experts"),
        fixed={"use_item_ids": False, "train_encoder": True},
        of_text_alone=True,
        trains=("train_encoder",),
    ),
    "vqrec": Pretraining(
        VQRecPretraining,
        vqrec_objective,
        sizes=(*_TRANSFORMER, "num_codebooks", "num_codes"),
        fixed={"train_encoder": True},
        trains=("train_encoder",),
    ),
}


def pretraining_of(name: str) -> Pretraining:
    """The pre-training of a model; raises ConfigError where it has none."""
    if name not in PRETRAINING:
        raise ConfigError(f"model {name!r} has no pre-training;{nearest(name, PRETRAINING)}")
    return PRETRAINING[name]
