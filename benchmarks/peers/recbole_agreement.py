"""RecBole's SASRec and GRU4Rec trained to the end on a dataset's events; test Recall@10 and NDCG@10 in full ranking.

`python -m benchmarks.peers.recbole_agreement --logs FOLDER --checkpoints FOLDER` in RecBole's environment, with the
repository on PYTHONPATH; `benchmarks.logs.write_events` wrote the first folder. Killed and run again, it goes on after
the last pass that was finished.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from benchmarks import pairs, protocol, rows
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
    parser = pairs.agreement_arguments(__doc__)
    parser.add_argument("--logs", type=Path, required=True, help="folder with NAME.inter, NAME its own name")
    parser.add_argument("--checkpoints", type=Path, required=True, help="written after each pass")
    chosen = parser.parse_args()
    logs, checkpoints = chosen.logs.resolve(), chosen.checkpoints.resolve()
    checkpoints.mkdir(parents=True, exist_ok=True)
    with working_folder():
        for name in chosen.models:
            model = pairs.PAIRS[name].recbole
            trainings = [
                trained(model, logs, pairs.PAIRS[name].theirs, seed=seed, chosen=chosen, folder=checkpoints)
                for seed in pairs.seeds_of(chosen)
            ]
            for one in pairs.measured(model, trainings, system=protocol.RECBOLE, packages=PACKAGES):
                rows.emit(one)


def trained(
    model: str, logs: Path, sizes: pairs.Settings, *, seed: int, chosen: argparse.Namespace, folder: Path
) -> pairs.Trained:
    """Train, from a checkpoint on where there is one, until validation improves no more; test the best weights."""
    changes = {**sizes, "train_batch_size": chosen.batch, "learning_rate": pairs.LEARNING_RATE}
    config = configured(model, logs, seed=seed, changes=changes)
    train, valid, test = loaders(config)
    trainer = new_trainer(config, train)
    events = hashlib.sha256((logs / f"{logs.name}.inter").read_bytes()).hexdigest()
    progress: dict[str, Any] = {"asked": {"events": events, **changes}, "validation": [], "best": {}}
    checkpoint = folder / f"{model}-seed{seed}.ckpt"
    if checkpoint.exists():
        found = resume(checkpoint, trainer, train.generator)
        if found["asked"] != progress["asked"]:
            sys.exit(f"{checkpoint} is of other events or settings; delete it, or give another --checkpoints")
        progress = {key: found[key] for key in progress}
    validation: list[float] = progress["validation"]
    while not pairs.is_over(validation, patience=chosen.patience, passes=chosen.passes):
        seconds = train_pass(trainer, train, len(validation))
        validation.append(evaluated(trainer, valid)["ndcg"])
        if validation[-1] > max(validation[:-1], default=-1):
            progress["best"] = deepcopy(trainer.model.state_dict())
        save(checkpoint, trainer, train.generator, progress)
        told = f"pass {len(validation)} in {seconds:.0f} s, validation NDCG@{protocol.TOP_K} {validation[-1]:.4f}"
        print(f"{model}, seed {seed}: {told}", file=sys.stderr, flush=True)
    trainer.model.load_state_dict(progress["best"])
    return pairs.Trained(seed, validation.index(max(validation)) + 1, evaluated(trainer, test))


def evaluated(trainer: Any, loader: Any) -> dict[str, float]:
    """Metrics of the weights as they are, all items ranked: RecBole leaves out none that the user has seen."""
    found = trainer.evaluate(loader, load_best_model=False)
    return {metric: float(found[f"{metric}@{protocol.TOP_K}"]) for metric in pairs.METRICS}


if __name__ == "__main__":
    main()
