"""RecBole's SASRec on the generated logs: its own data pipeline, trainer, evaluation and defaults, batches of 256.

Runs in RecBole's environment (`benchmarks/peers/install.sh recbole DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.recbole_sasrec --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks import protocol, rows

BATCH = 256
"""The default, 2048, makes eight times fewer steps; 256 learns most a pass, and is what the quality goals assume."""


def main() -> None:
    parser = protocol.arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="written after each pass; training goes on from it")
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    logs = chosen.logs.resolve()
    checkpoint = chosen.checkpoint.resolve() if chosen.checkpoint else None
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # RecBole writes TensorBoard logs into the working folder
        run(logs, passes=chosen.passes, fraction=chosen.fraction, seed=chosen.seed, checkpoint=checkpoint)


def run(logs: Path, *, passes: int, fraction: float, seed: int, checkpoint: Path | None) -> None:
    """Train pass by pass, printing the validation quality after each, then time the ranking."""
    config = settings(logs, seed)
    init_seed(seed, True)
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(seed, True)
    trainer = Trainer(config, SASRec(config, train.dataset))
    batches = protocol.FirstBatches(train, max(1, round(len(train) * fraction)))
    seconds: list[float] = resume(checkpoint, trainer, train.generator) if checkpoint and checkpoint.exists() else []
    emit = partial(protocol.emit, system="RecBole", seed=seed, packages=["recbole", "torch", "numpy"])
    for done in range(len(seconds), passes):
        trainer.start_epoch, trainer.epochs = done, done + 1
        start = time.perf_counter()
        trainer.fit(batches, saved=False, verbose=False, show_progress=sys.stderr.isatty())
        seconds.append(time.perf_counter() - start)
        if done == 0:
            emit(protocol.PEAK_MEMORY, rows.peak_memory_mib(), "MiB")
        if checkpoint:
            save(checkpoint, trainer, train.generator, seconds)
        if fraction == 1:
            quality = trainer.evaluate(valid, load_best_model=False)
            emit(protocol.ndcg_after(done + 1), quality[f"ndcg@{protocol.TOP_K}"], "")
            emit(protocol.recall_after(done + 1), quality[f"recall@{protocol.TOP_K}"], "")
            emit(protocol.seconds_to(done + 1), sum(seconds), "s", note="training alone, without validation")
    emit(protocol.PASS, protocol.pass_seconds(seconds, fraction), "s", note=protocol.fraction_note(fraction))
    start = time.perf_counter()
    trainer.evaluate(test, load_best_model=False)
    emit(protocol.FULL_RANKING, time.perf_counter() - start, "s")
    emit(protocol.ONE_USER, one_user_ms(trainer.model, test), "ms")


def settings(logs: Path, seed: int) -> Config:
    """RecBole's defaults for SASRec but for the split, the batch and the metrics."""
    changed = {
        "data_path": str(logs.parent),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "repeatable": True,
        "train_neg_sample_args": None,
        "train_batch_size": BATCH,
        "MAX_ITEM_LIST_LENGTH": protocol.HISTORY,
        "hidden_size": protocol.WIDTH,
        "n_layers": protocol.LAYERS,
        "n_heads": protocol.HEADS,
        "loss_type": "CE",
        "metrics": ["Recall", "NDCG"],
        "topk": [protocol.TOP_K],
        "valid_metric": f"NDCG@{protocol.TOP_K}",
        "metric_decimal_place": 6,
        "use_gpu": False,
        "seed": seed,
    }
    return Config(model="SASRec", dataset=logs.name, config_dict=changed)


def one_user_ms(model: Any, test: Any) -> float:
    """Median time of scoring all items and taking the top 10 for one user, whose history is prepared."""
    interaction = next(iter(test))[0]

    def top(place: int) -> None:
        scores = model.full_sort_predict(interaction[place : place + 1])
        torch.topk(scores.view(-1), protocol.TOP_K)

    model.eval()
    with torch.no_grad():
        return protocol.median_ms(partial(top, place) for place in range(len(interaction)))


def save(path: Path, trainer: Any, order: torch.Generator, seconds: list[float]) -> None:
    """Keep everything that the next pass depends on."""
    state = {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "order": order.get_state(),
        "seconds": seconds,
    }
    partial_path = path.with_suffix(".partial")
    torch.save(state, partial_path)
    os.replace(partial_path, path)


def resume(path: Path, trainer: Any, order: torch.Generator) -> list[float]:
    """Restore what `save` kept; returns the seconds of each pass done."""
    state = torch.load(path)
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch"])
    order.set_state(state["order"])
    return list(state["seconds"])


if __name__ == "__main__":
    main()
