"""RecBole's models on the generated logs: seconds of a pass and peak memory of each, in a process of its own.

`python -m benchmarks.peers.recbole_baselines --logs FOLDER` in RecBole's environment, with the repository on
PYTHONPATH. Without `--fraction` a tenth of a pass is timed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_model

from benchmarks import protocol
from benchmarks.pairs import PAIRS, memory_of, pass_of, training_targets
from benchmarks.peers.recbole_training import (
    PACKAGES,
    configured,
    loaders,
    new_trainer,
    train_pass,
    working_folder,
)
from benchmarks.rows import peak_memory_mib

FRACTION = 0.1
WARM_UP = 3  # batches before those that are timed
HIDDEN = "MASK_INDEX"  # where BERT4Rec's batches say what is hidden; place 0 is left out of its loss
ATTRIBUTES = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]},
    "selected_features": ["class"],
    "item_attribute": "class",
}


def main() -> None:
    """Measure one model here, or all of them as child processes."""
    parser = protocol.arguments(__doc__)
    parser.set_defaults(fraction=FRACTION)
    parser.add_argument("--models", nargs="+", choices=PAIRS, default=PAIRS, help="named as ours are")
    parser.add_argument("--model", choices=PAIRS, help="one model, in this process")
    chosen = parser.parse_args()
    logs = chosen.logs.resolve()
    if chosen.model:
        with working_folder() as scratch:
            measure(chosen.model, logs, fraction=chosen.fraction, seed=chosen.seed, scratch=scratch)
        return
    for name in chosen.models:
        options = ["--logs", logs, "--fraction", str(chosen.fraction), "--seed", str(chosen.seed), "--model", name]
        subprocess.run([sys.executable, "-m", "benchmarks.peers.recbole_baselines", *options], check=True)


def measure(name: str, logs: Path, *, fraction: float, seed: int, scratch: Path) -> None:
    """Train a share of a pass, print what the whole takes and the peak memory."""
    model = PAIRS[name].recbole
    changes = {**PAIRS[name].theirs, **(ATTRIBUTES if model in ("FDSA", "S3Rec") else {})}
    config = configured(model, logs, seed=seed, changes=changes)
    train = loaders(config)[0]
    if model == "S3Rec":
        changes |= {"train_stage": "finetune", "pre_model_path": str(untrained(train, scratch))}
        config = configured(model, logs, seed=seed, changes=changes)
    trainer = new_trainer(config, train)
    train_pass(trainer, protocol.FirstBatches(train, WARM_UP), 0)
    batches = CountedBatches(train, max(1, round(len(train) * fraction)))
    seconds = train_pass(trainer, batches, 1)
    targets = training_targets(logs)
    note = (
        f"{batches.predicted:,} predictions in {seconds:.1f} s, {len(batches) / len(train):.2g} of RecBole's own pass"
    )
    emit = partial(protocol.emit, system=protocol.RECBOLE, seed=seed, packages=PACKAGES)
    emit(pass_of(model), seconds * targets / batches.predicted, "s", note=note)
    emit(memory_of(model), peak_memory_mib(), "MiB")


def untrained(train: Any, scratch: Path) -> Path:
    """A file of S3-Rec's weights as before pre-training, without which RecBole does not fine-tune it."""
    path = scratch / "s3rec.pth"
    torch.save({"state_dict": get_model("S3Rec")(train.config, train.dataset).state_dict()}, path)
    return path


class CountedBatches(protocol.FirstBatches):
    """The first batches, and how many items a model predicts in them: one a sample, or those that are hidden."""

    predicted = 0

    def __iter__(self) -> Iterator[Any]:
        for interaction in super().__iter__():
            is_cloze = HIDDEN in interaction.columns
            self.predicted += int((interaction[HIDDEN] > 0).sum()) if is_cloze else len(interaction)
            yield interaction


if __name__ == "__main__":
    main()
