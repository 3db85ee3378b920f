"""The value that picks the epoch to keep: one metric over the saved validation targets."""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from reeltalk.data.dataset import Split
from reeltalk.data.ragged import Ragged, offsets_of
from reeltalk.errors import ConfigError, DataError
from reeltalk.evaluation.metrics import target_metrics
from reeltalk.evaluation.ranks import candidate_ranks, catalogue_ranks
from reeltalk.training.ranking import SystemRanker
from reeltalk.training.system import System

TARGETS_A_BLOCK = 512
METRIC = re.compile(r"(?:(?:recall|ndcg|hit)@(?P<k>[1-9][0-9]*)|mrr)")


class Validation:
    """The validation targets of a system, ranked as often as asked; raises where there is nothing to rank."""

    def __init__(self, system: System) -> None:
        train, task = system.settings.train, system.settings.task
        match = METRIC.fullmatch(train.monitor)
        if match is None:
            raise ConfigError(f"train.monitor={train.monitor!r} is no metric; give recall@K, ndcg@K, hit@K or mrr")
        if train.monitor_protocol == "full" and task == "comment":
            raise ConfigError(
                "train.monitor_protocol='full' is for the item task; comments are ranked under their item"
            )
        self.system, self.k = system, int(match["k"] or 1)
        targets = system.dataset.candidates(task, Split.VALID)
        if targets.is_empty():
            raise DataError(f"{system.dataset.path} has no validation targets of the {task} task to stop by")
        if train.max_validation_targets and len(targets) > train.max_validation_targets:
            targets = targets.sample(train.max_validation_targets, seed=train.seed).sort("target")
        self.targets = targets

    def value(self) -> float:
        """The monitored metric with the weights as they are; the system is left in the mode it was in."""
        was_training = self.system.training
        ranker = SystemRanker(self.system)
        full = self.system.settings.train.monitor_protocol == "full"
        ranks = self._full(ranker) if full else self._sampled(ranker)
        self.system.train(was_training)
        return float(target_metrics(ranks, ks=(self.k,))[self.system.settings.train.monitor].mean())

    def _sampled(self, ranker: SystemRanker) -> Ragged:
        if ranker.task == "item":
            lists = self.targets.select(pl.concat_list("positive", "negatives")).to_series()
            num_positives = np.ones(len(self.targets), np.int64)
        else:
            lists = self.targets.select(pl.concat_list("positives", "negatives")).to_series()
            num_positives = self.targets["positives"].list.len().to_numpy().astype(np.int64)
        candidates = Ragged.from_lists(lists)
        tie_breaks = np.random.default_rng(0).random(len(candidates.values))
        return candidate_ranks(ranker.candidate_scores(self.targets, candidates), candidates, num_positives, tie_breaks)

    def _full(self, ranker: SystemRanker) -> Ragged:
        created = self.system.dataset.items["created"].to_numpy()
        ranks = []
        for block in self.targets.iter_slices(TARGETS_A_BLOCK):
            existing = np.searchsorted(created, block["time"].to_numpy(), side="right")
            found = catalogue_ranks(
                ranker.catalogue_scores(block),
                positives=block["positive"].to_numpy().astype(np.int64) - 1,
                existing=existing.astype(np.int64),
                seen=np.zeros(0, np.int64),
                k=1,
            )
            ranks.append(1 + found.greater + (found.equal + 1) // 2)
        flat = np.concatenate(ranks).astype(np.int32)
        return Ragged(flat, offsets_of(np.ones(len(flat))))
