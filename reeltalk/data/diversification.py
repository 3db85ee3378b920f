"""Comment diversification: one history told with two sets of comments, one for the SR model, one for the LLM.

Paper: LSVCR section 4.3.1, "Input augmentation via comment diversification". Popular are the hottest comments before
the cut (`reeltalk.data.hot`); of these, a history's entry is given only such as existed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from reeltalk.data.dataset import Dataset
from reeltalk.data.histories import Happened, offsets_by_id
from reeltalk.data.hot import TOP
from reeltalk.data.ragged import Ints

TOP_OF_ITEM_ENTRY = 3


class Sides(NamedTuple):
    """Comment ids of an entry as the SR model reads it, and as the LLM does."""

    sequential: list[int]
    supplemental: list[int]


Deal = Callable[[list[int], list[int], np.random.Generator], Sides]


@dataclass(frozen=True)
class HotComments:
    """The hottest comments of each item, hottest first, and since when they exist."""

    offsets: Ints
    comment: Ints
    created: Ints

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Those of the dataset's table: at most ten an item."""
        hot = dataset.hot_comments.sort("item_id", "rank")
        comment = hot["comment_id"].to_numpy().astype(np.int64)
        created = dataset.comments["created"].to_numpy().astype(np.int64)
        return cls(offsets_by_id(hot["item_id"].to_numpy(), dataset.num_items), comment, created[comment - 1])

    @classmethod
    def any_of(cls, dataset: Dataset, *, seed: int) -> Self:
        """Ten of each item's comments, or all where it has fewer, drawn at random instead of by how hot they are."""
        drawn = dataset.comments.select("comment_id", "item_id", "created").sample(fraction=1, shuffle=True, seed=seed)
        chosen = drawn.group_by("item_id", maintain_order=True).head(TOP).sort("item_id", maintain_order=True)
        comment, created = (chosen[name].to_numpy().astype(np.int64) for name in ("comment_id", "created"))
        return cls(offsets_by_id(chosen["item_id"].to_numpy(), dataset.num_items), comment, created)

    def before(self, time: int, item: int) -> list[int]:
        """The item's hottest comments of those created strictly before the time."""
        rows = slice(self.offsets[item], self.offsets[item + 1])
        ids: list[int] = self.comment[rows][self.created[rows] < time].tolist()
        return ids

    def hottest_before(self, time: Ints, item: Ints) -> Ints:
        """The first of those `before` each time; 0 where there is none."""
        found = np.zeros_like(item)
        for rank in reversed(range(TOP)):
            row = self.offsets[item] + rank
            at = np.flatnonzero(row < self.offsets[item + 1])
            at = at[self.created[row[at]] < time[at]]
            found[at] = self.comment[row[at]]
        return found


@dataclass(frozen=True)
class Diversification:
    """Which histories, and which entries of them, are told with other comments."""

    hot: HotComments
    history_probability: float = 0.5
    entry_probability: float = 0.3

    def __call__(
        self, history: list[Happened], deal: Deal, *, never: Container[int], rng: np.random.Generator
    ) -> list[Sides]:
        """Both sides of every entry; no comment of `never` (the target's) is added. An entry left alone has its own."""
        probability = self.entry_probability if rng.random() < self.history_probability else 0.0
        is_chosen = rng.random(len(history)) < probability
        sides = [Sides(entry.comments, entry.comments) for entry in history]
        for index in np.flatnonzero(is_chosen).tolist():
            item, time, own = history[index]
            hot = [comment for comment in self.hot.before(time, item) if comment not in never]
            sides[index] = deal(own, hot, rng)
        return sides


def two_of_the_hottest(own: list[int], hot: list[int], rng: np.random.Generator) -> Sides:
    """For an item entry: two of the three hottest, one a side; its own on both where there are no two.

    >>> two_of_the_hottest([7], [3], np.random.default_rng(0))
    Sides(sequential=[7], supplemental=[7])
    """
    hottest = hot[:TOP_OF_ITEM_ENTRY]
    if len(hottest) < 2:
        return Sides(own, own)
    one, other = rng.choice(hottest, 2, replace=False).tolist()
    return Sides([one], [other])


def mixed_and_dealt(own: list[int], hot: list[int], rng: np.random.Generator) -> Sides:
    """For a record of k distinct comments: k hot ones are mixed in, and the 2k dealt into two groups of k.

    Where there are fewer hot ones, the groups share as many comments as are wanting; none of its own is lost.
    """
    others = [comment for comment in hot if comment not in own]
    added = rng.choice(others, min(len(own), len(others)), replace=False).tolist()
    mixed = rng.permutation([*own, *added]).tolist()
    return Sides(mixed[: len(own)], mixed[len(mixed) - len(own) :])
