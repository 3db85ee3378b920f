"""RecBole's SASRec on the generated logs: its own data pipeline, trainer, evaluation and defaults, batches of 256.

Runs in RecBole's environment (`benchmarks/peers/install.sh recbole DIR`) with the repository on PYTHONPATH:
`python -m benchmarks.peers.recbole_sasrec --logs FOLDER`, where `benchmarks.logs.write` wrote FOLDER.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import protocol, rows
from benchmarks.pairs import PAIRS
from benchmarks.peers.recbole_training import (
    PACKAGES,
    configured,
    loaders,
    new_trainer,
    resume,
    save,
    train_pass,
    working_folder,
)


def main() -> None:
    parser = protocol.arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="written after each pass; training goes on from it")
    parser.add_argument("--recorded", type=Path, help="what an earlier, longer run with the same seed printed")
    chosen = parser.parse_args()
    logs = chosen.logs.resolve()
    checkpoint = chosen.checkpoint.resolve() if chosen.checkpoint else None
    earlier = read_recorded(chosen.recorded, chosen.seed) if chosen.recorded and chosen.recorded.exists() else []
    with working_folder():
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
    config = configured("SASRec", logs, seed=seed, changes=PAIRS["sasrec"].theirs)
    train, valid, test = loaders(config)
    trainer = new_trainer(config, train)
    batches = protocol.FirstBatches(train, max(1, round(len(train) * fraction)))
    seconds: list[float] = []
    if checkpoint and checkpoint.exists():
        seconds = resume(checkpoint, trainer, train.generator)["seconds"]
    emit = partial(protocol.emit, system=protocol.RECBOLE, seed=seed, packages=PACKAGES)
    for done in range(len(seconds), passes):
        seconds.append(train_pass(trainer, batches, done))
        if done == 0:
            emit(protocol.PEAK_MEMORY, rows.peak_memory_mib(), "MiB")
        if checkpoint:
            save(checkpoint, trainer, train.generator, {"seconds": seconds})
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


def one_user_ms(model: Any, test: Any) -> float:
    """Median time of scoring all items and taking the top 10 for one user, whose history is prepared."""
    interaction = next(iter(test))[0]

    def top(place: int) -> None:
        scores = model.full_sort_predict(interaction[place : place + 1])
        torch.topk(scores.view(-1), protocol.TOP_K)

    model.eval()
    with torch.no_grad():
        return protocol.median_ms(partial(top, place) for place in range(len(interaction)))


if __name__ == "__main__":
    main()
