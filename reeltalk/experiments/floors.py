"""The floors of a task as a step of their own: where many systems are measured on one dataset, once is enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reeltalk.api import Dataset, EvaluationSettings, Split, TextTable, evaluate, floors
from reeltalk.artifacts import Manifest, new_folder, write_manifest
from reeltalk.data.dataset import Task
from reeltalk.evaluation.item_to_item import EASE, ItemKNN
from reeltalk.evaluation.metrics import METRIC
from reeltalk.text.lookup import TextLookup
from reeltalk.training.settings import TrainSettings

FLOORS = "floors"
TRIED = {  # beside the value that is given
    "item_knn": {"shrinkage": [0.0, 10.0, 50.0, 200.0]},
    "ease": {"regularisation": [50.0, 200.0, 500.0, 2000.0]},
}
_OF_THE_CHOICE = ("monitor", "monitor_protocol", "exclude_seen", "max_validation_targets")


def floor_config(task: Task, settings: EvaluationSettings, train: TrainSettings) -> dict[str, Any]:
    """What a folder of floors is asked for."""
    config = settings.model_dump(mode="json")
    if task == "item":
        config |= {"tried": TRIED, "chosen_by": train.model_dump(include=set(_OF_THE_CHOICE))}
    return config


def measure_floors(
    dataset: Dataset,
    task: Task,
    *,
    text: TextTable | None,
    settings: EvaluationSettings,
    train: TrainSettings,
    out: Path,
    parents: Mapping[str, str],
) -> Manifest:
    """Write a folder with the per-user values of each floor, ``NAME.parquet`` as in a report folder.

    Item-kNN and EASE have the settings that `chosen_on_validation` finds; its facts tell them.
    """
    texts = None if text is None else TextLookup.of(dataset, text, with_comments=task == "comment")
    chosen = chosen_on_validation(dataset, settings, train) if task == "item" else {}
    tuned = {name: getattr(settings, name).model_copy(update=values) for name, values in chosen.items()}
    rankers = floors(dataset, task, texts=texts, settings=settings.model_copy(update=tuned))
    reports = evaluate(dataset, rankers, settings=settings)
    with new_folder(out, kind=FLOORS) as folder:
        for name, report in reports.items():
            report.per_user.write_parquet(folder / f"{name}.parquet")
        config = floor_config(task, settings, train)
        return write_manifest(folder, kind=FLOORS, config=config, parents=parents, facts={"chosen": chosen})


def chosen_on_validation(
    dataset: Dataset, settings: EvaluationSettings, train: TrainSettings
) -> dict[str, dict[str, float]]:
    """The settings of item-kNN and EASE, of those in `TRIED`, that a model's training would have picked.

    They have the best monitored metric over the validation targets, in the protocol that models are monitored in; where
    there are more than `max_validation_targets`, of so many, drawn for the floors. Nothing for EASE where it is left
    out, and nothing at all where there is no validation target.
    """
    if dataset.candidates("item", Split.VALID).is_empty():
        return {}
    match = METRIC.fullmatch(train.monitor)
    assert match is not None
    as_monitored = settings.model_copy(
        update={
            "ks": (int(match["k"] or settings.ks[0]),),
            "full_ranking": train.monitor_protocol == "full",
            "exclude_seen": train.exclude_seen,
            "max_targets": train.max_validation_targets,
            "bootstrap_samples": 0,
        }
    )

    def value(ranker: ItemKNN | EASE) -> float:
        report = evaluate(dataset, {"floor": ranker}, split=Split.VALID, settings=as_monitored)["floor"]
        return report.metrics[train.monitor_protocol][train.monitor].mean

    chosen = {}
    for name, floor in (("item_knn", ItemKNN), ("ease", EASE)):
        given = getattr(settings, name)
        if name == "ease" and dataset.num_items > settings.ease.max_items:
            continue
        ((field, values),) = TRIED[name].items()
        tried = sorted({*values, getattr(given, field)})
        reached = [value(floor.of(dataset, given.model_copy(update={field: each}))) for each in tried]
        chosen[name] = {field: tried[reached.index(max(reached))]}
    return chosen
