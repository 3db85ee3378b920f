"""Distinct values drawn uniformly from many ranges at once, without a loop over the ranges."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reeltalk.data.ragged import Ints, ranges

Bools = NDArray[np.bool_]
IsValid = Callable[[Ints, Ints], Bools]

_ROUNDS = 12
_MANY = 256  # draws for each that is wanted, before all positions are listed
_LISTED_AT_ONCE = 4_000_000


def draw_distinct(
    start: Ints, size: Ints, wanted: Ints, *, is_valid: IsValid, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """For each row, up to `wanted` distinct positions of ``start .. start + size - 1`` that are valid, drawn uniformly.

    `is_valid(row, position)` says which may be drawn; it must say the same each time. Returns rows and positions,
    sorted by both; a row whose range holds fewer valid positions than wanted gets all of them.
    """
    is_small = size <= 4 * wanted
    rows, positions = _draw_by_trial(np.flatnonzero(~is_small & (wanted > 0)), start, size, wanted, is_valid, rng)
    # rows that hold few valid positions are drawn anew: from many trials, and at last from a list of all positions
    is_short = np.bincount(rows, minlength=len(start)) < wanted
    found = [(rows[~is_short[rows]], positions[~is_short[rows]])]
    for part in _parts(np.flatnonzero(is_short & (size > _MANY * wanted)), _MANY * wanted):
        drawn = _draw_by_many_trials(part, start, size, wanted, is_valid, rng)
        is_short[drawn[0]] = False
        found.append(drawn)
    for part in _parts(np.flatnonzero(is_short), size):
        found.append(_draw_from_list(part, start, size, wanted, is_valid, rng))
    rows, positions = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], positions[order]


def _draw_by_trial(
    open_rows: Ints, start: Ints, size: Ints, wanted: Ints, is_valid: IsValid, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Each round draws as many as are missing: never too many, and every set of that size is equally likely."""
    width = int((start + size).max(initial=1))
    pairs = np.empty(0, dtype=np.int64)  # row * width + position
    missing = wanted[open_rows]
    for _ in range(_ROUNDS):
        row = np.repeat(open_rows, missing)
        drawn = _sorted_distinct(row * width + start[row] + rng.integers(0, size[row]))
        drawn = drawn[is_valid(drawn // width, drawn % width)]
        pairs = _sorted_distinct(np.concatenate([pairs, drawn]))
        missing = wanted[open_rows] - np.bincount(pairs // width, minlength=len(start))[open_rows]
        open_rows, missing = open_rows[missing > 0], missing[missing > 0]
        if len(open_rows) == 0:
            break
    return pairs // width, pairs % width


def _draw_by_many_trials(
    rows: Ints, start: Ints, size: Ints, wanted: Ints, is_valid: IsValid, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Of many draws those that are valid, and of these as many as wanted; rows that have fewer get none."""
    width = int((start + size).max())
    row = np.repeat(rows, _MANY * wanted[rows])
    drawn = _sorted_distinct(row * width + start[row] + rng.integers(0, size[row]))
    row, position = drawn // width, drawn % width
    valid = is_valid(row, position)
    row, position = row[valid], position[valid]
    is_enough = np.bincount(row, minlength=len(start)) >= wanted
    return _picked(row[is_enough[row]], position[is_enough[row]], wanted, rng)


def _draw_from_list(
    rows: Ints, start: Ints, size: Ints, wanted: Ints, is_valid: IsValid, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    row, position = np.repeat(rows, size[rows]), ranges(start[rows], start[rows] + size[rows])
    valid = is_valid(row, position)
    return _picked(row[valid], position[valid], wanted, rng)


def _picked(row: Ints, position: Ints, wanted: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Of each row's positions as many as wanted, every choice equally likely; `row` rises."""
    shuffled = np.argsort(row + rng.random(len(row)))
    rank = np.empty(len(row), dtype=np.int64)
    rank[shuffled] = np.arange(len(row)) - np.searchsorted(row, row, side="left")
    is_drawn = rank < wanted[row]
    return row[is_drawn], position[is_drawn]


def _sorted_distinct(values: Ints) -> Ints:
    values = np.sort(values)  # np.unique hashes integers, which takes fifty times as long here
    is_new = np.ones(len(values), dtype=bool)
    is_new[1:] = values[1:] != values[:-1]
    return values[is_new]


def _parts(rows: Ints, size: Ints) -> list[Ints]:
    """Rows in groups whose ranges together can be listed in memory."""
    if len(rows) == 0:
        return []
    group = np.cumsum(size[rows]) // _LISTED_AT_ONCE
    return np.split(rows, np.flatnonzero(np.diff(group)) + 1)
