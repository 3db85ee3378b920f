"""Alignment (LSVCR stage 1): the sequential model and the LLM recommender learn from each other; a folder is written.

Paper: LSVCR (arXiv 2403.13574), section 4.3; eq 15 is the sum of the losses.
Differs from the paper: before the LLM joins, the sequential model and its text map are warmed up by eq 14 alone, on the
    vectors of a text table, the map starting as a whitened PCA; learning rates by part; they fall linearly to zero.
    `train.warm_steps=0` and equal rates give the paper's schedule.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from reeltalk.artifacts import resumable_folder, write_manifest
from reeltalk.config import save_settings
from reeltalk.data.batch import AlignmentBatch
from reeltalk.data.dataset import Dataset
from reeltalk.data.instance_stream import Instances
from reeltalk.data.instances import InstanceBatch
from reeltalk.errors import ArtifactError, ConfigError
from reeltalk.llm.prompts import Order, Prompt, PromptWriter
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignSettings, AlignTrainSettings
from reeltalk.memory import keep_freed_memory, peak_bytes
from reeltalk.models import build
from reeltalk.models.lsvcr import LSVCR
from reeltalk.objectives import Terms, alignment_objective
from reeltalk.text.encoder import tokenize
from reeltalk.text.table import TextTable
from reeltalk.training.start import ALIGNED, CONFIG, SEQUENTIAL
from reeltalk.training.trainer import CHECKPOINTS, StageModule, fit

LLM = "llm"
_ORDERS: tuple[Order, ...] = ("items_first", "records_first")
_ORDER_STREAM = 3  # of random numbers; those before it are the instances'
_PCA_TEXTS = 20_000
_TOKENS_ON_CPU, _TOKENS_ON_GPU = 8_192, 65_536  # at once through the LLM
_MEAN_LOSSES_OVER = 50  # steps, for what the manifest tells of the end


@dataclass(frozen=True)
class AlignExample:
    """A step's instances: the SR model's side, and for the LLM prompts and token ids of the distinct texts.

    text_UE: vectors of the table, in the warm start and with a frozen encoder; otherwise None.
    """

    batch: AlignmentBatch
    prompts: list[Prompt]
    text_ids: list[list[int]]
    text_UE: Tensor | None


class AlignBatches:
    """All steps of a run, beginning with the first that was not done: warm ones, then those with the LLM."""

    def __init__(
        self, instances: Instances, table: TextTable, settings: AlignSettings, llm: LLMRecommender | None
    ) -> None:
        self.instances, self.table, self.settings, self.llm = instances, table, settings, llm
        self.writer = None
        if llm is not None:
            self.writer = PromptWriter(llm.tokenizer, settings.prompt, max_tokens=llm.max_tokens)
        self.steps_done = 0  # the module counts, checkpoints keep it
        self.rank, self.num_ranks = 0, 1

    def state_dict(self) -> dict[str, int]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps_done = state["steps_done"]

    def __len__(self) -> int:
        return self.settings.train.warm_steps + self.settings.train.steps

    def __iter__(self) -> Iterator[AlignExample]:
        train = self.settings.train
        # the stream goes on behind what the warm start took of it
        behind_warm = -(-train.warm_steps * train.warm_batch_size // train.batch_size)
        for step in range(self.steps_done, len(self)):
            if step < train.warm_steps:
                yield self._warm_example(self._instances(step, train.warm_batch_size))
            else:
                at = behind_warm + step - train.warm_steps
                yield self._example(self._instances(at, train.batch_size), at)

    def _instances(self, step: int, batch_size: int) -> InstanceBatch:
        return self.instances.batch(
            step, batch_size=batch_size // self.num_ranks, rank=self.rank, num_ranks=self.num_ranks
        )

    def _warm_example(self, told: InstanceBatch) -> AlignExample:
        return AlignExample(AlignmentBatch.of(told), [], [], table_vectors(self.table, told.texts))

    def _example(self, told: InstanceBatch, step: int) -> AlignExample:
        assert self.llm is not None
        is_frozen = self.settings.encoder == "frozen"
        max_tokens = min(self.settings.train.max_text_tokens, self.llm.max_tokens)
        return AlignExample(
            AlignmentBatch.of(told),
            self._prompts(told, step),
            [] if is_frozen else [[], *tokenize(self.llm.tokenizer, told.texts[1:], max_tokens=max_tokens)],
            table_vectors(self.table, told.texts) if is_frozen else None,
        )

    def _prompts(self, told: InstanceBatch, step: int) -> list[Prompt]:
        """A prompt an instance, in one of the two orders of histories, which its place in the stream decides."""
        loss = self.settings.loss
        if not (loss.lm or loss.ssc or loss.vcc):
            return []
        assert self.writer is not None
        first = step * self.settings.train.batch_size + self.rank
        places = range(first, first + len(told.instances) * self.num_ranks, self.num_ranks)
        seed = [self.settings.train.seed, _ORDER_STREAM]
        return [
            self.writer.write(
                instance.items,
                instance.records,
                task=instance.task,
                order=_ORDERS[np.random.default_rng([*seed, place]).integers(2)],
                watched=instance.watched or "",
                target=instance.target if loss.lm else "",
            )
            for place, instance in zip(places, told.instances, strict=True)
        ]


def table_vectors(table: TextTable, texts: list[str]) -> Tensor:
    """The table's vectors of some texts: float32 [U, E], zeros where a text is empty."""
    rows = table.rows(texts)
    vectors = table.vectors[np.maximum(rows, 0)].astype(np.float32)
    vectors[rows < 0] = 0
    return torch.from_numpy(vectors)


class AlignModule(StageModule):
    """One step: eq 15. What the LLM has frozen is in no checkpoint."""

    def __init__(self, recommender: LSVCR, llm: LLMRecommender | None, batches: AlignBatches) -> None:
        super().__init__()
        self.recommender, self.llm, self.batches = recommender, llm, batches
        self.align_settings = batches.settings
        self.settings: AlignTrainSettings = batches.settings.train
        self.weights = batches.settings.loss.model_dump()
        self.strict_loading = False  # `on_load_checkpoint` is, of what is trained
        self.counts = {"warm_seconds": 0.0, "seconds": 0.0, "prompts": 0, "prompt_tokens": 0, "text_tokens": 0}
        self.counts |= {"dropped_events": 0, "shortened_texts": 0}
        self.recent: dict[str, list[float]] = {}
        self._began = 0.0

    def train_dataloader(self) -> AlignBatches:
        self.batches.rank, self.batches.num_ranks = self.global_rank, self.trainer.world_size
        return self.batches

    def configure_optimizers(self) -> Any:
        """AdamW with learning rates by part; the warm start's is the sequential model's rate before the LLM joins."""
        train = self.settings
        rates = [train.sequential_learning_rate]
        groups: list[dict[str, Any]] = [{"params": list(self.recommender.parameters()), "lr": 1.0}]
        if self.llm is not None:
            rates += [train.learning_rate, train.head_learning_rate]
            lora = [parameter for parameter in self.llm.lora.parameters() if parameter.requires_grad]
            groups += [
                {"params": lora, "lr": 1.0},
                {"params": list(self.llm.preference_adapter.parameters()), "lr": 1.0},
            ]
        optimizer = torch.optim.AdamW(groups, weight_decay=train.weight_decay, fused=True)
        factors = [self._rate_at(rate, is_warmed=place == 0) for place, rate in enumerate(rates)]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate_at(self, rate: float, *, is_warmed: bool) -> Any:
        train = self.settings

        def shape(step: int, steps: int) -> float:
            rising = train.warmup_share * steps
            return min((step + 1) / rising if rising else 1.0, (steps - step) / max(steps - rising, 1.0), 1.0)

        def at(step: int) -> float:
            if step < train.warm_steps:
                return train.warm_learning_rate * shape(step, train.warm_steps) if is_warmed else 0.0
            return rate * max(shape(step - train.warm_steps, train.steps), 0.0)

        return at

    def training_step(self, example: AlignExample, batch_idx: int) -> Tensor:
        self.batches.steps_done += 1
        self.seed_step(self.batches.steps_done)
        losses = {name: self.mean(*term) for name, term in self.terms(example).items()}
        used = {name: value for name, value in losses.items() if self.weights.get(name)}
        loss = torch.stack([self.weights[name] * value for name, value in used.items()]).sum()
        self.log_losses(loss, losses)
        self._count(example)
        for name, value in losses.items():
            self.recent[name] = [*self.recent.get(name, []), float(value.detach())][-_MEAN_LOSSES_OVER:]
        return loss

    def terms(self, example: AlignExample) -> Terms:
        """The losses of a step, each a sum and a count; those of weight 0 are left out."""
        batch = example.batch
        if not example.prompts and not example.text_ids:
            text_UE = cast(Tensor, example.text_UE)
            nothing_TD = text_UE.new_zeros(len(batch.user_T), self.recommender.settings.dim)
            found = alignment_objective(self.recommender, batch, text_UE, nothing_TD)
            return {name: found[name] for name in ("sr", "prefix") if self.weights[name]}
        llm = self.llm
        assert llm is not None
        tokens = self.settings.tokens_per_batch or (_TOKENS_ON_GPU if llm.device.type == "cuda" else _TOKENS_ON_CPU)
        if example.text_UE is None:
            text_UE = llm.text_vectors(example.text_ids, tokens_per_batch=tokens)
        else:
            text_UE = example.text_UE
        terms: Terms = {}
        supplemental_TD = text_UE.new_zeros(len(batch.user_T), self.recommender.settings.dim)
        if example.prompts:
            with_targets = self.weights["lm"] > 0
            supplemental_TD, loss, count = llm.read(example.prompts, tokens_per_batch=tokens, with_targets=with_targets)
            terms = {"lm": (loss, count)} if with_targets else {}
        found = alignment_objective(self.recommender, batch, text_UE, supplemental_TD)
        if not example.prompts:
            del found["teacher"]
        return terms | {name: term for name, term in found.items() if self.weights.get(name, True)}

    def on_train_start(self) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, example: AlignExample, batch_idx: int) -> None:
        is_warm = self.batches.steps_done <= self.settings.warm_steps
        before, self._began = self._began, time.perf_counter()  # making the batch is in it
        self.counts["seconds"] += self._began - before
        self.counts["warm_seconds"] += self._began - before if is_warm else 0.0

    def _count(self, example: AlignExample) -> None:
        self.counts["prompts"] += len(example.prompts)
        self.counts["prompt_tokens"] += sum(len(prompt.ids) for prompt in example.prompts)
        self.counts["dropped_events"] += sum(prompt.dropped_events for prompt in example.prompts)
        self.counts["shortened_texts"] += sum(prompt.shortened_texts for prompt in example.prompts)
        self.counts["text_tokens"] += sum(len(text) for text in example.text_ids)

    def transfer_batch_to_device(self, batch: AlignExample, device: torch.device, dataloader_idx: int) -> AlignExample:
        text_UE = None if batch.text_UE is None else batch.text_UE.to(device)
        return replace(batch, batch=batch.batch.to(device), text_UE=text_UE)

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = self._trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["facts"] = {"counts": self.counts, "recent": self.recent}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trained() != checkpoint["state_dict"].keys():
            raise ArtifactError("the checkpoint does not hold the weights that are trained; align into another folder")
        self.counts, self.recent = checkpoint["facts"]["counts"], checkpoint["facts"]["recent"]


def align(dataset: Dataset, *, text: TextTable, settings: AlignSettings, out: Path) -> None:
    """Align the sequential model with an LLM and write the folder `out`; interrupted and run again, it goes on.

    `text` holds every text of the dataset as the LLM encodes it before alignment (`reeltalk encode --encoder`, the
    LLM's name); with a frozen encoder it is that encoder's. With `train.steps=0` no LLM is loaded, and what is written
    is the warm start. Raises ConfigError where LLM or settings cannot be used or `text` is of another model,
    ArtifactError where `out` holds something else or a run with other settings, DataError where there is nothing to
    align on.
    """
    keep_freed_memory()
    train = settings.train
    if train.batch_size % train.devices or train.warm_batch_size % train.devices:
        raise ConfigError(f"batches of {train.batch_size} and {train.warm_batch_size} do not divide by {train.devices}")
    module = new_module(dataset, text, settings)
    config, parents = settings.model_dump(mode="json"), {"dataset": dataset.manifest.digest, "text": text.encoding}
    is_resumed = resumable_folder(out, kind=ALIGNED, config=config, parents=parents)
    save_settings(settings, out / CONFIG)
    trainer = fit(module, out, train, is_resumed=is_resumed, log_every=10, max_steps=len(module.batches), max_epochs=-1)
    if trainer.is_global_zero:
        _finish(out, module, config=config, parents=parents, dataset=dataset, text=text)
    trainer.strategy.barrier()


def new_module(dataset: Dataset, text: TextTable, settings: AlignSettings) -> AlignModule:
    """What is trained, at its start: the seed fixes it. Raises as `align`."""
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
    llm = LLMRecommender(settings.llm, dim=settings.model.dim) if train.steps else None
    if llm is not None and settings.encoder == "llm":
        _require_same_model(llm, text)
    instances = instances_of(dataset, settings)
    recommender.start_text_map(_sample(text, train.seed))
    return AlignModule(recommender, llm, AlignBatches(instances, text, settings, llm)).train()


def instances_of(dataset: Dataset, settings: AlignSettings) -> Instances:
    """The stream of instances of these settings."""
    data = settings.data
    return Instances.of(
        dataset,
        length=data.history_length,
        num_positions=data.num_positions,
        record_comments=data.record_comments,
        history_probability=data.history_probability,
        entry_probability=data.entry_probability,
        with_comments=data.comments,
        any_comments=data.hot_comments == "random",
        num_negatives=data.num_negatives,
        active_days=data.active_days,
        seed=settings.train.seed,
    )


def _finish(
    out: Path,
    module: AlignModule,
    *,
    config: dict[str, Any],
    parents: dict[str, str],
    dataset: Dataset,
    text: TextTable,
) -> None:
    weights = {name: value.cpu().contiguous() for name, value in module.recommender.state_dict().items()}
    save_file(weights, out / SEQUENTIAL)
    if module.llm is not None:
        module.llm.save(out / LLM)
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    counts = {name: round(value, 1) for name, value in module.counts.items()}
    facts = counts | {
        "losses": {name: round(float(np.mean(values)), 4) for name, values in module.recent.items()},
        "peak_bytes": peak_bytes(),
        "num_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "dataset": str(dataset.path.resolve()),
        "text": str(text.path.resolve()),
        "trained_encoder": module.llm is not None and module.align_settings.encoder == "llm",
    }
    write_manifest(out, kind=ALIGNED, config=config, parents=parents, facts=facts)


def _require_same_model(llm: LLMRecommender, text: TextTable) -> None:
    held = text.manifest.config
    if held.get("weights") != llm.weights or held.get("pooling") != "mean" or held.get("prefix"):
        raise ConfigError(
            f"{text.path} holds vectors of encoder {held.get('encoder')!r} ({held.get('pooling')} pooling), but the "
            f"LLM is {llm.settings.name!r}, whose vectors (mean pooling) the sequential model starts from; run "
            f"`reeltalk encode` with --encoder {llm.settings.name}, or keep that encoder with --set encoder=frozen"
        )


def _sample(text: TextTable, seed: int) -> Tensor:
    """Some of the table's vectors, for a PCA."""
    rows = np.random.default_rng(seed).permutation(len(text.vectors))[:_PCA_TEXTS]
    return torch.from_numpy(text.vectors[np.sort(rows)].astype(np.float32))
