"""How systems are measured: the same targets, candidates, tie breaks and bootstrap draws for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.progress import Progress

from reeltalk.data.dataset import Dataset, Split, Task
from reeltalk.errors import ConfigError, DataError
from reeltalk.evaluation.measure import Catalogue, Measured, SavedCandidates
from reeltalk.evaluation.ranker import CatalogueRanker, Ranker
from reeltalk.evaluation.report import Report
from reeltalk.evaluation.segments import Segments, segments
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.evaluation.significance import Users, too_few
from reeltalk.evaluation.summary import Table, per_user_values, system_results

_Measured = dict[str, dict[str, Measured]]  # system -> protocol


def evaluate(
    dataset: Dataset,
    rankers: Mapping[str, Ranker],
    *,
    split: Split = Split.TEST,
    settings: EvaluationSettings | None = None,
) -> dict[str, Report]:
    """Measure systems of one task beside each other; the report of each holds the figures of all.

    Raises ConfigError where rankers are of different tasks or full ranking is asked for comments, DataError where the
    split has no target or a score is not finite.
    """
    settings = settings or EvaluationSettings()
    task, is_full = _task(rankers, settings)
    targets = _targets(dataset, task, split, settings)
    saved = SavedCandidates(task, targets, ks=settings.ks, seed=settings.seed)
    catalogue = None
    if is_full:
        catalogue = Catalogue(dataset, targets, exclude_seen=settings.exclude_seen, ks=settings.ks, seed=settings.seed)
    measured: _Measured = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name, ranker in rankers.items():
            row = bar.add_task(f"ranking by {name}", total=len(targets) * (1 + is_full))
            advance = partial(bar.advance, row)
            measured[name] = {"sampled": saved.measure(ranker, advance)}
            if catalogue is not None and isinstance(ranker, CatalogueRanker):
                measured[name]["full"] = catalogue.measure(ranker, advance)
        bar.add_task("drawing users for the intervals", total=None)
        return _reports(dataset, targets, settings, task, split, measured)


def _task(rankers: Mapping[str, Ranker], settings: EvaluationSettings) -> tuple[Task, bool]:
    """The task that all rankers share, and whether the catalogue is ranked."""
    tasks = {ranker.task for ranker in rankers.values()}
    if len(tasks) != 1:
        told = ", ".join(f"{name} ({ranker.task})" for name, ranker in rankers.items()) or "none"
        raise ConfigError(f"rankers of one task can be measured beside each other; got {told}")
    task = tasks.pop()
    if settings.full_ranking and task == "comment":
        raise ConfigError("full_ranking=true is for the item task; comments are ranked among those of the watched item")
    return task, task == "item" and settings.full_ranking is not False


def _targets(dataset: Dataset, task: Task, split: Split, settings: EvaluationSettings) -> pl.DataFrame:
    targets = dataset.candidates(task, split)
    if targets.is_empty():
        raise DataError(
            f"{dataset.path} has no {split.name.lower()} target of the {task} task; prepare it with a longer window, "
            "or evaluate another split"
        )
    if 0 < settings.max_targets < len(targets):
        rng = np.random.default_rng([settings.seed, 3])
        return targets[np.sort(rng.choice(len(targets), settings.max_targets, replace=False))]
    return targets


def _reports(
    dataset: Dataset, targets: pl.DataFrame, settings: EvaluationSettings, task: Task, split: Split, measured: _Measured
) -> dict[str, Report]:
    """Everything that is known once all targets are ranked, as one report a system."""
    users = targets["user_id"].to_numpy()
    samples, seed = settings.bootstrap_samples, settings.seed
    parts = segments(
        dataset,
        task,
        targets,
        user_long_tail=settings.user_long_tail,
        item_long_tail=settings.item_long_tail,
        history_bins=settings.history_bins,
    )
    table = Table.of(measured, users, samples=samples, confidence=settings.confidence, seed=seed)
    systems = system_results(measured, table, parts, samples=samples, seed=seed)
    user_means = table.user_means()
    known = ("source", "clock", "num_users", "num_items", "num_comments", "num_item_events", "num_comment_records")
    return {
        system: Report(
            system=system,
            protocol=_protocol(dataset, targets, settings, task, split, measured[system], parts),
            metrics=systems[system].metrics,
            user_means=user_means[system],
            segments=systems[system].segments,
            seeds={"evaluation": seed, "candidates": dataset.manifest.config.get("seed")},
            systems=systems,
            comparisons={other: table.compare(system, other) for other in systems if other != system},
            dataset={
                "digest": dataset.manifest.digest,
                **{name: dataset.manifest.facts[name] for name in known if name in dataset.manifest.facts},
            },
            per_user=per_user_values(measured[system], targets, parts, dataset.users),
        )
        for system in systems
    }


def _protocol(
    dataset: Dataset,
    targets: pl.DataFrame,
    settings: EvaluationSettings,
    task: Task,
    split: Split,
    measured: Mapping[str, Measured],
    parts: Segments,
) -> dict[str, Any]:
    """How the figures came about, in figures and in words."""
    facts, config = dataset.manifest.facts, dataset.manifest.config
    comments = (
        "the positives and other comments of the watched item, not the user's own, that existed at the target's time"
    )
    whole = "all items that existed at the target's time"
    is_active = config.get("item_negatives") == "active"
    drawn = f"items active in the {config.get('active_days')} days before" if is_active else "items that existed"
    items = f"the positive and items drawn once among {drawn}, none of which the user had turned to"
    saved = {"item": items, "comment": comments}
    words = {
        "sampled": f"the dataset's saved candidates: {saved[task]}",
        "full": f"{whole}, without those the user had turned to before (all stay where the positive is one of them)"
        if settings.exclude_seen
        else whole,
    }
    days = {name: _date(facts.get(name)) for name in ("valid_from", "test_from")}
    return {
        "task": task,
        "split": split.name.lower(),
        "dataset_split": facts.get("split"),
        **days,
        "targets": len(targets),
        "users": targets["user_id"].n_unique(),
        "settings": settings.model_dump(mode="json"),
        "candidates": {
            name: {"are": words[name], "mean": float(found.candidates.mean()), "most": int(found.candidates.max())}
            for name, found in measured.items()
        },
        "mean": "over targets, never over means; user_means are means over users of each user's mean",
        "ties": "equal scores are ordered at random, the same draw for every system",
        "intervals": _intervals(targets["user_id"].to_numpy(), settings),
        "segments": {"user_long_tail": parts.user_long_tail, "item_long_tail": parts.item_long_tail},
    }


def _intervals(users: Users, settings: EvaluationSettings) -> str:
    if settings.bootstrap_samples == 0:
        return "none were asked for"
    if too_few(users):
        return "none, as too few users have targets, or one too many of them; nor are there p-values"
    return f"{settings.confidence:.0%} percentile bootstrap over users, {settings.bootstrap_samples} draws"


def _date(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")
