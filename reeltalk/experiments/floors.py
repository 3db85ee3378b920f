"""The floors of a task as a step of their own: where many systems are measured on one dataset, once is enough."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reeltalk.api import Dataset, EvaluationSettings, TextTable, evaluate, floors
from reeltalk.artifacts import Manifest, new_folder, write_manifest
from reeltalk.data.dataset import Task
from reeltalk.text.lookup import TextLookup

FLOORS = "floors"


def measure_floors(
    dataset: Dataset,
    task: Task,
    *,
    text: TextTable | None,
    settings: EvaluationSettings,
    out: Path,
    parents: Mapping[str, str],
) -> Manifest:
    """Write a folder with the per-user values of each floor, ``NAME.parquet`` as in a report folder."""
    texts = None if text is None else TextLookup.of(dataset, text, with_comments=task == "comment")
    reports = evaluate(dataset, floors(dataset, task, texts=texts, settings=settings), settings=settings)
    with new_folder(out, kind=FLOORS) as folder:
        for name, report in reports.items():
            report.per_user.write_parquet(folder / f"{name}.parquet")
        return write_manifest(folder, kind=FLOORS, config=settings.model_dump(mode="json"), parents=parents)
