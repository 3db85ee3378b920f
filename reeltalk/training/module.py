"""The Lightning module and loader of a system: seeded by step, so a resumed run draws what an unbroken one drew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reeltalk.data.batch import Batch, CommentTargets, ItemTargets
from reeltalk.data.histories import Windows
from reeltalk.objectives import Terms, comment_objective, item_objective
from reeltalk.training.feed import shuffled
from reeltalk.training.settings import TrainSettings
from reeltalk.training.system import System
from reeltalk.training.trainer import StageModule
from reeltalk.training.validation import Validation

Example = tuple[Batch, ItemTargets | CommentTargets]


class WindowBatches:
    """All batches of an epoch, beginning with the first that this run has not done."""

    def __init__(self, system: System, windows: Windows) -> None:
        self.system, self.windows = system, windows
        self.batches_done = 0  # over all epochs; the module counts and keeps it
        self.rank, self.num_ranks = 0, 1
        train = system.settings.train
        self.batch_size = train.batch_size // (train.devices * train.accumulate)

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches_done = state["batches_done"]

    def __len__(self) -> int:
        return -(-len(self.windows) // (self.batch_size * self.num_ranks))

    def __iter__(self) -> Iterator[Example]:
        seed = self.system.settings.train.seed
        epoch, done = divmod(self.batches_done, len(self))
        chunks = shuffled(
            self.windows, batch_size=self.batch_size, seed=seed, epoch=epoch, rank=self.rank, num_ranks=self.num_ranks
        )
        for index, chunk in enumerate(chunks):
            if index < done:
                continue
            if self.system.settings.task == "item":
                yield self.system.feed.item_batch(chunk)
            else:
                rng = np.random.default_rng([seed, epoch, index, self.rank])
                yield self.system.feed.comment_batch(chunk, rng=rng)


Objective = Callable[[Batch, ItemTargets], Terms]


class FinetuneModule(StageModule):
    """One step of fine-tuning: the task's objective plus the model's own regularisation.

    Where an `objective` is given, in its place the sum of that one's terms.
    """

    def __init__(self, system: System, windows: Windows, objective: Objective | None = None) -> None:
        super().__init__()
        self.system = system
        self.objective = objective
        self.settings: TrainSettings = system.settings.train
        self.weights = {"regularisation": self.settings.regularisation}
        self.batches = WindowBatches(system, windows)
        self.validation = Validation(system)
        self.seconds = 0.0  # over all runs, up to `counted_at`

    def train_dataloader(self) -> WindowBatches:
        self.batches.rank, self.batches.num_ranks = self.global_rank, self.trainer.world_size
        return self.batches

    def configure_optimizers(self) -> Any:
        train = self.settings
        parts: list[dict[str, Any]] = [{"params": self.system.own_parameters()}]
        if self.system.texts is not None:
            rate = self.system.settings.text.learning_rate
            parts.append({"params": list(self.system.texts.parameters()), "lr": rate})
        optimizer = torch.optim.AdamW(parts, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
        if not train.warmup_steps:
            return optimizer
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=train.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        self.seed_step(self.batches.batches_done)
        self.batches.batches_done += 1
        terms = self._terms(batch)
        losses = {name: self.mean(total, count) for name, (total, count) in terms.items()}
        loss = torch.stack([self.weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        self.log_losses(loss, losses)
        return loss

    def _terms(self, batch: Example) -> Terms:
        histories, targets = batch
        if self.objective is not None:
            assert isinstance(targets, ItemTargets)
            return self.objective(histories, targets)
        regularise = self.settings.regularisation > 0
        if isinstance(targets, ItemTargets):
            return item_objective(self.system.recommender, histories, targets, regularise=regularise)
        return self.system.read(partial(comment_objective, regularise=regularise), histories, targets)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # else the next forward pass, and validation, have the gradients beside them

    def on_train_start(self) -> None:
        self.counted_at = self.epoch_began = time.perf_counter()  # an epoch that goes on has no start of its own

    def on_train_epoch_start(self) -> None:
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        seconds = time.perf_counter() - self.epoch_began
        self.log_dict({"validation": self.validation.value(), "seconds": seconds}, prog_bar=True)
        self._count_seconds()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds, self.counted_at = self.seconds + now - self.counted_at, now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._count_seconds()
        checkpoint |= {"batches_done": self.batches.batches_done, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["seconds"]
        self.batches.batches_done = checkpoint["batches_done"]  # what Lightning keeps of loaders ends with an epoch

    def transfer_batch_to_device(self, batch: Example, device: torch.device, dataloader_idx: int) -> Example:
        histories, targets = batch
        return histories.to(device), targets.to(device)
