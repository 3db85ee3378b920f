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
from reeltalk.training.system import CONFIG, TEXTS, WEIGHTS, System, load_system
from reeltalk.training.texts import trained_texts
from reeltalk.training.trainer import CHECKPOINTS, fit


def finetune(
    dataset: Dataset, *, text: TextTable | None, settings: FinetuneSettings, out: Path, aligned: Path | None = None
) -> System:
    """Train a model for one task and write its folder; run again after an interruption, it goes on where it was.

    `aligned`, a folder that `reeltalk align` wrote, is what it starts from; `text` was then encoded by it. The weights
    kept are those of the epoch with the best validation value. With `text.trained_encoder` the folder also holds the
    encoder and its own text vectors. Raises ArtifactError where `out` holds something else or
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
    texts = trained_texts(dataset, text, settings)
    if texts is not None:
        system.train_texts(texts)
    windows = system.training_windows()
    module = FinetuneModule(system, windows)
    config = settings.model_dump(mode="json")
    is_resumed = resumable_folder(out, kind="model", config=config, parents=parents)
    save_settings(settings, out / CONFIG)
    best = _best_checkpoint(out)
    trainer = fit(
        module,
        out,
        train,
        callbacks=[EarlyStopping("validation", mode="max", patience=train.patience), best],
        is_resumed=is_resumed,
        max_epochs=train.max_epochs,
        accumulate_grad_batches=train.accumulate,
    )
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
    module.load_state_dict(weights)
    own = {name: value for name, value in module.system.state_dict().items() if not name.startswith(TEXTS)}
    save_file({name: value.contiguous().cpu() for name, value in own.items()}, out / WEIGHTS)
    if module.system.texts is not None:
        text = module.system.texts.encoder.finish(dataset, out)
    shutil.rmtree(out / CHECKPOINTS)
    facts = {
        "best_value": float(best.best_model_score) if best.best_model_score is not None else None,
        "num_parameters": sum(parameter.numel() for parameter in module.system.own_parameters()),
        "seconds": round(module.seconds, 1),
        "peak_bytes": peak_bytes(),
        "dataset": str(dataset.path.resolve()),
        "text": None if text is None else str(text.path.resolve()),
    }
    write_manifest(out, kind="model", config=config, parents=parents, facts=facts)


def _best_checkpoint(out: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        out / CHECKPOINTS,
        filename="best",
        monitor="validation",
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
