"""The models by name. A new one is a file named after its paper, and a line in `MODELS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, nearest
from reeltalk.models.caser import Caser, CaserSettings
from reeltalk.models.gru4rec import GRU4Rec, GRU4RecSettings
from reeltalk.models.hstu import HSTU, HSTUSettings
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.models.narm import NARM, NARMSettings
from reeltalk.models.recommender import Recommender
from reeltalk.models.sasrec import SASRec, SASRecSettings


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, title_vectors [N + 1, E], known_items bool [N + 1], history_length)`. A model that does not read
    text gets vectors of width 0; known items are those with a training event.
    """

    settings: type[BaseModel]
    make: Callable[..., Recommender]
    tasks: tuple[Task, ...]
    reads_text: bool
    paper: str


def _of_ids(model: Callable[..., Recommender], *, has_positions: bool) -> Callable[..., Recommender]:
    """`make` of a model to which an item is its ID alone; with or without a table of positions."""

    def make(settings: BaseModel, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
        positions = {"history_length": history_length} if has_positions else {}
        return model(settings, num_items=len(title_vectors_NE) - 1, **positions)

    return make


def _lsvcr(settings: LSVCRSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return LSVCR(settings, title_vectors_NE=title_vectors_NE, known_N=known_N, history_length=history_length)


MODELS: dict[str, ModelSpec] = {
    "caser": ModelSpec(CaserSettings, _of_ids(Caser, has_positions=False), ("item",), False, "arXiv 1809.07426"),
    "gru4rec": ModelSpec(GRU4RecSettings, _of_ids(GRU4Rec, has_positions=False), ("item",), False, "arXiv 1511.06939"),
    "hstu": ModelSpec(HSTUSettings, _of_ids(HSTU, has_positions=True), ("item",), False, "arXiv 2402.17152"),
    "lsvcr": ModelSpec(LSVCRSettings, _lsvcr, ("item", "comment"), True, "arXiv 2403.13574, section 4.1"),
    "narm": ModelSpec(NARMSettings, _of_ids(NARM, has_positions=False), ("item",), False, "arXiv 1711.04725"),
    "sasrec": ModelSpec(SASRecSettings, _of_ids(SASRec, has_positions=True), ("item",), False, "arXiv 1808.09781"),
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
