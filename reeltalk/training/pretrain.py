"""Pre-training: a dataset and its text vectors in, a folder of weights out that fine-tuning starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, create_model

from reeltalk.artifacts import Manifest, read_manifest
from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ConfigError
from reeltalk.memory import keep_freed_memory
from reeltalk.models import model_spec
from reeltalk.objectives import Terms
from reeltalk.pretraining import pretraining_of
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

    Item histories and their training targets are those of fine-tuning, and so is the validation that picks the epoch.
    Raises ArtifactError where `out` holds something else or a run with other settings, ConfigError where the model
    reads text and there is none or is asked for in a form that is not pre-trained, DataError where there is nothing to
    learn from.
    """
    keep_freed_memory()
    pretraining = pretraining_of(settings.name)
    for name, value in pretraining.fixed.items():
        if getattr(settings.model, name) != value:
            raise ConfigError(
                f"model.{name}={getattr(settings.model, name)}, but {settings.name} is pre-trained with "
                f"{value}; leave it out, and set it when fine-tuning"
            )
    system = System.new(dataset, text=text, settings=settings)

    def objective(batch: Batch, targets: ItemTargets) -> Terms:
        return pretraining.objective(system.recommender, batch, targets, settings.loss)

    train_system(system, out, kind=PRETRAINED, text=text, objective=objective)
    return read_manifest(out, PRETRAINED)
