"""Choosing settings: which configurations of a grid are tried, and which of them go on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Configuration = TypeVar("Configuration")


def trials_of(grid: Mapping[str, Sequence[Any]], *, limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Configurations of a grid: all where it has no more than `limit`, else so many drawn with the seed.

    Each value of a setting is drawn about as often as its others, and so is each pair of two settings' values.

    >>> drawn = trials_of({"rate": [1, 2, 3], "width": [8, 16]}, limit=3, seed=0)
    >>> sorted(each["rate"] for each in drawn)
    [1, 2, 3]
    """
    places = list(itertools.product(*(range(len(values)) for values in grid.values())))
    if limit is not None and len(places) > limit:
        left = [places[row] for row in np.random.default_rng(seed).permutation(len(places))]
        used: Counter[tuple[tuple[int, int], ...]] = Counter()  # settings' places with their values'
        places = []

        def drawn(place: tuple[int, ...], size: int) -> Iterator[tuple[tuple[int, int], ...]]:
            return itertools.combinations(enumerate(place), size)

        while len(places) < limit:
            best = min(left, key=lambda place: [sum(used[of] for of in drawn(place, size)) for size in (1, 2)])
            left.remove(best)
            used.update(itertools.chain(drawn(best, 1), drawn(best, 2)))
            places.append(best)
    return [{name: values[place] for (name, values), place in zip(grid.items(), each, strict=True)} for each in places]


def halving(
    trials: Sequence[Configuration], *, rungs: Sequence[int], keep: int
) -> Generator[tuple[list[Configuration], int | None], Sequence[float | None], Configuration | None]:
    """Successive halving: yields trials and the epochs to train each, is sent their values, returns the best trial.

    After each rung the best of every `keep` go on, rounded up; after the last rung they train in full (epochs None).
    It ends where one is left. A value of None is a trial that failed; None is returned where all of them did.
    """
    left = list(trials)
    for epochs in (*rungs, None):
        if len(left) == 1:
            break
        values = yield left, epochs
        reached = [(value, place) for place, value in enumerate(values) if value is not None]
        if not reached:
            return None
        order = sorted(reached, key=lambda found: (-found[0], found[1]))
        going_on = 1 if epochs is None else -(-len(left) // keep)
        left = [left[place] for _, place in order[:going_on]]
    return left[0]
