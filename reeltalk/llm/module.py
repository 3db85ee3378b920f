"""The Lightning module of alignment: a step goes through the LLM and the sequential model, and is counted.

Shapes: T instances, D width of a preference, U distinct texts, E text width.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from reeltalk.errors import ArtifactError
from reeltalk.llm.feed import AlignBatches, AlignExample
from reeltalk.llm.recommender import LLMRecommender
from reeltalk.llm.settings import AlignTrainSettings
from reeltalk.memory import memory_of
from reeltalk.models.lsvcr import LSVCR
from reeltalk.objectives import Terms, alignment_objective
from reeltalk.training.trainer import StageModule

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 8_192, 65_536  # at once through the LLM
_TOKENS_AT_LEAST = 512
_MEAN_LOSSES_OVER = 50  # steps, for what the manifest tells of the end


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

    def configure_model(self) -> None:
        """Divide the LLM where that is asked for, now that the processes know of one another."""
        if self.llm is not None and self.settings.shard_llm:
            self.llm.shard()
            divided = [name for name, parameter in self.named_parameters() if isinstance(parameter, DTensor)]
            leave_out = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
            leave_out(self, divided)  # type: ignore[no-untyped-call]

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
        self._count(example, losses)
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
        tokens, kept = self._budget
        if example.text_UE is None:
            text_UE = llm.text_vectors(example.text_ids, tokens_per_batch=tokens, tokens_kept=kept)
            kept -= sum(len(ids) for ids in example.text_ids)
        else:
            text_UE = example.text_UE
        terms: Terms = {}
        supplemental_TD = text_UE.new_zeros(len(batch.user_T), self.recommender.settings.dim)
        if example.prompts:
            with_targets = self.weights["lm"] > 0
            supplemental_TD, loss, count = llm.read(
                example.prompts, tokens_per_batch=tokens, tokens_kept=kept, with_targets=with_targets
            )
            terms = {"lm": (loss, count)} if with_targets else {}
        found = alignment_objective(self.recommender, batch, text_UE, supplemental_TD)
        if not example.prompts:
            del found["teacher"]
        return terms | {name: term for name, term in found.items() if self.weights.get(name, True)}

    @cached_property
    def _budget(self) -> tuple[int, int]:
        """Tokens at once through the LLM, and tokens of a step that are kept: no more than half of the memory holds."""
        llm, train = self.llm, self.settings
        assert llm is not None
        at_once = _TOKENS_ON_GPU if llm.device.type == "cuda" else _TOKENS_ON_CPU
        if train.shard_llm:
            return train.tokens_per_batch or at_once, train.tokens_kept
        weights = sum(parameter.nbytes for parameter in llm.parameters())
        room = memory_of(llm.device) / 2
        if llm.device.type == "cpu":
            room /= train.devices  # the processes share it
        fitting = int(max(room - weights, 0) / llm.bytes_a_token())
        at_once = train.tokens_per_batch or max(min(at_once, fitting // 4), _TOKENS_AT_LEAST)
        return at_once, max(min(train.tokens_kept, fitting - at_once), 0)

    def on_train_start(self) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, example: AlignExample, batch_idx: int) -> None:
        is_warm = self.batches.steps_done <= self.settings.warm_steps
        before, self._began = self._began, time.perf_counter()  # making the batch is in it
        self.counts["seconds"] += self._began - before
        self.counts["warm_seconds"] += self._began - before if is_warm else 0.0

    def _count(self, example: AlignExample, losses: dict[str, Tensor]) -> None:
        """What all processes read and lose in this step; they wait for one another, so seconds are this one's alone."""
        counts = {
            "prompts": len(example.prompts),
            "prompt_tokens": sum(len(prompt.ids) for prompt in example.prompts),
            "dropped_events": sum(prompt.dropped_events for prompt in example.prompts),
            "shortened_texts": sum(prompt.shortened_texts for prompt in example.prompts),
            "text_tokens": sum(len(text) for text in example.text_ids),
        }
        summed = self.summed(torch.tensor(list(counts.values()), device=self.device))
        for name, count in zip(counts, summed.tolist(), strict=True):
            self.counts[name] += count
        if self.batches.steps_done == self.settings.warm_steps + 1:
            self.recent = {}  # the warm start has other batches, and so other losses
        means = self.summed(torch.stack(list(losses.values())).detach()) / self.trainer.world_size
        for name, value in zip(losses, means.tolist(), strict=True):
            self.recent[name] = [*self.recent.get(name, []), value][-_MEAN_LOSSES_OVER:]

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
