"""Alignment (LSVCR stage 1): the sequential model and the LLM recommender learn from each other; a folder is written.

Paper: LSVCR (arXiv 2403.13574), section 4.3; eq 15 is the sum of the losses.
Differs from the paper: before the LLM joins, the sequential model and its text map are warmed up by eq 14 alone, on the
    vectors of a text table, the map starting as a whitened PCA of those; learning rates by part; they fall linearly to
    zero. `train.warm_steps=0` and equal rates give the paper's schedule.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from torch import Tensor

from reeltalk.artifacts import resumable_folder, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.dataset import Dataset
from reeltalk.data.instances import Targets
from reeltalk.errors import ConfigError
from reeltalk.llm.feed import AlignBatches, instances_of
from reeltalk.llm.module import AlignModule
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings
from reeltalk.lock import only_writer
from reeltalk.memory import keep_freed_memory, peak_bytes
from reeltalk.models import build
from reeltalk.models.lsvcr import LSVCR, PCA_TEXTS
from reeltalk.text.checkpoint import weights_of
from reeltalk.text.lookup import TextLookup
from reeltalk.text.table import TextTable
from reeltalk.training.start import ALIGNED, SEQUENTIAL
from reeltalk.training.system import CONFIG
from reeltalk.training.trainer import CHECKPOINTS, fit, new_trainer
from reeltalk.weights import save_weights

LLM = "llm"


def align(dataset: Dataset, *, text: TextTable, settings: AlignSettings, out: Path) -> None:
    """Align the sequential model with an LLM and write the folder `out`; interrupted and run again, it goes on.

    `text` holds every text of the dataset as the LLM encodes it before alignment (`reeltalk encode --encoder`, the
    LLM's name); with a frozen encoder it is that encoder's. With `train.steps=0` no LLM is loaded, and what is written
    is the warm start; without one too, the start as it was drawn.

    Raises ConfigError where LLM or settings cannot be used or `text` is of another model, ArtifactError where `out`
    holds something else or a run with other settings or parents, or `text` lacks texts, DataError where there is
    nothing to align on.
    """
    keep_freed_memory()
    train = settings.train
    if train.batch_size % train.devices or train.warm_batch_size % train.devices:
        raise ConfigError(f"batches of {train.batch_size} and {train.warm_batch_size} do not divide by {train.devices}")
    # a text that is not there is told now, not when its turn comes
    TextLookup.of(dataset, text, with_comments=settings.data.comments)
    trainer = new_trainer(out, train, log_every=10, max_steps=train.warm_steps + train.steps, max_epochs=-1)
    module = new_module(dataset, text, settings, device=str(trainer.strategy.root_device))
    config, parents = settings.model_dump(mode="json"), parents_of(dataset, text, settings)
    with only_writer(out):
        is_resumed = resumable_folder(out, kind=ALIGNED, config=config, parents=parents)
        save_settings(settings, out / CONFIG)
        if trainer.max_steps:
            fit(trainer, module, out, is_resumed=is_resumed)
        if trainer.is_global_zero:
            _finish(out, module, config=config, parents=parents, dataset=dataset, text=text)
        trainer.strategy.barrier()


def parents_of(dataset: Dataset, text: TextTable, settings: AlignSettings) -> dict[str, str]:
    """What an aligned folder was made from: the digests of dataset and text vectors, and of an LLM that made neither.

    The weights of an LLM whose vectors alignment starts from are told by those. Raises ConfigError where there is no
    such LLM.
    """
    parents = {"dataset": dataset.manifest.digest, "text": text.encoding}
    if settings.encoder == "frozen" and settings.train.steps:
        llm = settings.llm
        parents["llm"] = weights_of(llm.name, trust_remote_code=llm.trust_remote_code)
    return parents


def new_module(dataset: Dataset, text: TextTable, settings: AlignSettings, *, device: str = "auto") -> AlignModule:
    """What is trained, at its start: the seed fixes it. The LLM is on `device`, or will be divided over several.

    Raises as `align`.
    """
    train = settings.train
    torch.manual_seed(train.seed)
    recommender = cast(
        LSVCR,
        build(
            "lsvcr",
            "item",
            settings.model,
            titles=torch.zeros(1, text.width),
            history_length=settings.data.num_positions,
            seed=train.seed,
        ),
    )
    llm = None
    if train.steps:
        llm = LLMRecommender(settings.llm, dim=settings.model.dim, device=device, will_be_sharded=train.shard_llm)
    if llm is not None and settings.encoder == "llm":
        _require_same_model(llm, text)
    instances = instances_of(dataset, settings)
    recommender.start_text_map(_sample(dataset, text, instances.targets, seed=train.seed))
    return AlignModule(recommender, llm, AlignBatches(instances, text, settings, llm)).train()


def _finish(
    out: Path,
    module: AlignModule,
    *,
    config: dict[str, Any],
    parents: dict[str, str],
    dataset: Dataset,
    text: TextTable,
) -> None:
    save_weights(module.recommender.state_dict(), out / SEQUENTIAL)
    if module.llm is not None:
        module.llm.save(out / LLM)
    counts = {name: round(value, 1) for name, value in module.counts.items()}
    facts = counts | {
        "losses": {name: round(float(np.mean(values)), 4) for name, values in module.recent.items()},
        "peak_bytes": peak_bytes(),
        "num_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "dataset": str(dataset.path.resolve()),
        "text": str(text.path.resolve()),
        "trained_encoder": module.llm is not None and module.align_settings.encoder == "llm",
    }
    write_manifest(out, kind=ALIGNED, config=config, parents=parents, facts=facts, leave_out=(CHECKPOINTS,))
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)


def _require_same_model(llm: LLMRecommender, text: TextTable) -> None:
    held = text.manifest.config
    if held.get("weights") != llm.weights or held.get("pooling") != "mean" or held.get("prefix"):
        raise ConfigError(
            f"{text.path} holds vectors of encoder {held.get('encoder')!r} ({held.get('pooling')} pooling), but the "
            f"LLM is {llm.settings.name!r}, whose vectors (mean pooling) the sequential model starts from; run "
            f"`reeltalk encode` with --encoder {llm.settings.name}, or keep that encoder with --set encoder=frozen"
        )


def _sample(dataset: Dataset, text: TextTable, targets: Targets, *, seed: int) -> Tensor:
    """For a PCA: vectors of some of the titles and comments that are training targets, and so of no later text."""
    titles = dataset.items["title"].gather(np.unique(targets.item) - 1)
    comments = dataset.comments["text"].gather(np.unique(targets.comment[targets.comment > 0]) - 1)
    texts = pl.concat([titles, comments.alias("title")]).unique(maintain_order=True)
    texts = texts.filter(texts.str.strip_chars() != "")
    drawn = np.random.default_rng(seed).permutation(len(texts))[:PCA_TEXTS]
    return torch.from_numpy(text.vectors[text.rows(texts.gather(np.sort(drawn)))].astype(np.float32))
