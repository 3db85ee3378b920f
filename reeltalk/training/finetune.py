"""Fine-tuning: a dataset and its text vectors in, a finished model folder out (LSVCR stage 2, and every baseline)."""

from __future__ import annotations

import logging
import shutil
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors.torch import save_file

from reeltalk.artifacts import resumable_folder, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.dataset import Dataset
from reeltalk.memory import keep_freed_memory
from reeltalk.precision import matmul_dtype
from reeltalk.text.table import TextTable
from reeltalk.training.module import FinetuneModule
from reeltalk.training.settings import FinetuneSettings, TrainSettings
from reeltalk.training.system import CONFIG, WEIGHTS, System, load_system

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


def finetune(dataset: Dataset, *, text: TextTable | None, settings: FinetuneSettings, out: Path) -> System:
    """Train a model for one task and write its folder; run again after an interruption, it goes on where it was.

    The weights kept are those of the epoch with the best validation value. Raises ArtifactError where `out` holds
    something else or a run with other settings, ConfigError where the model reads text and there is none, DataError
    where the dataset has nothing to learn the task from.
    """
    keep_freed_memory()
    train = settings.train
    parents = {"dataset": dataset.manifest.digest} | ({"text": text.encoding} if text is not None else {})
    system = System.new(dataset, text=text, settings=settings)
    windows = system.training_windows()
    module = FinetuneModule(system, windows)
    config = settings.model_dump(mode="json")
    is_resumed = resumable_folder(out, kind="model", config=config, parents=parents)
    save_settings(settings, out / CONFIG)
    last, best = _checkpoints(out, train)
    trainer = _trainer(out, train, [last, best])
    resume_from = out / CHECKPOINTS / LAST
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=".*(does not have many workers|smaller than the logging interval|exists and is not empty).*",
        )
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer.fit(module, ckpt_path=resume_from if is_resumed and resume_from.is_file() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.is_global_zero:
        _finish(out, system, best, config=config, parents=parents, dataset=dataset, text=text)
    trainer.strategy.barrier()
    return load_system(out, dataset=dataset, text=text)


def _finish(
    out: Path,
    system: System,
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
    shutil.rmtree(out / CHECKPOINTS)
    facts = {
        "best_value": float(best.best_model_score) if best.best_model_score is not None else None,
        "num_parameters": sum(parameter.numel() for parameter in system.parameters()),
        "dataset": str(dataset.path.resolve()),
        "text": None if text is None else str(text.path.resolve()),
    }
    write_manifest(out, kind="model", config=config, parents=parents, facts=facts)


class _WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either the old one or the whole new one, also when the process is killed while writing."""

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, partial)
        partial.replace(target)


def _checkpoints(out: Path, train: TrainSettings) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    folder = out / CHECKPOINTS
    last = ModelCheckpoint(
        folder,
        filename=LAST.removesuffix(".ckpt"),
        train_time_interval=timedelta(seconds=train.checkpoint_seconds),
        enable_version_counter=False,
    )
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor="validation",
        mode="max",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    return last, best


def _trainer(out: Path, train: TrainSettings, callbacks: list[ModelCheckpoint]) -> L.Trainer:
    if train.precision == "auto":
        is_half = matmul_dtype("cuda" if torch.cuda.is_available() else "cpu") == torch.bfloat16
    else:
        is_half = train.precision == "bf16"
    stopping: list[Callback] = [EarlyStopping("validation", mode="max", patience=train.patience)]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logger = TensorBoardLogger if train.logger == "tensorboard" else CSVLogger
    return L.Trainer(
        max_epochs=train.max_epochs,
        precision="bf16-mixed" if is_half else "32-true",
        devices=train.devices,
        accelerator=train.accelerator,
        strategy="ddp" if train.devices > 1 else "auto",
        accumulate_grad_batches=train.accumulate,
        callbacks=[*stopping, *callbacks, RichProgressBar(console_kwargs={"stderr": True})],
        plugins=[_WholeCheckpoints()],
        logger=logger(out, name="logs"),
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
