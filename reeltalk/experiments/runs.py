"""Per-user values of finished runs: means, parts of the targets, one paired test over several seeds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from reeltalk.artifacts import read_manifest, reading_file
from reeltalk.errors import DataError
from reeltalk.evaluation.significance import KEYS, PER_USER, Comparison, compare, holm, metric_columns

Tested = TypeVar("Tested", bound=Hashable)
ALL = "all"  # the part that is every target


@dataclass(frozen=True)
class Run:
    """What one run reached: the digest of its dataset, its per-user values in the order of their keys."""

    dataset: str
    values: pl.DataFrame


def read_run(report: Path) -> Run:
    """The run of a report folder."""
    manifest = read_manifest(report, "report")
    with reading_file(report / PER_USER):
        return Run(manifest.parents["dataset"], pl.read_parquet(report / PER_USER).sort(KEYS))


def part_of(run: Run, part: str) -> Run:
    """The targets of a segment, as users.unseen."""
    return run if part == ALL else Run(run.dataset, run.values.filter(pl.col(f"segments.{part}")))


def means(values: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Means over targets, by protocol and metric."""
    found: dict[str, dict[str, float]] = {}
    for column in metric_columns(values):
        protocol, metric = column.split(".", 1)
        found.setdefault(protocol, {})[metric] = float(values[column].to_numpy().mean())
    return found


def over_runs(figures: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The means of what several runs reached, by protocol and metric; empty where there is none."""
    return {
        protocol: {metric: float(np.mean([each[protocol][metric] for each in figures])) for metric in metrics}
        for protocol, metrics in (figures[0] if figures else {}).items()
    }


def paired(of: Mapping[int, Run], first: Mapping[int, Run], *, samples: int = 1000) -> dict[str, dict[str, Comparison]]:
    """Per-user values averaged over the seeds that both have, tested; empty where they cannot be compared.

    That is where datasets, targets or candidates differ, or no metric is shared.
    """
    both = [seed for seed in of if seed in first]
    runs = [run[seed] for run in (of, first) for seed in both]
    if not both or any(
        run.dataset != runs[0].dataset or not run.values.select(KEYS).equals(runs[0].values.select(KEYS))
        for run in runs
    ):
        return {}
    try:
        return compare(averaged([of[seed] for seed in both]), averaged([first[seed] for seed in both]), samples=samples)
    except DataError:
        return {}


def corrected(
    tested: Mapping[Tested, Mapping[str, Mapping[str, Comparison]]],
) -> dict[Tested, dict[str, dict[str, float | None]]]:
    """The p-values of all t-tests, by protocol and metric; those of one metric are corrected together, by Holm."""
    found: dict[Tested, dict[str, dict[str, float | None]]] = {name: {} for name in tested}
    metrics = [(protocol, metric) for of in tested.values() for protocol, by_name in of.items() for metric in by_name]
    for protocol, metric in dict.fromkeys(metrics):
        of_metric = {name: of[protocol][metric] for name, of in tested.items() if metric in of.get(protocol, {})}
        for name, p in zip(of_metric, holm([test.p_ttest for test in of_metric.values()]), strict=True):
            found[name].setdefault(protocol, {})[metric] = p
    return found


def averaged(runs: Sequence[Run]) -> pl.DataFrame:
    """Per-user values, the metrics averaged over runs that hold the same targets."""
    metrics = [
        np.mean([run.values[name].to_numpy() for run in runs], axis=0) for name in metric_columns(runs[0].values)
    ]
    names = metric_columns(runs[0].values)
    return runs[0].values.with_columns(pl.Series(name, of) for name, of in zip(names, metrics, strict=True))
