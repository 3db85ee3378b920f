"""Chains that take seconds, and a stand-in for alignment where a test needs the order of steps, not an LLM."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from reeltalk.artifacts import read_manifest, resumable_folder, write_manifest
from reeltalk.data.dataset import Dataset
from reeltalk.experiments import runner
from reeltalk.llm.align import parents_of
from reeltalk.llm.settings import AlignSettings
from reeltalk.text.table import KEYS, KIND, VECTORS, TextTable
from reeltalk.training.finetune import finetune
from reeltalk.training.system import System

MODEL = {"dim": 16, "num_layers": 1, "inner_dim": 32, "text_dim": 16}
ALIGN = {"model": MODEL}
TRAIN = {"max_epochs": 1, "batch_size": 16}
TINY: dict[str, Any] = {
    "finetune": {task: {"model": MODEL, "train": TRAIN} for task in ("item", "comment")},
    "evaluate": {"bootstrap_samples": 20},
}


def write_config(path: Path, **sections: Any) -> Path:
    """A chain of tiny models as YAML."""
    path.write_text(yaml.safe_dump(TINY | sections))
    return path


def manifests(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each folder was finished, and what it said of itself then."""
    found = {path: path.stat() for path in folder.rglob("manifest.json")}
    return {str(path.relative_to(folder)): (of.st_mtime_ns, path.read_bytes()) for path, of in found.items()}


def fake_alignment(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Alignment that scales every text vector; returns the list of calls made."""
    calls: list[str] = []

    def align(dataset: Dataset, *, text: TextTable, settings: AlignSettings, out: Path) -> None:
        parents = {"dataset": dataset.manifest.digest, "text": text.encoding}
        config = settings.model_dump(mode="json")
        resumable_folder(out, kind="aligned", config=config, parents=parents)
        calls.append("align")
        if settings.loss.lm == 13:
            raise ArithmeticError("the loss is no number")
        facts = {"seconds": 2.0 + settings.train.seed, "text": str(text.path), "peak_bytes": 5 << 20}
        facts |= {"prompt_tokens": 100, "text_tokens": 1000}
        write_manifest(out, kind="aligned", config=config, parents=parents, facts=facts)

    def encode_aligned(dataset: Dataset, aligned: Path, *, out: Path, settings: object, text: TextTable) -> TextTable:
        if not (out / "manifest.json").is_file():
            calls.append("encode_aligned")
            manifest = read_manifest(aligned, "aligned")
            out.mkdir(parents=True)
            scale = 1 + manifest.config["loss"]["ssc"]
            np.save(out / VECTORS, (text.vectors.astype(np.float32) * scale).astype(np.float16))
            (out / KEYS).write_bytes((text.path / KEYS).read_bytes())
            write_manifest(
                out, kind=KIND, config={"aligned": manifest.digest}, parents={}, facts={"rows": len(text.vectors)}
            )
        return TextTable.load(out)

    def finetune_from(dataset: Dataset, *, start: Path | None = None, out: Path, **options: Any) -> System:
        calls.append("finetune")
        system = finetune(dataset, out=out, **options)
        if start is not None:
            held = read_manifest(out, "model")
            parents = held.parents | {"aligned": read_manifest(start, "aligned").digest}
            write_manifest(out, kind="model", config=held.config, parents=parents, facts=held.facts)
        return system

    for name, functions in (("align", (align, parents_of)), ("aligned", (encode_aligned,))):
        module = ModuleType(f"reeltalk.llm.{name}")
        for function in functions:
            setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "finetune", finetune_from)
    monkeypatch.setattr(runner, "start_settings", lambda settings, start, text: settings)
    return calls
