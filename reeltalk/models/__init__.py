"""The models by name. A new one is a file named after its paper, and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, nearest
from reeltalk.models.att import ATT, ATTSettings
from reeltalk.models.dssm import DSSM, DSSMSettings
from reeltalk.models.gru import GRU, GRUSettings
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.models.mha import MHA, MHASettings
from reeltalk.models.recommender import Recommender
from reeltalk.models.sasrec import SASRec, SASRecSettings
from reeltalk.models.tem import TEM, TEMSettings
from reeltalk.models.unisrec_c import UniSRecC, UniSRecCSettings
from reeltalk.models.zam import ZAM, ZAMSettings


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, title_vectors [N + 1, E], known_items bool [N + 1], history_length)`. A model that does not read
    text gets vectors of width 0; known items are those with a training event. A model that is not personal gives all
    users the same preference. One of the comment task that does not see what is watched has the same under each item;
    item events need not be in the batch for one that does not read them.
    """

    settings: type[BaseModel]
    make: Callable[..., Recommender]
    tasks: tuple[Task, ...]
    reads_text: bool
    paper: str
    is_personal: bool = True
    sees_watched: bool = True
    reads_items: bool = True


def _sasrec(settings: SASRecSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return SASRec(settings, num_items=len(title_vectors_NE) - 1, history_length=history_length)


def _lsvcr(settings: LSVCRSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return LSVCR(settings, title_vectors_NE=title_vectors_NE, known_N=known_N, history_length=history_length)


def _of_comments(
    settings: type[BaseModel],
    model: Callable[..., Recommender],
    paper: str,
    *,
    personal: bool = True,
    watched: bool = True,
) -> ModelSpec:
    """A model of the comment task that reads records alone."""

    def make(settings: BaseModel, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
        return model(settings, title_vectors_NE=title_vectors_NE, history_length=history_length)

    return ModelSpec(
        settings, make, ("comment",), True, paper, is_personal=personal, sees_watched=watched, reads_items=False
    )


MODELS: dict[str, ModelSpec] = {
    "att": _of_comments(ATTSettings, ATT, "NAML, arXiv 1907.05576", watched=False),
    "dssm": _of_comments(DSSMSettings, DSSM, "CIKM 2013", personal=False),
    "gru": _of_comments(GRUSettings, GRU, "arXiv 1406.1078", watched=False),
    "lsvcr": ModelSpec(LSVCRSettings, _lsvcr, ("item", "comment"), True, "arXiv 2403.13574, section 4.1"),
    "mha": _of_comments(MHASettings, MHA, "NRMS, EMNLP 2019", watched=False),
    "sasrec": ModelSpec(SASRecSettings, _sasrec, ("item",), False, "arXiv 1808.09781"),
    "tem": _of_comments(TEMSettings, TEM, "arXiv 2005.08936"),
    "unisrec_c": _of_comments(UniSRecCSettings, UniSRecC, "arXiv 2206.05941", watched=False),
    "zam": _of_comments(ZAMSettings, ZAM, "arXiv 1908.11322"),
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
