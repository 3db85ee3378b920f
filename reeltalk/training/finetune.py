"""Fine-tuning: a dataset and its text vectors in, a finished model folder out (LSVCR stage 2, and every baseline)."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import save_file

from reeltalk.artifacts import resumable_folder, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.dataset import Dataset
from reeltalk.memory import keep_freed_memory, peak_bytes
from reeltalk.text.table import TextTable
from reeltalk.training.module import FinetuneModule
from reeltalk.training.settings import FinetuneSettings
from reeltalk.training.start import start_from, start_settings
from reeltalk.training.system import CONFIG, WEIGHTS, System, load_system
from reeltalk.training.trainer import CHECKPOINTS, fit, new_trainer


def finetune(
    dataset: Dataset, *, text: TextTable | None, settings: FinetuneSettings, out: Path, aligned: Path | None = None
) -> System:
    """Train a model for one task and write its folder; run again after an interruption, it goes on where it was.

    `aligned`, a folder that `reeltalk align` wrote, is what it starts from; `text` was then encoded by it. The weights
    kept are those of the epoch with the best validation value. Raises ArtifactError where `out` holds something else or
    a run with other settings, or text or start do not belong together, ConfigError where the model reads text and there
    is none, DataError where the dataset has nothing to learn the task from.
    """
    keep_freed_memory()
    train = settings.train
    parents = {"dataset": dataset.manifest.digest} | ({"text": text.encoding} if text is not None else {})
    if aligned is not None:
        settings = start_settings(settings, aligned, text)
    system = System.new(dataset, text=text, settings=settings)
    if aligned is not None:
        parents["aligned"] = start_from(system, aligned)
    windows = system.training_windows()
    module = FinetuneModule(system, windows)
    config = settings.model_dump(mode="json")
    is_resumed = resumable_folder(out, kind="model", config=config, parents=parents)
    save_settings(settings, out / CONFIG)
    best = _best_checkpoint(out)
    trainer = new_trainer(
        out,
        train,
        callbacks=[EarlyStopping("validation", mode="max", patience=train.patience), best],
        max_epochs=train.max_epochs,
        accumulate_grad_batches=train.accumulate,
    )
    fit(trainer, module, out, is_resumed=is_resumed)
    if trainer.is_global_zero:
        _finish(out, module, best, config=config, parents=parents, dataset=dataset, text=text)
    trainer.strategy.barrier()
    return load_system(out, dataset=dataset, text=text)


def _finish(
    out: Path,
    module: FinetuneModule,
    best: ModelCheckpoint,
    *,
    config: dict[str, object],
    parents: dict[str, str],
    dataset: Dataset,
    text: TextTable | None,
) -> None:
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    prefix = "system."
    save_file({name.removeprefix(prefix): value.contiguous() for name, value in weights.items()}, out / WEIGHTS)
    facts = {
        "best_value": float(best.best_model_score) if best.best_model_score is not None else None,
        "num_parameters": sum(parameter.numel() for parameter in module.system.parameters()),
        "seconds": round(module.seconds, 1),
        "peak_bytes": peak_bytes(),
        "dataset": str(dataset.path.resolve()),
        "text": None if text is None else str(text.path.resolve()),
    }
    write_manifest(out, kind="model", config=config, parents=parents, facts=facts, leave_out=(CHECKPOINTS,))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def _best_checkpoint(out: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        out / CHECKPOINTS,
        filename="best",
        monitor="validation",
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
