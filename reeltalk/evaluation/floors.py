"""What a model must beat: rankers that cost next to nothing, and the simulator's oracle, which none can.

An online system knows what happened until the request. So what counts events of all users counts every one strictly
before the target's time, be it in the training, validation or test part of the log, and nothing of what came at that
time or later; what reads the user's own history reads what models read of it, the entries before the target in the
log's order. Those that learn (`reeltalk.evaluation.item_to_item`) are fitted on the training part, as models are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import polars as pl
import torch
from rich.console import Console

from reeltalk.data.as_of import EventsBefore
from reeltalk.data.dataset import Dataset, Task
from reeltalk.data.ragged import Ints, Ragged
from reeltalk.data.simulator.oracle import FILE as ORACLE_FILE
from reeltalk.data.simulator.oracle import Oracle
from reeltalk.evaluation.item_to_item import EASE, ItemKNN
from reeltalk.evaluation.ranker import Ranker, Scores
from reeltalk.evaluation.settings import EvaluationSettings
from reeltalk.evaluation.text_similarity import CommentTextSimilarity, ItemTextSimilarity
from reeltalk.text.lookup import TextLookup

ORACLE = "oracle"  # a ceiling, not a floor: never the one a gain is measured against
LOWEST = np.float32(np.finfo(np.float32).min)


def floors(
    dataset: Dataset, task: Task, *, texts: TextLookup | None = None, settings: EvaluationSettings | None = None
) -> dict[str, Ranker]:
    """The floors of a task by name; text similarity where there are texts, the oracle where the data is simulated.

    Where EASE is left out because the items are too many, stderr tells so.
    """
    settings = settings or EvaluationSettings()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("fitting the floors"):
        found = _item_floors(dataset, texts, settings) if task == "item" else _comment_floors(dataset, texts, settings)
    if task == "item" and dataset.num_items > settings.ease.max_items:
        console.print(
            f"ease is left out: {dataset.num_items:,} items are more than ease.max_items={settings.ease.max_items}; "
            f"raised to that, it takes {4e-9 * dataset.num_items**2:.1f} GB or twice as much, and time by their cube"
        )
    if (dataset.path / ORACLE_FILE).is_file():
        found.append(OracleOrder(task, Oracle.load(dataset.path)))
    return {ranker.name: ranker for ranker in found}


def _item_floors(dataset: Dataset, texts: TextLookup | None, settings: EvaluationSettings) -> list[Ranker]:
    found: list[Ranker] = [
        RandomOrder("item", settings.seed, dataset.num_items),
        Popularity.of(dataset),
        MostRecentItems.of(dataset),
        ItemKNN.of(dataset, settings.item_knn),
    ]
    found += [EASE.of(dataset, settings.ease)] if dataset.num_items <= settings.ease.max_items else []
    found += [] if texts is None else [ItemTextSimilarity.of(dataset, texts)]
    return found


def _comment_floors(dataset: Dataset, texts: TextLookup | None, settings: EvaluationSettings) -> list[Ranker]:
    found: list[Ranker] = [
        RandomOrder("comment", settings.seed, 0),
        HotComments.of(dataset),
        CommentsByAge.of(dataset, order="most_recent"),
        CommentsByAge.of(dataset, order="oldest_first"),
    ]
    found += [] if texts is None else [CommentTextSimilarity.of(dataset, texts)]
    return found


@dataclass(frozen=True, eq=False)
class RandomOrder:
    """Chance level."""

    task: Task
    seed: int
    num_items: int
    name: str = "random"

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return self._draw(targets).random(len(candidates.values), dtype=np.float32)

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        return torch.from_numpy(self._draw(targets).random((len(targets), self.num_items), dtype=np.float32))

    def _draw(self, targets: pl.DataFrame) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(targets["target"][0])])


@dataclass(frozen=True, eq=False)
class Popularity:
    """Items by their number of events so far."""

    counts: EventsBefore
    timeline: Timeline
    task: Task = "item"
    name: str = "popularity"

    @classmethod
    def of(cls, dataset: Dataset) -> Popularity:
        items, times = _columns(dataset.item_events, "item_id", "time")
        counts = EventsBefore(items, times, num_keys=dataset.num_items + 1)
        ones = np.ones(len(items), dtype=np.float32)
        return cls(counts, Timeline.of(items, times, values=ones, start=np.zeros(dataset.num_items, dtype=np.float32)))

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return self.counts.counts(candidates.values, _times(targets, candidates)).astype(np.float32)

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        return self.timeline.running(targets, np.add)


@dataclass(frozen=True, eq=False)
class MostRecentItems:
    """Newest items first; an item whose creation is unknown is as new as its last event so far.

    Scores are ranks of times, not times, because float32 cannot tell milliseconds apart.
    """

    created: Scores  # [N + 1] rank of the creation time, 0 where unknown
    last_events: EventsBefore
    event_ranks: Scores
    timeline: Timeline
    task: Task = "item"
    name: str = "most_recent"

    @classmethod
    def of(cls, dataset: Dataset) -> MostRecentItems:
        created = _created(dataset.items)
        items, times = _columns(dataset.item_events, "item_id", "time")
        unknown = created[items] == 0
        items, times = items[unknown], times[unknown]
        known = created[created > 0]
        moments = np.unique(np.concatenate([known, times]))
        created_ranks = np.where(created > 0, 1 + np.searchsorted(moments, created), 0).astype(np.float32)
        event_ranks = (1 + np.searchsorted(moments, times)).astype(np.float32)
        events = EventsBefore(items, times, num_keys=dataset.num_items + 1)
        timeline = Timeline.of(items, times, values=event_ranks, start=created_ranks[1:])
        return cls(created_ranks, events, event_ranks[events.order], timeline)

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        items = candidates.values
        stops = self.last_events.stops(items, _times(targets, candidates))
        has_event = stops > self.last_events.starts[items]
        scores = self.created[items]
        scores[has_event] = self.event_ranks[stops[has_event] - 1]
        return scores

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        return self.timeline.running(targets, np.maximum)


@dataclass(frozen=True, eq=False)
class HotComments:
    """Comments by their number of events so far: the order in which platforms show them."""

    counts: EventsBefore
    task: Task = "comment"
    name: str = "hot_comments"

    @classmethod
    def of(cls, dataset: Dataset) -> HotComments:
        comments, times = _columns(dataset.comment_events, "comment_id", "time")
        return cls(EventsBefore(comments, times, num_keys=dataset.num_comments + 1))

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return self.counts.counts(candidates.values, _times(targets, candidates)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class CommentsByAge:
    """Newest or oldest comments first; one whose creation is unknown counts as the oldest."""

    scores: Scores  # [comments + 1]
    name: Literal["most_recent", "oldest_first"]
    task: Task = "comment"

    @classmethod
    def of(cls, dataset: Dataset, *, order: Literal["most_recent", "oldest_first"]) -> CommentsByAge:
        _, ranks = np.unique(_created(dataset.comments), return_inverse=True)
        return cls((ranks if order == "most_recent" else -ranks).astype(np.float32), order)

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        return self.scores[candidates.values]


@dataclass(frozen=True, eq=False)
class OracleOrder:
    """The simulator's true preferences; what it never showed at that time comes last."""

    task: Task
    oracle: Oracle
    name: str = ORACLE

    def candidate_scores(self, targets: pl.DataFrame, candidates: Ragged) -> Scores:
        score = self.oracle.item_scores if self.task == "item" else self.oracle.comment_scores
        users = targets["user_id"].to_numpy()[candidates.owners]
        return np.maximum(score(users, candidates.values, _times(targets, candidates)), LOWEST)

    def catalogue_scores(self, targets: pl.DataFrame) -> torch.Tensor:
        users, times = (targets[name].to_numpy()[:, None] for name in ("user_id", "time"))
        items = np.arange(1, len(self.oracle.item_row))[None, :]
        return torch.from_numpy(np.maximum(self.oracle.item_scores(users, items, times), LOWEST))


@dataclass(frozen=True, eq=False)
class Timeline:
    """Item events in time order, each with a value, and what every item begins with, to be added up as of a time."""

    times: Ints
    columns: Ints  # item_id - 1
    values: Scores
    start: Scores  # [N]

    @classmethod
    def of(cls, items: Ints, times: Ints, *, values: Scores, start: Scores) -> Timeline:
        order = np.argsort(times, kind="stable")
        return cls(times[order], items[order] - 1, values[order], start)

    def running(self, targets: pl.DataFrame, combine: np.ufunc) -> torch.Tensor:
        """[B, N] `combine` over the start and the values of each item's events strictly before each target's time.

        Events before the earliest target enter its row, each later one the row of the first target that comes after
        it; then each row is combined with the row before it in time.
        """
        moments, num_items = targets["time"].to_numpy(), len(self.start)
        order = np.argsort(moments, kind="stable")
        past = slice(np.searchsorted(self.times, moments[order[-1]]))
        rows = order[np.searchsorted(moments[order], self.times[past], side="right")]
        block = np.full((len(moments), num_items), combine.identity or 0, dtype=np.float32)
        block[order[0]] = self.start
        combine.at(block.reshape(-1), rows * num_items + self.columns[past], self.values[past])
        for earlier, later in pairwise(order):  # numpy's accumulate goes down one column at a time, ten times slower
            combine(block[earlier], block[later], out=block[later])
        return torch.from_numpy(block)


def _columns(frame: pl.DataFrame, *names: str) -> list[Ints]:
    return [frame[name].to_numpy().astype(np.int64) for name in names]


def _created(frame: pl.DataFrame) -> Ints:
    """Creation times by id, 0 for padding."""
    return np.concatenate([[0], frame["created"].to_numpy()])


def _times(targets: pl.DataFrame, candidates: Ragged) -> Ints:
    """The target's time, for every candidate."""
    return targets["time"].to_numpy().astype(np.int64)[candidates.owners]
