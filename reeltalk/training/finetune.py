"""Fine-tuning: a dataset and its text vectors in, a finished model folder out (LSVCR stage 2, and every baseline)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from reeltalk.artifacts import resumable_folder, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.dataset import Dataset
from reeltalk.errors import ConfigError
from reeltalk.lock import only_writer
from reeltalk.memory import keep_freed_memory, peak_bytes
from reeltalk.text.table import TextTable
from reeltalk.training.module import FinetuneModule, Objective
from reeltalk.training.settings import FinetuneSettings
from reeltalk.training.start import needs_start, start_from, start_settings
from reeltalk.training.system import CONFIG, TEXTS, WEIGHTS, System, load_system
from reeltalk.training.texts import trained_texts
from reeltalk.training.trainer import CHECKPOINTS, Checkpoint, fit, new_trainer
from reeltalk.weights import save_weights


def finetune(
    dataset: Dataset, *, text: TextTable | None, settings: FinetuneSettings, out: Path, start: Path | None = None
) -> System:
    """Train a model for one task and write its folder; run again after an interruption, it goes on where it was.

    `start`, a folder that `reeltalk align` or `reeltalk pretrain` wrote, is what it starts from; `text` was then
    encoded by the aligned model, or as for pre-training. With `text.trained_encoder` the folder also holds the encoder
    and its own text vectors. Raises ArtifactError where `out` holds something else or a run with other settings, or
    text or start do not belong together, ConfigError where the model reads text and there is none, cannot start
    there or would keep random weights, DataError where the dataset has nothing to learn the task from.
    """
    keep_freed_memory(but_large=True)  # weights and gradients of many items
    if start is not None:
        settings = start_settings(settings, start, text)
    elif problem := needs_start(settings):
        raise ConfigError(f"{problem}; --pretrained names the folder")
    system = System.new(dataset, text=text, settings=settings)
    parents = {} if start is None else start_from(system, start)
    texts = trained_texts(dataset, text, settings)
    if texts is not None:
        system.train_texts(texts)
    train_system(system, out, kind="model", text=text, parents=parents)
    return load_system(out, dataset=dataset, text=text)


def train_system(
    system: System,
    out: Path,
    *,
    kind: str,
    text: TextTable | None,
    parents: Mapping[str, str] | None = None,
    objective: Objective | None = None,
    kept: System | None = None,
) -> None:
    """Train by the task's objective, or another, and write a folder of this kind.

    The weights kept are those of the epoch with the best validation value. `parents`: what it was made from besides
    dataset and text. `kept`: the system whose weights are written, where it is a part of the one that is trained.
    """
    settings, dataset = system.settings, system.dataset
    train = settings.train
    made_from = {"dataset": dataset.manifest.digest} | ({"text": text.encoding} if text is not None else {})
    made_from |= parents or {}
    module = FinetuneModule(system, system.training_windows(), objective)
    best = _best_checkpoint(out)
    trainer = new_trainer(
        out,
        train,
        callbacks=[_Patience("validation", mode="max", patience=train.patience), best],
        max_epochs=train.max_epochs,
        accumulate_grad_batches=train.accumulate,
    )
    config = settings.model_dump(mode="json")
    with only_writer(out):
        is_resumed = resumable_folder(out, kind=kind, config=config, parents=made_from)
        save_settings(settings, out / CONFIG)
        fit(trainer, module, out, is_resumed=is_resumed)
        if trainer.is_global_zero:
            facts = _finish(out, module, best, kept or system) | {
                "dataset": str(dataset.path.resolve()),
                "text": None if text is None else str(text.path.resolve()),
            }
            write_manifest(out, kind=kind, config=config, parents=made_from, facts=facts, leave_out=(CHECKPOINTS,))
            shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        trainer.strategy.barrier()


def _finish(out: Path, module: FinetuneModule, best: Checkpoint, kept: System) -> dict[str, object]:
    """Write the best weights of the system that is kept; returns what is worth telling."""
    # mapped, so that the optimiser's states are not read
    weights = torch.load(best.best_model_path, weights_only=True, mmap=True)["state_dict"]
    module.load_state_dict(weights)
    own = {name: value for name, value in kept.state_dict().items() if not name.startswith(TEXTS)}
    save_weights(own, out / WEIGHTS)
    if module.system.texts is not None:
        module.system.texts.encoder.finish(module.system.dataset, out)
    return {
        "best_value": float(best.best_model_score) if best.best_model_score is not None else None,
        "num_parameters": sum(parameter.numel() for parameter in kept.own_parameters()),
        "seconds": round(module.seconds, 1),
        "peak_bytes": peak_bytes(),
    }


class _Patience(EarlyStopping):
    """Early stopping; a run that is resumed after it is over stays so."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


def _best_checkpoint(out: Path) -> Checkpoint:
    return Checkpoint(
        out / CHECKPOINTS,
        filename="best",
        monitor="validation",
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
