"""The models by name. A new one is a file named after its paper, and a line in `MODELS`.

One from outside this package is named by where its `ModelSpec` is found: ``package.module:SPEC`` (docs/own-model.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from pydantic import BaseModel
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, nearest
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.models.recommender import Recommender
from reeltalk.models.sasrec import SASRec, SASRecSettings


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, title_vectors [N + 1, E], known_items bool [N + 1], history_length)`. A model that does not read
    text gets vectors of width 0; known items are those with a training event. `reads_ids`: it learns a vector of each
    item; `reads_records`: its preferences are made from the history of comments too.
    """

    settings: type[BaseModel]
    make: Callable[..., Recommender]
    tasks: tuple[Task, ...]
    reads_text: bool
    paper: str
    reads_ids: bool = True
    reads_records: bool = False

    @property
    def inputs(self) -> list[str]:
        """What it reads, in words."""
        histories = "both histories" if self.reads_records else "item history"
        return [*(["ids"] if self.reads_ids else []), *(["text"] if self.reads_text else []), histories]


def _sasrec(settings: SASRecSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return SASRec(settings, num_items=len(title_vectors_NE) - 1, history_length=history_length)


def _lsvcr(settings: LSVCRSettings, title_vectors_NE: Tensor, known_N: Tensor, history_length: int) -> Recommender:
    return LSVCR(settings, title_vectors_NE=title_vectors_NE, known_N=known_N, history_length=history_length)


MODELS: dict[str, ModelSpec] = {
    "lsvcr": ModelSpec(
        LSVCRSettings, _lsvcr, ("item", "comment"), True, "arXiv 2403.13574, section 4.1", reads_records=True
    ),
    "sasrec": ModelSpec(SASRecSettings, _sasrec, ("item",), False, "arXiv 1808.09781"),
}


def model_spec(name: str, task: Task) -> ModelSpec:
    """The model of this name; raises ConfigError where there is none, or it does not do the task."""
    spec = MODELS.get(name) or (_imported(name) if ":" in name else None)
    if spec is None:
        raise ConfigError(f"model {name!r} is unknown;{nearest(name, MODELS)}; or package.module:SPEC for your own")
    if task not in spec.tasks:
        able = ", ".join(other for other, known in MODELS.items() if task in known.tasks)
        raise ConfigError(f"model {name!r} does the {' and '.join(spec.tasks)} task, not {task}; those that do: {able}")
    return spec


def _imported(name: str) -> ModelSpec:
    """The spec at ``package.module:NAME``, installed or below the current folder; raises ConfigError if there is none.

    The current folder is looked at last, so that a file there hides no library.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ConfigError(f"model {name!r} is no name in a module; expected package.module:SPEC")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports something that is not
        raise ConfigError(
            f"model {name!r}: there is no module {error.name!r}, installed or in {here}; run this where "
            f"{module_name.split('.')[0]} lies, or put that folder on PYTHONPATH"
        ) from error
    spec = getattr(module, attribute, None)
    if not isinstance(spec, ModelSpec):
        there = [key for key, value in vars(module).items() if isinstance(value, ModelSpec)]
        raise ConfigError(
            f"model {name!r}: {attribute} in {module.__file__} is {'not there' if spec is None else 'no ModelSpec'};"
            + (nearest(attribute, there) if there else " put SPEC = ModelSpec(..) there")
        )
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
