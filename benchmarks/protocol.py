"""The protocol that all fine-tuning benchmarks share: what is measured, under which name, and the command line.

Sizes: width 64, two layers of two heads, the last 50 items, exact softmax over all items. Leave-one-out: a user's last
event is the test target, the last but one the validation target; full ranking. Standard library only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import rows

WIDTH, LAYERS, HEADS, HISTORY = 64, 2, 2, 50
TOP_K = 10
CURVE_PASSES = (1, 3, 10)
"""Passes after which a peer's validation quality is a goal to reach."""

RECBOLE = "RecBole"
"""The peer whose quality is the goal."""

PASS = "finetune: one pass over the training targets"
PEAK_MEMORY = "finetune: peak memory of training"
FULL_RANKING = "full ranking: all test users, top 10 and metrics"
ONE_USER = "one user's top 10"

WARM_UP_CALLS, TIMED_CALLS = 20, 200


def ndcg_after(passes: int) -> str:
    """Name of the validation NDCG@10 after so many passes."""
    return f"finetune: validation NDCG@{TOP_K} after {passes} passes"


def recall_after(passes: int) -> str:
    """Name of the validation Recall@10 after so many passes."""
    return f"finetune: validation Recall@{TOP_K} after {passes} passes"


def seconds_to(passes: int) -> str:
    """Name of the training time to the validation NDCG@10 that RecBole has after so many passes."""
    return f"finetune: time to RecBole's NDCG@{TOP_K} after {passes} passes"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options every fine-tuning script takes."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--logs", type=Path, required=True, help="folder that benchmarks.logs wrote")
    parser.add_argument("--passes", type=int, default=1, help="passes over the training targets")
    parser.add_argument("--fraction", type=float, default=1.0, help="time this share of a pass's batches and scale up")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def emit(
    name: str, value: float, unit: str, *, system: str, seed: int, packages: Sequence[str], note: str = ""
) -> None:
    """Print one measurement of a system that runs in this process, with the versions of the packages that matter."""
    rows.emit(
        rows.Measurement(
            name=name, value=value, unit=unit, system=system, seed=seed, note=note, versions=rows.versions(packages)
        )
    )


def pass_seconds(seconds: Sequence[float], fraction: float) -> float:
    """Seconds of a whole pass: the median of the passes timed, each of which took this share of the batches."""
    return statistics.median(seconds) / fraction


def fraction_note(fraction: float) -> str:
    """What a row says when only a share of the pass was timed."""
    return "" if fraction == 1 else f"{fraction:g} of the pass timed, scaled to the whole"


def median_ms(calls: Iterable[Callable[[], Any]]) -> float:
    """Median milliseconds of `TIMED_CALLS` calls, after `WARM_UP_CALLS` that are not timed."""
    taken = []
    for call in islice(calls, WARM_UP_CALLS + TIMED_CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    if len(taken) < WARM_UP_CALLS + TIMED_CALLS:
        raise ValueError(f"{len(taken)} calls given, {WARM_UP_CALLS + TIMED_CALLS} needed")
    return 1000 * statistics.median(taken[WARM_UP_CALLS:])


class FirstBatches:
    """A data loader cut to its first batches; everything else is the loader's own."""

    def __init__(self, loader: Any, num_batches: int) -> None:
        self.loader = loader
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.loader), self.num_batches)

    def __len__(self) -> int:
        return self.num_batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
