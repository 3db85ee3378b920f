"""The models by name. A new one is a file named after its paper, and a line in `MODELS`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor

from reeltalk.data.dataset import Task
from reeltalk.errors import ConfigError, nearest
from reeltalk.models.att import ATT, ATTSettings
from reeltalk.models.bert4rec import BERT4Rec, BERT4RecSettings
from reeltalk.models.caser import Caser, CaserSettings
from reeltalk.models.dmt import DMT, DMTSettings
from reeltalk.models.dssm import DSSM, DSSMSettings
from reeltalk.models.fdsa import FDSA, FDSASettings
from reeltalk.models.gru import GRU, GRUSettings
from reeltalk.models.gru4rec import GRU4Rec, GRU4RecSettings
from reeltalk.models.hstu import HSTU, HSTUSettings
from reeltalk.models.lsvcr import LSVCR, LSVCRSettings
from reeltalk.models.mbht import MBHT, MBHTSettings
from reeltalk.models.mha import MHA, MHASettings
from reeltalk.models.narm import NARM, NARMSettings
from reeltalk.models.recommender import Items, Recommender
from reeltalk.models.s3rec import S3Rec, S3RecSettings
from reeltalk.models.sasrec import SASRec, SASRecSettings
from reeltalk.models.tem import TEM, TEMSettings
from reeltalk.models.unisrec import UniSRec, UniSRecSettings
from reeltalk.models.unisrec_c import UniSRecC, UniSRecCSettings
from reeltalk.models.vqrec import VQRec, VQRecSettings
from reeltalk.models.zam import ZAM, ZAMSettings

Input = Literal["ids", "text", "items", "records"]


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, items, history_length=...)` is the model's class. `reads`: whether it learns a vector of each item
    (ids), needs text vectors, makes its preferences from item events (items), from the history of comments (records).
    Text vectors are those of titles, and of comments where records are read or comments are ranked, else zeros.

    A model that is not personal gives all users the same preference. One of the comment task that does not see what is
    watched has the same under each item.
    """

    settings: type[BaseModel]
    make: type[Recommender]
    tasks: tuple[Task, ...]
    reads: tuple[Input, ...]
    paper: str
    is_personal: bool = True
    sees_watched: bool = True

    @property
    def reads_text(self) -> bool:
        """Whether it needs text vectors."""
        return "text" in self.reads


_ITEM: tuple[Task, ...] = ("item",)
_COMMENT: tuple[Task, ...] = ("comment",)
MODELS: dict[str, ModelSpec] = {
    "att": ModelSpec(ATTSettings, ATT, _COMMENT, ("text", "records"), "NAML, arXiv 1907.05576", sees_watched=False),
    "bert4rec": ModelSpec(BERT4RecSettings, BERT4Rec, _ITEM, ("ids", "items"), "arXiv 1904.06690"),
    "caser": ModelSpec(CaserSettings, Caser, _ITEM, ("ids", "items"), "arXiv 1809.07426"),
    "dmt": ModelSpec(DMTSettings, DMT, _ITEM, ("ids", "items", "records"), "CIKM 2020, doi 10.1145/3340531.3412697"),
    "dssm": ModelSpec(DSSMSettings, DSSM, _COMMENT, ("text",), "CIKM 2013", is_personal=False),
    "fdsa": ModelSpec(FDSASettings, FDSA, _ITEM, ("ids", "text", "items"), "IJCAI 2019, doi 10.24963/ijcai.2019/600"),
    "gru": ModelSpec(GRUSettings, GRU, _COMMENT, ("text", "records"), "arXiv 1406.1078", sees_watched=False),
    "gru4rec": ModelSpec(GRU4RecSettings, GRU4Rec, _ITEM, ("ids", "items"), "arXiv 1511.06939"),
    "hstu": ModelSpec(HSTUSettings, HSTU, _ITEM, ("ids", "items"), "arXiv 2402.17152"),
    "lsvcr": ModelSpec(
        LSVCRSettings, LSVCR, ("item", "comment"), ("ids", "text", "items", "records"), "arXiv 2403.13574, section 4.1"
    ),
    "mbht": ModelSpec(MBHTSettings, MBHT, _ITEM, ("ids", "items", "records"), "arXiv 2207.05584"),
    "mha": ModelSpec(MHASettings, MHA, _COMMENT, ("text", "records"), "NRMS, EMNLP 2019", sees_watched=False),
    "narm": ModelSpec(NARMSettings, NARM, _ITEM, ("ids", "items"), "arXiv 1711.04725"),
    "s3rec": ModelSpec(S3RecSettings, S3Rec, _ITEM, ("ids", "items"), "arXiv 2008.07873"),
    "sasrec": ModelSpec(SASRecSettings, SASRec, _ITEM, ("ids", "items"), "arXiv 1808.09781"),
    "tem": ModelSpec(TEMSettings, TEM, _COMMENT, ("text", "records"), "arXiv 2005.08936"),
    "unisrec": ModelSpec(UniSRecSettings, UniSRec, _ITEM, ("ids", "text", "items"), "arXiv 2206.05941"),
    "unisrec_c": ModelSpec(
        UniSRecCSettings, UniSRecC, _COMMENT, ("text", "records"), "arXiv 2206.05941", sees_watched=False
    ),
    "vqrec": ModelSpec(VQRecSettings, VQRec, _ITEM, ("text", "items"), "arXiv 2210.12316"),
    "zam": ModelSpec(ZAMSettings, ZAM, _COMMENT, ("text", "records"), "arXiv 1908.11322"),
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
    is_loaded: bool = False,
) -> Recommender:
    """A new model; the same seed gives the same weights, whatever was drawn before. All items are known where None.

    One that is about to be loaded from a file (`is_loaded`) is made without the work of `fit`.
    """
    known = torch.ones(len(titles), dtype=torch.bool) if known_items is None else known_items
    spec = model_spec(name, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        items = Items(titles, known)
        recommender = spec.make(settings, items, history_length=history_length)
        if not is_loaded:
            recommender.fit(items)
        return recommender
