"""The floors of a task as a step of their own: where many systems are measured on one dataset, once is enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reeltalk.api import Dataset, EvaluationSettings, Split, TextTable, evaluate, floors
from reeltalk.artifacts import Manifest, new_folder, write_manifest
from reeltalk.data.dataset import Task
from reeltalk.evaluation.item_to_item import EASE, ItemKNN
from reeltalk.evaluation.measure import SavedCandidates
from reeltalk.text.lookup import TextLookup

FLOORS = "floors"
TRIED = {"item_knn": {"shrinkage": [0.0, 10.0, 50.0, 200.0]}, "ease": {"regularisation": [50.0, 200.0, 500.0, 2000.0]}}
MAX_TARGETS = 20_000  # of validation, drawn where there are more


def floor_config(task: Task, settings: EvaluationSettings) -> dict[str, Any]:
    """What a folder of floors is asked for."""
    return settings.model_dump(mode="json") | ({"tried": TRIED} if task == "item" else {})


def measure_floors(
    dataset: Dataset,
    task: Task,
    *,
    text: TextTable | None,
    settings: EvaluationSettings,
    out: Path,
    parents: Mapping[str, str],
) -> Manifest:
    """Write a folder with the per-user values of each floor, ``NAME.parquet`` as in a report folder.

    Item-kNN and EASE have the settings that `chosen_on_validation` finds; its facts tell them.
    """
    texts = None if text is None else TextLookup.of(dataset, text, with_comments=task == "comment")
    chosen = chosen_on_validation(dataset, settings) if task == "item" else {}
    tuned = {name: getattr(settings, name).model_copy(update=values) for name, values in chosen.items()}
    of_floors = floors(dataset, task, texts=texts, settings=settings.model_copy(update=tuned))
    reports = evaluate(dataset, of_floors, settings=settings)
    with new_folder(out, kind=FLOORS) as folder:
        for name, report in reports.items():
            report.per_user.write_parquet(folder / f"{name}.parquet")
        config = floor_config(task, settings)
        return write_manifest(folder, kind=FLOORS, config=config, parents=parents, facts={"chosen": chosen})


def chosen_on_validation(dataset: Dataset, settings: EvaluationSettings) -> dict[str, dict[str, float]]:
    """The settings `TRIED` of item-kNN and EASE with the best NDCG@10 among the saved candidates of validation targets.

    Nothing for EASE where it is left out, and nothing at all where there is no validation target.
    """
    targets = dataset.candidates("item", Split.VALID)
    if targets.is_empty():
        return {}
    if len(targets) > MAX_TARGETS:
        targets = targets.sample(MAX_TARGETS, seed=settings.seed).sort("target")
    saved = SavedCandidates("item", targets, ks=(10,), seed=settings.seed)

    def value(ranker: ItemKNN | EASE) -> float:
        return float(saved.measure(ranker, lambda targets: None).metrics["ndcg@10"].mean())

    shrinkages, regularisations = TRIED["item_knn"]["shrinkage"], TRIED["ease"]["regularisation"]
    of_knn = {
        each: value(ItemKNN.of(dataset, settings.item_knn.model_copy(update={"shrinkage": each})))
        for each in shrinkages
    }
    chosen = {"item_knn": {"shrinkage": max(shrinkages, key=of_knn.__getitem__)}}
    if dataset.num_items <= settings.ease.max_items:
        of_ease = {
            each: value(EASE.of(dataset, settings.ease.model_copy(update={"regularisation": each})))
            for each in regularisations
        }
        chosen["ease"] = {"regularisation": max(regularisations, key=of_ease.__getitem__)}
    return chosen
