"""What the commands do, as calls: everything that a program needs is importable from here.

>>> from reeltalk.api import PrepareSettings, load_settings
>>> load_settings(PrepareSettings, overrides=["split=leave_one_out"]).split
'leave_one_out'
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from reeltalk.artifacts import read_manifest, reading_file, refuse_existing
from reeltalk.config import load_settings, save_settings
from reeltalk.data.dataset import Dataset, Split
from reeltalk.data.prepare import PrepareSettings, prepare
from reeltalk.errors import ConfigError, ReeltalkError
from reeltalk.evaluation.floors import floors
from reeltalk.evaluation.protocol import evaluate
from reeltalk.evaluation.ranker import CatalogueRanker, Ranker
from reeltalk.evaluation.report import Report, write_report
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.evaluation.significance import Comparison, compare
from reeltalk.llm.align import align
from reeltalk.llm.aligned import encode_aligned, is_aligned
from reeltalk.llm.settings import AlignSettings
from reeltalk.text.encode import EncodeSettings
from reeltalk.text.encode import encode as encode_anew
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.training.finetune import finetune
from reeltalk.training.pretrain import PretrainSettings, pretrain, pretrain_settings
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.requests import History, recommend_comments, recommend_items, user_vectors
from reeltalk.training.settings import FinetuneSettings, finetune_settings
from reeltalk.training.system import System, load_system

__all__ = [
    "AlignSettings",
    "CatalogueRanker",
    "Comparison",
    "Dataset",
    "EncodeSettings",
    "EvaluationSettings",
    "FinetuneSettings",
    "History",
    "PrepareSettings",
    "PretrainSettings",
    "Ranker",
    "ReeltalkError",
    "Report",
    "Split",
    "System",
    "SystemRanker",
    "TextTable",
    "align",
    "compare",
    "encode",
    "encode_aligned",
    "evaluate",
    "evaluate_model",
    "finetune",
    "finetune_settings",
    "floors",
    "load_settings",
    "load_system",
    "prepare",
    "pretrain",
    "pretrain_settings",
    "recommend_comments",
    "recommend_items",
    "save_settings",
    "user_vectors",
    "write_report",
]


def encode(
    dataset: Dataset, *, out: str | Path, settings: EncodeSettings | None = None, text: TextTable | None = None
) -> TextTable:
    """Encode every distinct text of the dataset, once, with the encoder that the settings name, into the folder `out`.

    The encoder may be a folder that `align` wrote; what it started from is then found by the recorded path, unless it
    is given as `text`. Killed and run again, it goes on where it was; of a finished folder only missing texts are
    encoded. Raises ConfigError where the encoder cannot be loaded or used so, ArtifactError where `out` holds vectors
    of another encoder or other settings, or something else.
    """
    settings = settings or EncodeSettings()
    if is_aligned(settings.encoder):
        return encode_aligned(dataset, Path(settings.encoder).expanduser(), out=Path(out), settings=settings, text=text)
    if not settings.is_mapped:
        raise ConfigError(f"is_mapped=false is for an aligned folder, but {settings.encoder!r} is none; leave it out")
    if text is not None:
        raise ConfigError(f"{text.path} is what an aligned folder started from, but {settings.encoder!r} is none")
    return encode_anew(dataset, out=Path(out), settings=settings)


def evaluate_model(
    model: str | Path,
    *,
    out: str | Path,
    dataset: Dataset | None = None,
    text: TextTable | None = None,
    split: Split = Split.TEST,
    settings: EvaluationSettings | None = None,
    with_floors: bool = True,
    overwrite: bool = False,
) -> Report:
    """Measure a model folder, beside the floors of its task by default, and write the report folder `out`.

    Dataset and text are those that the model was made from unless given; beside a model that reads none, `text` is for
    the floor that does: text similarity, in the model's own vectors where it has some, so of an aligned one in those of
    the aligned LLM. Raises ArtifactError where folders do not belong together or `out` holds something else.
    """
    refuse_existing(Path(out), kind="report", overwrite=overwrite)
    manifest = read_manifest(Path(model), "model")
    reads_text = manifest.facts["text"] is not None
    system = load_system(model, dataset=dataset, text=text if reads_text else None)
    texts = system.feed.text if reads_text else None
    if texts is None and text is not None:
        texts = TextLookup.of(system.dataset, text, with_comments=system.settings.task == "comment")
    ranker = SystemRanker(system)
    beside = floors(system.dataset, ranker.task, texts=texts, settings=settings) if with_floors else {}
    rankers = {ranker.name: ranker, **beside}
    report = evaluate(system.dataset, rankers, split=split, settings=settings)[ranker.name]
    write_report(report, Path(out), model=manifest, training_log=_training_log(Path(model)), overwrite=overwrite)
    return report


def _training_log(model: Path) -> pl.DataFrame | None:
    """The CSV logs of a model folder, one a run that was interrupted, as one; None where it was logged another way.

    A log that a kill left without a row is passed over.
    """
    log: pl.DataFrame | None = None
    logs = [path for path in (model / "logs").glob("version_*/metrics.csv") if path.stat().st_size]
    for path in sorted(logs, key=lambda path: int(path.parent.name.removeprefix("version_"))):
        with reading_file(path):
            of_run = pl.read_csv(path, infer_schema_length=None)
        if of_run.is_empty():
            continue
        before = pl.DataFrame() if log is None else log.filter(pl.col("step") < of_run["step"].min())
        log = pl.concat([before, of_run], how="diagonal_relaxed")
    return log
