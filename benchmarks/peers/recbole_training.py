"""RecBole's data pipeline, models and trainers as all its benchmarks use them, and checkpoints to go on from."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

from benchmarks import protocol
from benchmarks.pairs import Settings

PACKAGES = ("recbole", "torch", "numpy")
BATCH = 256
"""The default, 2048, makes eight times fewer steps; 256 learns most a pass."""


@contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary folder to work in, where RecBole's TensorBoard logs go; it does not see the command line."""
    sys.argv = sys.argv[:1]
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        yield Path(scratch)


def configured(model: str, logs: Path, *, seed: int, changes: Settings) -> Config:
    """RecBole's defaults for a model but for split, batch, history, loss, metrics, and these changes.

    `logs`: an absolute path, the folder of atomic files that bear its name.
    """
    ours = {
        "data_path": str(logs.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "repeatable": True,
        "train_neg_sample_args": None,
        "train_batch_size": BATCH,
        "MAX_ITEM_LIST_LENGTH": protocol.HISTORY,
        "loss_type": "CE",
        "metrics": ["Recall", "NDCG"],
        "topk": [protocol.TOP_K],
        "valid_metric": f"NDCG@{protocol.TOP_K}",
        "metric_decimal_place": 6,
        "use_gpu": False,
        "seed": seed,
    }
    return Config(model=model, dataset=logs.name, config_dict={**ours, **changes})


def loaders(config: Config) -> tuple[Any, Any, Any]:
    """The loaders of training, validation and test."""
    init_seed(config["seed"], True)
    train, valid, test = data_preparation(config, create_dataset(config))
    return train, valid, test


def new_trainer(config: Config, train: Any) -> Any:
    """The model's trainer, with a model of fresh weights.

    Importing RecBole's sequential models turns autograd's anomaly detection on for all of them (SINE's file does it),
    and a step takes about twice as long. It is turned off again: what is timed is RecBole at its best.
    """
    init_seed(config["seed"], True)
    model = get_model(config["model"])(config, train.dataset)
    torch.autograd.set_detect_anomaly(False)
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)


def train_pass(trainer: Any, batches: Any, done: int) -> float:
    """Train one pass, after so many that were; its seconds."""
    trainer.start_epoch, trainer.epochs = done, done + 1
    start = time.perf_counter()
    trainer.fit(batches, saved=False, verbose=False, show_progress=sys.stderr.isatty())
    return time.perf_counter() - start


def save(path: Path, trainer: Any, order: torch.Generator, progress: dict[str, Any]) -> None:
    """Keep everything that the next pass depends on, and how far it has come."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "order": order.get_state(),
        **progress,
    }
    partial_path = path.with_suffix(".partial")
    torch.save(state, partial_path)
    os.replace(partial_path, path)


def resume(path: Path, trainer: Any, order: torch.Generator) -> dict[str, Any]:
    """Restore what `save` kept; returns it, the progress among it."""
    state: dict[str, Any] = torch.load(path)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch"])
    order.set_state(state["order"])
    return state
