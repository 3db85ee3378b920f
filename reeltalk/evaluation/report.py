"""What an evaluation found, and the folder that keeps it: report.json, per_user.parquet, report.html.

``report.json`` has these keys: system, protocol, metrics, user_means, segments, seeds, systems, comparisons, dataset,
model, versions. ``metrics`` is ``{"sampled": {"recall@10": {"mean", "low", "high"}, ..}, "full": {..}}``; each of
``systems`` has the same ``metrics`` and ``segments``, the reported system among them. ``comparisons`` holds the
reported system against each other.

``per_user.parquet`` has one row a (user, target): user_id, user_key, target, time, split, for each protocol the rank of
the first positive and the number of candidates (``sampled.rank``, ``sampled.candidates``) and every metric
(``sampled.recall@10``), and for each segment whether the target belongs to it (``segments.users.cold-start``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from reeltalk.artifacts import Manifest, new_folder, versions, write_json, write_manifest
from reeltalk.evaluation.significance import PER_USER, Comparison

KIND = "report"
REPORT = "report.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Interval:
    """A mean over targets and its bootstrap interval; the bounds are None where none was asked for or makes sense."""

    mean: float
    low: float | None = None
    high: float | None = None


Metrics = dict[str, dict[str, Interval]]  # protocol -> metric


@dataclass(frozen=True)
class Segment:
    """Metrics over the targets of a segment; no metrics where it has no target."""

    targets: int
    users: int
    metrics: Metrics


@dataclass(frozen=True)
class SystemResult:
    """What one system reached."""

    metrics: Metrics
    segments: dict[str, dict[str, Segment]]  # partition -> segment


@dataclass(frozen=True)
class Report:
    """One system's figures, how they were measured, and those of the systems measured beside it.

    `user_means` are means over users of each user's mean: where they differ from `metrics`, users with many targets
    fare better or worse than those with few.
    """

    system: str
    protocol: dict[str, Any]
    metrics: Metrics
    user_means: dict[str, dict[str, float]]
    segments: dict[str, dict[str, Segment]]
    seeds: dict[str, int | None]
    systems: Mapping[str, SystemResult]
    comparisons: dict[str, dict[str, dict[str, Comparison]]]  # other system -> protocol -> metric
    dataset: dict[str, Any]  # digest, source, figures
    per_user: pl.DataFrame

    def document(self, *, model: Manifest | None = None) -> dict[str, Any]:
        """What ``report.json`` holds; `model` is the manifest of the model folder, None for a floor."""
        seeds = dict(self.seeds)
        if model is not None:
            seeds["model"] = _find(model.config, "seed")
        return {
            "system": self.system,
            "protocol": self.protocol,
            "metrics": {name: _plain(found) for name, found in self.metrics.items()},
            "user_means": self.user_means,
            "segments": {name: _plain(found) for name, found in self.segments.items()},
            "seeds": seeds,
            "systems": _plain(self.systems),
            "comparisons": {
                other: {protocol: _plain(found) for protocol, found in by_protocol.items()}
                for other, by_protocol in self.comparisons.items()
            },
            "dataset": self.dataset,
            "model": None
            if model is None
            else {"digest": model.digest, "config": model.config, "versions": model.versions},
            "versions": versions(),
        }


def write_report(
    report: Report,
    out: Path,
    *,
    model: Manifest | None = None,
    training_log: pl.DataFrame | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a report folder; raises ArtifactError where `out` holds something else.

    `training_log` has a column step, columns whose names contain "loss", and others (validation metrics); epoch and
    seconds are left out of its plot.
    """
    from reeltalk.evaluation.page import render

    document = report.document(model=model)
    parents = {"dataset": str(report.dataset["digest"])} | ({} if model is None else {"model": model.digest})
    with new_folder(out, kind=KIND, overwrite=overwrite) as folder:
        write_json(folder / REPORT, document)
        report.per_user.write_parquet(folder / PER_USER)
        (folder / PAGE).write_text(render(document, training_log=training_log), encoding="utf-8")
        manifest = write_manifest(
            folder,
            kind=KIND,
            config={"system": report.system, "protocol": report.protocol},
            parents=parents,
            facts={protocol: {name: found.mean for name, found in m.items()} for protocol, m in report.metrics.items()},
        )
    return manifest


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in found.items()}


def _find(config: Mapping[str, Any], name: str) -> int | None:
    """The first value of that name, at any depth of a config."""
    for key, value in config.items():
        if key == name and isinstance(value, int):
            return value
        if isinstance(value, Mapping) and (found := _find(value, name)) is not None:
            return found
    return None
