"""RecBole's SASRec on the generated logs: its own data pipeline, trainer, evaluation and defaults, batches of 256.

Runs in RecBole's environment (`benchmarks/peers/install.sh recbole DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.recbole_sasrec --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
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
    parser.add_argument("--recorded", type=Path, help="what an earlier, longer run with the same seed printed")
    chosen = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    logs = chosen.logs.resolve()
    checkpoint = chosen.checkpoint.resolve() if chosen.checkpoint else None
    earlier = read_recorded(chosen.recorded, chosen.seed) if chosen.recorded and chosen.recorded.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # RecBole writes TensorBoard logs into the working folder
        seconds = run(logs, passes=chosen.passes, fraction=chosen.fraction, seed=chosen.seed, checkpoint=checkpoint)
    emit_recorded(earlier, passes=chosen.passes, pass_seconds=seconds)


def read_recorded(path: Path, seed: int) -> list[rows.Measurement]:
    """The measurements in the file that were made with this seed."""
    return [one for one in rows.read_measurements(path.read_text()) if one.seed == seed]


def emit_recorded(earlier: list[rows.Measurement], *, passes: int, pass_seconds: float) -> None:
    """Print the quality after passes that were not run now, and the time they take at the pass time measured now."""
    by_name = {one.name: replace(one, note="recorded in an earlier run") for one in earlier}
    for goal in protocol.CURVE_PASSES:
        found = by_name.get(protocol.ndcg_after(goal))
        if goal > passes and found:
            rows.emit(found)
            rows.emit(by_name[protocol.recall_after(goal)])
            note = f"{goal} times a pass of this run, the quality from an earlier one"
            name, value = protocol.seconds_to(goal), goal * pass_seconds
            rows.emit(replace(found, name=name, value=value, unit="s", note=note))


def run(logs: Path, *, passes: int, fraction: float, seed: int, checkpoint: Path | None) -> float:
    """Train pass by pass, printing the validation quality after each, then time the ranking; seconds of a pass."""
    config = settings(logs, seed)
    init_seed(seed, True)
    train, valid, test = data_preparation(config, create_dataset(config))
    init_seed(seed, True)
    trainer = Trainer(config, SASRec(config, train.dataset))
    batches = protocol.FirstBatches(train, max(1, round(len(train) * fraction)))
    seconds: list[float] = resume(checkpoint, trainer, train.generator) if checkpoint and checkpoint.exists() else []
    emit = partial(protocol.emit, system=protocol.RECBOLE, seed=seed, packages=["recbole", "torch", "numpy"])
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
    taken = protocol.pass_seconds(seconds, fraction)
    emit(protocol.PASS, taken, "s", note=protocol.fraction_note(fraction))
    start = time.perf_counter()
    trainer.evaluate(test, load_best_model=False)
    emit(protocol.FULL_RANKING, time.perf_counter() - start, "s")
    emit(protocol.ONE_USER, one_user_ms(trainer.model, test), "ms")
    return taken


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
