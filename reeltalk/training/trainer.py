"""The one trainer of all stages: precision, devices, checkpoints that survive a kill, logs, progress."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from reeltalk.errors import ConfigError
from reeltalk.precision import matmul_dtype
from reeltalk.training.settings import TrainerSettings

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


class Checkpoint(ModelCheckpoint):
    """In a folder that may be moved, and never of something half done.

    Amid an optimiser step gradients would be lost, between an epoch's last batch and its end what its end is worth.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, None, None, 0)  # where its time has come

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): value for path, value in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})


class StageModule(L.LightningModule):
    """What the stages share: steps with randomness of their own, and sums divided once for all processes."""

    settings: TrainerSettings

    def seed_step(self, step: int) -> None:
        """Every step and process its own randomness; `torch.manual_seed` would seed every backend and take 1 ms."""
        seed = self.settings.seed * 1_000_003 + step * self.trainer.world_size + self.global_rank
        seed %= 2**63  # what generators take
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def mean(self, total: Tensor, count: int) -> Tensor:
        """The sum over the mean count of all processes: averaged gradients are then those of one undivided batch."""
        if self.trainer.world_size == 1:
            return total / max(count, 1)
        counts = self.summed(torch.tensor(float(count), device=total.device))
        return total * self.trainer.world_size / counts.clamp(min=1)

    def summed(self, values: Tensor) -> Tensor:
        """The values added up over all processes, in place; without gradient."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def log_losses(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        """The whole loss on the progress bar, and now and then its terms in the log."""
        if self.trainer.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict({f"loss/{name}": value.detach() for name, value in losses.items()}, batch_size=1)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=1)  # else it is sought in the batch


def new_trainer(
    out: Path,
    settings: TrainerSettings,
    *,
    callbacks: Sequence[Callback] = (),
    log_every: int = 20,
    **limits: Any,
) -> L.Trainer:
    """The trainer of a stage that writes `out`; `limits` (max_epochs ..) go to Lightning.

    Its `strategy.root_device` is the one that this process trains on. Raises ConfigError where the settings ask for
    what is not here: devices, a logger's library.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logger = TensorBoardLogger if settings.logger == "tensorboard" else CSVLogger
    last = Checkpoint(
        out / CHECKPOINTS,
        filename=LAST.removesuffix(".ckpt"),
        train_time_interval=timedelta(seconds=settings.checkpoint_seconds),
        enable_version_counter=False,
    )
    # a task leaves some parameters unused; and the others wait while the first process encodes and writes at the end
    several = DDPStrategy(find_unused_parameters=True, timeout=timedelta(days=1))
    try:
        return L.Trainer(
            precision="bf16-mixed" if _is_half(settings) else "32-true",
            devices=settings.devices,
            accelerator=settings.accelerator,
            strategy=several if settings.devices > 1 else "auto",
            callbacks=[*callbacks, last, RichProgressBar(console_kwargs={"stderr": True})],
            plugins=[_WholeCheckpoints()],
            logger=logger(out, name="logs"),
            log_every_n_steps=log_every,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **limits,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ConfigError(
            f"train.accelerator={settings.accelerator} with devices={settings.devices} and logger={settings.logger} "
            f"cannot be used here: {' '.join(str(error).split())}"
        ) from error


def fit(trainer: L.Trainer, module: StageModule, out: Path, *, is_resumed: bool) -> None:
    """Train, from the last checkpoint in `out` where the run is resumed.

    Raises KeyboardInterrupt where the run was interrupted, by Ctrl-C or SIGTERM.
    """
    resume_from = out / CHECKPOINTS / LAST
    torch.set_num_threads(torch.get_num_threads())  # or MKL takes fewer where it likes, and sums come out otherwise
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore",
            message=".*(does not have many workers|smaller than the logging interval|exists and is not empty).*",
        )
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(module, ckpt_path=resume_from if is_resumed and resume_from.is_file() else None)
        except SystemExit:  # how Lightning ends on either, with status 1 or 0 and deaf to Ctrl-C
            signal.signal(signal.SIGINT, on_interrupt)
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _is_half(settings: TrainerSettings) -> bool:
    if settings.precision == "auto":
        is_on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
        return matmul_dtype("cuda" if is_on_gpu else "cpu") == torch.bfloat16
    return settings.precision == "bf16"


class _WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are either the old one or the whole new one, also when the process is killed while writing."""

    def save_checkpoint(self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None) -> None:
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, partial)
        partial.replace(target)
