"""Every model of reeltalk: seconds of a pass and peak memory of training it, each in a process of its own.

Item models learn on the generated logs, comment models on a simulated platform. Titles and comments are encoded
beforehand, by the command.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks import logs, protocol
from benchmarks.finetune import TRAIN, passes_of
from benchmarks.pairs import PAIRS, Settings, memory_of, pass_of, training_targets
from benchmarks.rows import Measurement, emit, peak_memory_mib, versions
from reeltalk.data.batch import ItemTargets
from reeltalk.data.dataset import Dataset, Task
from reeltalk.models import MODELS
from reeltalk.objectives import item_objective
from reeltalk.text.table import TextTable
from reeltalk.training.finetune import finetune
from reeltalk.training.module import WindowBatches
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System

TASKS: tuple[Task, ...] = get_args(Task)
SIZES = {"dim": protocol.WIDTH, "num_layers": protocol.LAYERS, "num_heads": protocol.HEADS}
NUM_VALIDATED = 64


def sizes_of(name: str) -> Settings:
    """The settings of a model: those that RecBole's has, else the protocol's sizes as far as it has them."""
    if name in PAIRS:
        return PAIRS[name].ours
    return {key: value for key, value in SIZES.items() if key in MODELS[name].settings.model_fields}


def title_of(name: str, task: Task) -> str:
    """What the rows call a model."""
    model = MODELS[name].make.__name__
    return model if task == "item" else f"{model}, comments"


def settings(name: str, task: Task, *, passes: int, seed: int) -> FinetuneSettings:
    """A run of so many passes that hardly validates."""
    train = {
        **TRAIN,
        "max_epochs": passes,
        "patience": passes,
        "max_validation_targets": NUM_VALIDATED,
        "checkpoint_seconds": 3600,
        "seed": seed,
    }
    sections = {"model": sizes_of(name), "data": {"history_length": protocol.HISTORY}, "train": train}
    return finetune_settings(name, task).model_validate(sections)


def dataset_of(task: Task, raw: Path, out: Path, *, seed: int) -> Dataset:
    """What models of this task learn from."""
    return logs.dataset_of(raw, out, seed=seed) if task == "item" else logs.platform_of(out, seed=seed)


def measure(
    name: str, task: Task, *, raw: Path, text: Path | None, scratch: Path, passes: int, seed: int
) -> Iterator[Measurement]:
    """Seconds of a pass and peak memory, preparing the logs included, of one model in this process."""
    dataset = dataset_of(task, raw, scratch / "data", seed=seed)
    table = TextTable.load(text) if text else None
    chosen = settings(name, task, passes=passes, seed=seed)
    system = finetune(dataset, text=table, settings=chosen, out=scratch / "model")
    memory = peak_memory_mib()
    seconds = statistics.median(passes_of(scratch / "model")["seconds"].to_list()[1:])
    note = f"median of passes 2 to {passes}"
    if not MODELS[name].make.is_causal:
        share = training_targets(raw) / predicted(system)
        note += f", times {share:.2f}: it predicts the hidden items alone"
        seconds *= share
    title = title_of(name, task)
    yield Measurement(name=pass_of(title), value=seconds, unit="s", note=note)
    yield Measurement(name=memory_of(title), value=memory, unit="MiB")


@torch.no_grad()
def predicted(system: System) -> int:
    """How many items a pass of training predicts."""
    system.train()
    count = 0
    for batch, targets in WindowBatches(system, system.training_windows()):
        assert isinstance(targets, ItemTargets)
        count += item_objective(system.recommender, batch, targets)["softmax"][1]
    return count


def main() -> None:
    """Run one measurement here, or all of them as child processes."""
    parser = protocol.arguments(__doc__)
    parser.set_defaults(passes=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--task", choices=TASKS, help="one task alone")
    parser.add_argument("--model", choices=MODELS, help="one model of that task, in this process")
    parser.add_argument("--text", type=Path, help="its text vectors, if it reads them")
    chosen = parser.parse_args()
    if chosen.passes < 2:
        parser.error("the first pass is not measured; give --passes 2 or more")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if chosen.model is None:
            for task in TASKS if chosen.task is None else (chosen.task,):
                measure_all(task, chosen.models, scratch, chosen)
            return
        used = versions(["torch", "lightning", "polars", "numpy"])
        for one in measure(
            chosen.model,
            chosen.task,
            raw=chosen.logs,
            text=chosen.text,
            scratch=scratch,
            passes=chosen.passes,
            seed=chosen.seed,
        ):
            emit(replace(one, seed=chosen.seed, versions=used))


def measure_all(task: Task, models: list[str], scratch: Path, chosen: argparse.Namespace) -> None:
    """Encode the texts of a task's dataset, then measure its models, each as a child process."""
    names = [name for name in models if task in MODELS[name].tasks]
    text = scratch / f"{task}-text"
    if any(MODELS[name].reads_text for name in names):
        dataset = dataset_of(task, chosen.logs, scratch / task, seed=chosen.seed)
        command = [sys.executable, "-m", "reeltalk", "encode", str(dataset.path), "--out", str(text)]
        subprocess.run(command, stdout=sys.stderr, check=True)
    same = ["--logs", str(chosen.logs), "--passes", str(chosen.passes), "--seed", str(chosen.seed), "--task", task]
    for name in names:
        command = [sys.executable, "-m", "benchmarks.baselines", *same, "--model", name]
        command += ["--text", str(text)] if MODELS[name].reads_text else []
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
