"""One system measured under one protocol: every target ranked, every metric of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from reeltalk.data.dataset import Dataset, Task
from reeltalk.data.ragged import Ints, Ragged, offsets_of
from reeltalk.errors import DataError
from reeltalk.evaluation.bags import Bags
from reeltalk.evaluation.metrics import Values, coverage, target_metrics
from reeltalk.evaluation.ranker import CatalogueRanker, Ranker
from reeltalk.evaluation.ranks import CatalogueRanks, candidate_ranks, catalogue_ranks

TARGETS_AT_ONCE = 1024  # for saved candidates
BLOCK_BYTES = 16 << 20  # of a block of catalogue scores; larger ones leave the cache before they are ranked

Advance = Callable[[int], None]  # told of every few targets done


@dataclass(frozen=True)
class Measured:
    """What a system reached on every target, under one protocol."""

    metrics: dict[str, Values]  # [T] each
    rank: Ints  # [T] of the first positive
    candidates: Ints  # [T] how many there were
    coverage: dict[str, float] = field(default_factory=dict)


class SavedCandidates:
    """The sampled protocol: the saved candidate sets of some targets, with one set of tie breaks for all systems."""

    def __init__(self, task: Task, targets: pl.DataFrame, *, ks: Sequence[int], seed: int) -> None:
        if task == "item":
            lists = targets.select(pl.concat_list("positive", "negatives")).to_series()
            self.num_positives = np.ones(len(targets), dtype=np.int64)
        else:
            lists = targets.select(pl.concat_list("positives", "negatives")).to_series()
            self.num_positives = targets["positives"].list.len().to_numpy().astype(np.int64)
        self.targets, self.ks, self.seed = targets, ks, seed
        self.candidates = Ragged.from_lists(lists)

    def measure(self, ranker: Ranker, advance: Advance) -> Measured:
        """Rank the candidates of every target; raises DataError where a score is not finite."""
        rng = np.random.default_rng([self.seed, 0])
        parts = []
        for start in range(0, len(self.targets), TARGETS_AT_ONCE):
            targets = self.targets.slice(start, TARGETS_AT_ONCE)
            candidates = self.candidates.rows(start, start + len(targets))
            scores = ranker.candidate_scores(targets, candidates)
            if scores.shape != candidates.values.shape:
                raise ValueError(f"{ranker.name} gave {scores.shape} scores for {candidates.values.shape} candidates")
            if not np.isfinite(scores).all():
                where = int(np.flatnonzero(~np.isfinite(scores))[0])
                _refuse(
                    ranker,
                    scores[where],
                    targets.row(int(candidates.owners[where]), named=True),
                    candidates.values[where],
                )
            tie_breaks = rng.random(len(scores))
            positives = self.num_positives[start : start + len(targets)]
            parts.append(candidate_ranks(scores, candidates, positives, tie_breaks).values)
            advance(len(targets))
        return _measured(
            Ragged(np.concatenate(parts), offsets_of(self.num_positives)), self.candidates.lengths, self.ks
        )


class Catalogue:
    """The full protocol: all items that exist at the target's time, where asked without what the user had turned to."""

    def __init__(
        self, dataset: Dataset, targets: pl.DataFrame, *, exclude_seen: bool, ks: Sequence[int], seed: int
    ) -> None:
        self.num_items, self._turned_to = dataset.num_items, Bags.of_items(dataset)
        self.targets, self.exclude_seen, self.ks, self.seed = targets, exclude_seen, ks, seed
        created = dataset.items["created"].to_numpy()
        self._existing = np.searchsorted(created, targets["time"].to_numpy(), side="right")

    def measure(self, ranker: CatalogueRanker, advance: Advance) -> Measured:
        """Rank every positive among all items; raises DataError where a score is NaN or a positive's infinite."""
        chance = np.random.default_rng([self.seed, 2]).random(len(self.targets))
        size = max(1, BLOCK_BYTES // (4 * self.num_items))
        ranks, candidates, tops = [], [], []
        for start in range(0, len(self.targets), size):
            targets = self.targets.slice(start, size)
            positives = targets["positive"].to_numpy().astype(np.int64) - 1
            existing = self._existing[start : start + len(targets)]
            seen = self._seen(targets, positives)
            block = ranker.catalogue_scores(targets)
            if block.shape != (len(targets), self.num_items):
                raise ValueError(
                    f"{ranker.name} gave {tuple(block.shape)}, not {(len(targets), self.num_items)} scores"
                )
            found = catalogue_ranks(block, positives=positives, existing=existing, seen=seen, k=self.ks[-1])
            _check(ranker, found, targets)
            ties_lost = np.floor(chance[start : start + len(targets)] * (found.equal + 1)).astype(np.int64)
            ranks.append(1 + found.greater + ties_lost)
            row, column = np.divmod(seen, self.num_items)
            left_out = np.bincount(row[column < existing[row]], minlength=len(targets))
            candidates.append(existing - left_out + (positives >= existing))
            tops.append(found.top.astype(np.int32))
            advance(len(targets))
        rank, top = np.concatenate(ranks), np.concatenate(tops)
        num_items = int(self._existing.max())
        measured = _measured(
            Ragged(rank.astype(np.int32), np.arange(len(rank) + 1)), np.concatenate(candidates), self.ks
        )
        measured.coverage.update({f"coverage@{k}": coverage(top[:, :k], num_items=num_items) for k in self.ks})
        return measured

    def _seen(self, targets: pl.DataFrame, positives: Ints) -> Ints:
        """Flat indices into the block of scores, each once and rising, of what the users turned to before.

        None where the positive is among them: if it alone of them stayed, to have been there would give it away.
        """
        if not self.exclude_seen:
            return np.zeros(0, dtype=np.int64)
        items, offsets = self._turned_to.at(targets)
        rows, columns = np.repeat(np.arange(len(targets)), np.diff(offsets)), items - 1
        is_repeat = np.zeros(len(targets), np.bool_)
        is_repeat[rows[columns == positives[rows]]] = True
        flat = np.sort((rows * self.num_items + columns)[~is_repeat[rows]])
        return flat[np.diff(flat, prepend=-1) > 0]  # np.unique hashes first, which is slower


def _measured(ranks: Ragged, candidates: Ints, ks: Sequence[int]) -> Measured:
    first = np.minimum.reduceat(ranks.values, ranks.offsets[:-1]).astype(np.int64)
    return Measured(target_metrics(ranks, ks=ks), first, candidates)


def _check(ranker: Ranker, found: CatalogueRanks, targets: pl.DataFrame) -> None:
    bad: npt.NDArray[np.bool_] = ~np.isfinite(found.own) | ~np.isfinite(found.best)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        is_positive = not np.isfinite(found.own[row])
        target = targets.row(row, named=True)
        value, candidate = (found.own[row], target["positive"]) if is_positive else (found.best[row], "an item")
        _refuse(ranker, value, target, candidate)


def _refuse(ranker: Ranker, value: np.float32, target: dict[str, object], candidate: object) -> None:
    raise DataError(
        f"{ranker.name} scores {candidate} as {value} for target {target['target']} (user_id {target['user_id']}, time "
        f"{target['time']}); scores must be finite: look for a division by zero or an overflow in the model"
    )
