"""Fine-tuning, ranking and memory of reeltalk on the generated logs; one JSON line a number.

Each measurement is a process of its own (`--measure`), because peak memory and thread pools are a process's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.rows import Measurement, emit, peak_memory_mib, versions
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.evaluation.protocol import EvaluationSettings, evaluate
from reeltalk.losses import BLOCK_ELEMENTS, NUM_SUM_COLUMNS, matmul_dtype
from reeltalk.models.sasrec import SASRecSettings
from reeltalk.training.finetune import finetune
from reeltalk.training.module import WindowBatches
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.requests import recommend_items
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System

LSVCR_PASS = "finetune: one pass of LSVCR"
PRODUCTS = "finetune: the pass's matrix products alone"
# Chosen on the validation targets of these logs; the model's sizes are the protocol's.
LEARNING_RATE, BATCH_SIZE = 0.003, 128


def settings(name: str, *, passes: int, seed: int, validate: bool) -> FinetuneSettings:
    """The protocol's sizes for one of our models; validation on all targets, full ranking, or on a handful."""
    kind = finetune_settings(name, "item")
    train = {
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "max_epochs": passes,
        "patience": passes,
        "monitor": f"ndcg@{protocol.TOP_K}",
        "monitor_protocol": "full",
        "max_validation_targets": 0 if validate else 64,
        "checkpoint_seconds": 3600,
        "seed": seed,
    }
    sizes = {"dim": protocol.WIDTH, "num_layers": protocol.LAYERS, "num_heads": protocol.HEADS}
    return kind.model_validate({"model": sizes, "data": {"history_length": protocol.HISTORY}, "train": train})


def epochs(out: Path) -> pl.DataFrame:
    """Training seconds and validation value of each epoch, as fine-tuning logged them."""
    log = pl.read_csv(next((out / "logs").glob("*/metrics.csv")))
    return log.select("epoch", "seconds", "validation").drop_nulls().sort("epoch")


def measure_passes(logs: Path, *, seed: int) -> None:
    """Seconds of a pass (median after the first), and peak memory, of the SASRec-shaped run and of LSVCR."""
    from benchmarks.logs import dataset_of

    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(logs, Path(folder) / "dataset", seed=seed)
        out = Path(folder) / "model"
        finetune(dataset, text=None, settings=settings("sasrec", passes=4, seed=seed, validate=False), out=out)
        seconds = epochs(out)["seconds"].to_list()
    ours(protocol.PASS, statistics.median(seconds[1:]), "s", seed=seed, note="median of passes 2 to 4")
    ours(protocol.PEAK_MEMORY, peak_memory_mib(), "MiB", seed=seed)
