"""Pre-training: a dataset and its text vectors in, a folder of weights out that fine-tuning starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, create_model
from torch import Tensor

from reeltalk.artifacts import Manifest, read_manifest
from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ConfigError
from reeltalk.memory import keep_freed_memory
from reeltalk.models import model_spec
from reeltalk.models.recommender import Recommender
from reeltalk.objectives import Terms
from reeltalk.pretraining import pretraining_of
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.training.finetune import train_system
from reeltalk.training.settings import FinetuneSettings
from reeltalk.training.start import PRETRAINED
from reeltalk.training.system import System


class PretrainSettings(FinetuneSettings):
    """All of a pre-training run; `pretrain_settings` gives the class whose sections are those of one model."""

    task: Literal["item"] = "item"
    loss: BaseModel


def pretrain_settings(name: str) -> type[PretrainSettings]:
    """The settings of one model's pre-training; raises ConfigError where the model is unknown or has none."""
    spec, pretraining = model_spec(name, "item"), pretraining_of(name)
    return create_model(
        f"{spec.settings.__name__.removesuffix('Settings')}PretrainSettings",
        __base__=PretrainSettings,
        name=(Literal[name], name),  # type: ignore[arg-type]
        model=(spec.settings, spec.settings(**pretraining.fixed)),
        loss=(pretraining.settings, pretraining.settings()),
    )


def pretrain(dataset: Dataset, *, text: TextTable | None, settings: PretrainSettings, out: Path) -> Manifest:
    """Pre-train a model and write its folder; run again after an interruption, it goes on where it was.

    Item histories and their training targets are those of fine-tuning, and so is the validation that picks the epoch,
    by the model as it is pre-trained. What fine-tuning has no use for is not written. Raises ArtifactError where `out`
    holds something else or a run with other settings, ConfigError where there is no text or the model is asked for in a
    form that is not pre-trained, DataError where there is nothing to learn from.
    """
    keep_freed_memory()
    pretraining = pretraining_of(settings.name)
    for name, value in pretraining.fixed.items():
        if getattr(settings.model, name) != value:
            raise ConfigError(
                f"model.{name}={getattr(settings.model, name)}, but {settings.name} is pre-trained with "
                f"{value}; leave it out, and set it when fine-tuning"
            )
    if text is None:
        raise ConfigError(
            f"the pre-training of {settings.name} reads text: give --text, a folder that `reeltalk encode` wrote"
        )
    system = System.new(dataset, text=text, settings=settings)
    trained = system if pretraining.around is None else _around(system, pretraining.around, text)

    def objective(batch: Batch, targets: ItemTargets) -> Terms:
        return pretraining.objective(trained.recommender, batch, targets, settings.loss)

    train_system(trained, out, kind=PRETRAINED, text=text, objective=objective, kept=system)
    return read_manifest(out, PRETRAINED)


def _around(system: System, make: Callable[[Recommender, Tensor], Recommender], text: TextTable) -> System:
    """A system of the model that is trained in place of another system's, which is a part of it."""
    settings, dataset = system.settings, system.dataset
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        recommender = make(system.recommender, TextLookup.of(dataset, text, with_comments=False).titles())
    feed = replace(system.feed, has_start=recommender.has_start)
    return System(recommender, None, feed=feed, dataset=dataset, settings=settings)
