"""Fine-tuning, ranking and memory of reeltalk on the generated logs; one JSON line a number.

Every measurement is a process of its own, because peak memory and thread pools are a process's.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import cast

import polars as pl
import torch
from torch import Tensor

from benchmarks import logs, protocol
from benchmarks.rows import Measurement, emit, peak_memory_mib, read_measurements, versions
from reeltalk.data.batch import Batch, ItemTargets
from reeltalk.data.dataset import Dataset
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.losses import ALIGN, BLOCK_ELEMENTS, NUM_SUM_COLUMNS
from reeltalk.memory import keep_freed_memory
from reeltalk.precision import matmul_dtype
from reeltalk.text.encode import encode
from reeltalk.training.finetune import finetune
from reeltalk.training.module import WindowBatches
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.requests import recommend_items
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System

LSVCR_PASS = "finetune: one pass of LSVCR"
PRODUCTS = "finetune: matrix products of the pass alone"
MEMORY_TENFOLD = "finetune: peak memory with ten times the items, without their embeddings"
# Learning rate, batch and dropout were chosen on the validation targets of these logs; the sizes are the protocol's.
TRAIN = {"batch_size": 128, "learning_rate": 0.003}
DROPOUT = 0.3
QUALITY_PASSES = 12
BYTES_A_WEIGHT = 4 * 4  # float32 weights, gradient and two moments of Adam


def settings(name: str, *, passes: int, seed: int, num_validated: int) -> FinetuneSettings:
    """The protocol's sizes for one of our models; `num_validated` targets in full ranking after each pass, 0: all."""
    train = {
        **TRAIN,
        "max_epochs": passes,
        "patience": passes,
        "monitor": f"ndcg@{protocol.TOP_K}",
        "monitor_protocol": "full",
        "exclude_seen": False,
        "max_validation_targets": num_validated,
        "checkpoint_seconds": 3600,
        "seed": seed,
    }
    model = {"dim": protocol.WIDTH, "num_layers": protocol.LAYERS, "num_heads": protocol.HEADS, "dropout": DROPOUT}
    sections = {"model": model, "data": {"history_length": protocol.HISTORY}, "train": train}
    return finetune_settings(name, "item").model_validate(sections)


def passes_of(out: Path) -> pl.DataFrame:
    """Training seconds and validation value of each pass, as fine-tuning logged them."""
    log = pl.read_csv(next((out / "logs").glob("*/metrics.csv")), infer_schema_length=None)
    return log.select("epoch", "seconds", "validation").drop_nulls().sort("epoch")


def measure_pass(dataset: Dataset, scratch: Path, seed: int) -> Iterator[Measurement]:
    """Seconds of a pass of the SASRec-shaped run, and the peak memory of training it."""
    chosen = settings("sasrec", passes=4, seed=seed, num_validated=64)
    finetune(dataset, text=None, settings=chosen, out=scratch / "model")
    seconds = statistics.median(passes_of(scratch / "model")["seconds"].to_list()[1:])
    yield Measurement(name=protocol.PASS, value=seconds, unit="s", note="median of passes 2 to 4")
    yield Measurement(name=protocol.PEAK_MEMORY, value=peak_memory_mib(), unit="MiB")


def measure_lsvcr(dataset: Dataset, scratch: Path, seed: int) -> Iterator[Measurement]:
    """Seconds of a pass of LSVCR, text and start entries included."""
    text = encode(dataset, out=scratch / "text")
    chosen = settings("lsvcr", passes=3, seed=seed, num_validated=64)
    finetune(dataset, text=text, settings=chosen, out=scratch / "model")
    seconds = statistics.median(passes_of(scratch / "model")["seconds"].to_list()[1:])
    yield Measurement(name=LSVCR_PASS, value=seconds, unit="s", note="median of passes 2 and 3")


def measure_products(dataset: Dataset, scratch: Path, seed: int) -> Iterator[Measurement]:
    """The matrix products of the pass, forward and backward, in the shapes and the type that training has."""
    keep_freed_memory()
    system = System.new(dataset, text=None, settings=settings("sasrec", passes=1, seed=seed, num_validated=64))
    batches = list(WindowBatches(system, system.training_windows()))
    item_ND = torch.randn(filled_up(dataset.num_items + 1), protocol.WIDTH).to(matmul_dtype())
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        for batch, targets in batches:
            assert isinstance(targets, ItemTargets)
            _products(batch, filled_up(len(targets.item_T)), item_ND)
        seconds.append(time.perf_counter() - start)
    yield Measurement(name=PRODUCTS, value=statistics.median(seconds[1:]), unit="s", note=f"in {matmul_dtype()}")


def filled_up(count: int) -> int:
    """Rows as the softmax lays them out."""
    return -(-count // ALIGN) * ALIGN


def _products(batch: Batch, num_targets: int, item_ND: Tensor) -> None:
    dtype, width, heads = item_ND.dtype, protocol.WIDTH, protocol.HEADS
    rows, length = batch.items.segment_RL.shape
    block = min(num_targets, BLOCK_ELEMENTS // len(item_ND) // ALIGN * ALIGN)
    mixed = torch.ones(len(item_ND), width + NUM_SUM_COLUMNS, dtype=dtype)
    score = torch.empty(block, len(item_ND), dtype=dtype)
    for start in range(0, num_targets, block):
        preference = torch.ones(min(block, num_targets - start), width, dtype=dtype)
        chunk = torch.mm(preference, item_ND.t(), out=score[: len(preference)])
        torch.mm(chunk, mixed)
        torch.mm(chunk.t(), preference)
    head = torch.ones(rows * heads, length, width // heads, dtype=dtype)
    weight = torch.ones(rows * heads, length, length, dtype=dtype)
    for _ in range(protocol.LAYERS):
        for wide, deep in ((width, width), (width, 2 * width), (width, width), (width, 4 * width), (4 * width, width)):
            x, w = torch.ones(rows * length, wide, dtype=dtype), torch.ones(deep, wide, dtype=dtype)
            y = torch.mm(x, w.t())
            torch.mm(y, w)
            torch.mm(y.t(), x)
        for _ in range(3):  # forward, and two backward, of scores and of mixtures
            torch.bmm(head, head.transpose(1, 2))
            torch.bmm(weight, head)


def measure_ranking(dataset: Dataset, scratch: Path, seed: int) -> Iterator[Measurement]:
    """Full ranking of all test users through `evaluate`, and one user's request."""
    chosen = settings("sasrec", passes=1, seed=seed, num_validated=64)
    system = finetune(dataset, text=None, settings=chosen, out=scratch / "model")
    how = EvaluationSettings(ks=(protocol.TOP_K,), bootstrap_samples=0)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        evaluate(dataset, {"sasrec": SystemRanker(system)}, settings=how)
        seconds.append(time.perf_counter() - start)
    yield Measurement(
        name=protocol.FULL_RANKING,
        value=statistics.median(seconds[1:]),
        unit="s",
        note="evaluate() whole: saved candidates, segments and per-user values included",
    )
    users = cycle(dataset.users["user_key"].head(1000).to_list())
    requests: Iterator[Callable[[], object]] = (
        lambda user=user: recommend_items(system, user, k=protocol.TOP_K)  # type: ignore[misc]
        for user in users
    )
    yield Measurement(name=protocol.ONE_USER, value=protocol.median_ms(requests), unit="ms")


def measure_memory(dataset: Dataset, scratch: Path, seed: int) -> Iterator[Measurement]:
    """Peak memory of training with ten times the items, less what their embeddings and optimiser states take."""
    larger = logs.write(logs.generate(num_items=10 * logs.NUM_ITEMS, seed=seed), scratch / "logs")
    dataset = logs.dataset_of(larger, scratch / "dataset", seed=seed)
    chosen = settings("sasrec", passes=1, seed=seed, num_validated=64)
    finetune(dataset, text=None, settings=chosen, out=scratch / "model")
    added = (dataset.num_items - logs.NUM_ITEMS) * protocol.WIDTH * BYTES_A_WEIGHT / 2**20
    yield Measurement(
        name=MEMORY_TENFOLD, value=peak_memory_mib() - added, unit="MiB", note=f"{added:.0f} MiB taken off"
    )


def measure_quality(dataset: Dataset, scratch: Path, seed: int, goals: dict[int, float]) -> Iterator[Measurement]:
    """Training seconds until validation in full ranking has reached each of a peer's goals."""
    chosen = settings("sasrec", passes=QUALITY_PASSES, seed=seed, num_validated=0)
    finetune(dataset, text=None, settings=chosen, out=scratch / "model")
    done = passes_of(scratch / "model").with_columns(pl.col("seconds").cum_sum())
    for passes, goal in goals.items():
        reached = done.filter(pl.col("validation") >= goal).head(1)
        best = cast(float, done["validation"].max())
        if reached.is_empty():
            note = f"not reached: {best:.4f} after {QUALITY_PASSES} passes, the goal is {goal:.4f}"
            yield Measurement(name=protocol.seconds_to(passes), value=float("nan"), unit="s", note=note)
            continue
        epoch, seconds, value = reached.row(0)
        note = f"NDCG@{protocol.TOP_K} {value:.4f} after {epoch + 1} passes, the goal is {goal:.4f}"
        yield Measurement(name=protocol.seconds_to(passes), value=seconds, unit="s", note=note)


MEASURES = {
    "pass": measure_pass,
    "products": measure_products,
    "lsvcr": measure_lsvcr,
    "ranking": measure_ranking,
    "memory": measure_memory,
}


def goals_in(measured: Path | None) -> dict[int, float]:
    """RecBole's validation values after the protocol's numbers of passes, as far as they were measured."""
    if measured is None or not measured.exists():
        return {}
    values = {one.name: one.value for one in read_measurements(measured.read_text()) if one.system == protocol.RECBOLE}
    named = {passes: protocol.ndcg_after(passes) for passes in protocol.CURVE_PASSES}
    return {passes: values[name] for passes, name in named.items() if name in values}


def main() -> None:
    """Run one measurement here, or all of them as child processes."""
    parser = protocol.arguments(__doc__)
    parser.add_argument("--measured", type=Path, help="what the peers' scripts printed: RecBole's quality is our goal")
    parser.add_argument("--measure", choices=[*MEASURES, "quality"], help="one measurement, in this process")
    chosen = parser.parse_args()
    if chosen.measure is None:
        goals = goals_in(chosen.measured)
        for name in [*MEASURES, *(["quality"] if goals else [])]:
            arguments = ["--logs", str(chosen.logs), "--seed", str(chosen.seed), "--measure", name]
            arguments += ["--measured", str(chosen.measured)] if goals else []
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.finetune", *arguments], stdout=subprocess.PIPE, text=True, check=True
            )
            print(done.stdout, end="", flush=True)
        return
    used = versions(["torch", "lightning", "polars", "numpy"])
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        dataset = logs.dataset_of(chosen.logs, scratch / "prepared", seed=chosen.seed)
        if chosen.measure == "quality":
            found = measure_quality(dataset, scratch, chosen.seed, goals_in(chosen.measured))
        else:
            found = MEASURES[chosen.measure](dataset, scratch, chosen.seed)
        for one in found:
            emit(replace(one, seed=chosen.seed, versions=used))


if __name__ == "__main__":
    main()
