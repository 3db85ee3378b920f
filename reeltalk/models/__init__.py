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


@dataclass(frozen=True)
class ModelSpec:
    """What the pipeline must know of a model before it makes one.

    `make(settings, items, history_length=...)` is the model's class.

    Of a causal model, one pass over a history gives the preference after each entry, whatever follows. One that is not
    looks both ways: it gives the preference after the last entry alone, and trains on hidden entries. A model that is
    not personal gives all users the same preference. One of the comment task that does not see what is watched has the
    same under each item.
    """

    settings: type[BaseModel]
    make: Callable[..., Recommender]
    tasks: tuple[Task, ...]
    reads_text: bool
    paper: str
    is_causal: bool = True
    is_personal: bool = True
    sees_watched: bool = True


MODELS: dict[str, ModelSpec] = {
    "att": ModelSpec(ATTSettings, ATT, ("comment",), True, "NAML, arXiv 1907.05576", sees_watched=False),
    "bert4rec": ModelSpec(BERT4RecSettings, BERT4Rec, ("item",), False, "arXiv 1904.06690", is_causal=False),
    "caser": ModelSpec(CaserSettings, Caser, ("item",), False, "arXiv 1809.07426"),
    "dmt": ModelSpec(DMTSettings, DMT, ("item",), False, "CIKM 2020, doi 10.1145/3340531.3412697"),
    "dssm": ModelSpec(DSSMSettings, DSSM, ("comment",), True, "CIKM 2013", is_personal=False),
    "fdsa": ModelSpec(FDSASettings, FDSA, ("item",), True, "IJCAI 2019, doi 10.24963/ijcai.2019/600"),
    "gru": ModelSpec(GRUSettings, GRU, ("comment",), True, "arXiv 1406.1078", sees_watched=False),
    "gru4rec": ModelSpec(GRU4RecSettings, GRU4Rec, ("item",), False, "arXiv 1511.06939"),
    "hstu": ModelSpec(HSTUSettings, HSTU, ("item",), False, "arXiv 2402.17152"),
    "lsvcr": ModelSpec(LSVCRSettings, LSVCR, ("item", "comment"), True, "arXiv 2403.13574, section 4.1"),
    "mbht": ModelSpec(MBHTSettings, MBHT, ("item",), False, "arXiv 2207.05584", is_causal=False),
    "mha": ModelSpec(MHASettings, MHA, ("comment",), True, "NRMS, EMNLP 2019", sees_watched=False),
    "narm": ModelSpec(NARMSettings, NARM, ("item",), False, "arXiv 1711.04725"),
    "s3rec": ModelSpec(S3RecSettings, S3Rec, ("item",), False, "arXiv 2008.07873, fine-tuning"),
    "sasrec": ModelSpec(SASRecSettings, SASRec, ("item",), False, "arXiv 1808.09781"),
    "tem": ModelSpec(TEMSettings, TEM, ("comment",), True, "arXiv 2005.08936"),
    "unisrec": ModelSpec(UniSRecSettings, UniSRec, ("item",), True, "arXiv 2206.05941"),
    "unisrec_c": ModelSpec(UniSRecCSettings, UniSRecC, ("comment",), True, "arXiv 2206.05941", sees_watched=False),
    "vqrec": ModelSpec(VQRecSettings, VQRec, ("item",), True, "arXiv 2210.12316"),
    "zam": ModelSpec(ZAMSettings, ZAM, ("comment",), True, "arXiv 1908.11322"),
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
    is_loaded: bool = False,
) -> Recommender:
    """A new model; the same seed gives the same weights, whatever was drawn before. All items are known where None.

    One that is about to be loaded from a file (`is_loaded`) is made without the work of `fit_buffers`.
    """
    known = torch.ones(len(titles), dtype=torch.bool) if known_items is None else known_items
    spec = model_spec(name, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        items = Items(titles, known)
        recommender = spec.make(settings, items, history_length=history_length)
        if not is_loaded:
            recommender.fit_buffers(items)
        return recommender
