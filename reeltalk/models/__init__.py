"""The models by name. A new one is a file named after its paper, and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, nearest
from reeltalk.models.bert4rec import BERT4Rec, BERT4RecSettings
from reeltalk.models.dmt import DMT, DMTSettings
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.models.mbht import MBHT, MBHTSettings
from reeltalk.models.recommender import Recommender
from reeltalk.models.s3rec import S3Rec, S3RecSettings
from reeltalk.models.sasrec import SASRec, SASRecSettings


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, title_vectors [N + 1, E], known_items bool [N + 1], history_length)`. A model that does not read
    text gets vectors of width 0; known items are those with a training event.

    Of a causal model, one pass over a history gives the preference after each entry, whatever follows. One that is not
    looks both ways: it gives the preference after the last entry alone, and trains on hidden entries.
    """

    settings: type[BaseModel]
    make: Callable[..., Recommender]
    tasks: tuple[Task, ...]
    reads_text: bool
    paper: str
    is_causal: bool = True


def _by_id(model: Callable[..., Recommender]) -> Callable[..., Recommender]:
    """`make` of a model that knows items by their ids alone."""

    def make(settings: BaseModel, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
        return model(settings, num_items=len(title_vectors_NE) - 1, history_length=history_length)

    return make


def _lsvcr(settings: LSVCRSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return LSVCR(settings, title_vectors_NE=title_vectors_NE, known_N=known_N, history_length=history_length)


MODELS: dict[str, ModelSpec] = {
    "bert4rec": ModelSpec(BERT4RecSettings, _by_id(BERT4Rec), ("item",), False, "arXiv 1904.06690", is_causal=False),
    "dmt": ModelSpec(DMTSettings, _by_id(DMT), ("item",), False, "CIKM 2020, doi 10.1145/3340531.3412697"),
    "lsvcr": ModelSpec(LSVCRSettings, _lsvcr, ("item", "comment"), True, "arXiv 2403.13574, section 4.1"),
    "mbht": ModelSpec(MBHTSettings, _by_id(MBHT), ("item",), False, "arXiv 2207.05584", is_causal=False),
    "s3rec": ModelSpec(S3RecSettings, _by_id(S3Rec), ("item",), False, "arXiv 2008.07873, fine-tuning"),
    "sasrec": ModelSpec(SASRecSettings, _by_id(SASRec), ("item",), False, "arXiv 1808.09781"),
}


def model_spec(name: str, task: Task) -> ModelSpec:
    """The model of this name; raises ConfigError where there is none, or it does not do the task."""
    if name not in MODELS:
        raise ConfigError(f"model {name!r} is unknown;{nearest(name, MODELS)}")
    spec = MODELS[name]
    if task not in spec.tasks:
        able = ", ".join(other for other, known in MODELS.items() if task in known.tasks)
        raise ConfigError(f"model {name!r} does the {' and '.join(spec.tasks)} task, not {task}; those that do: {able}")
    return spec


def build(
    name: str,
    task: Task,
    settings: BaseModel,
    *,
    titles: Tensor,
    known_items: Tensor | None = None,
    history_length: int,
    seed: int,
) -> Recommender:
    """A new model; the same seed gives the same weights, whatever was drawn before. All items are known where None."""
    known = torch.ones(len(titles), dtype=torch.bool) if known_items is None else known_items
    spec = model_spec(name, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.make(settings, titles, known, history_length)
