"""Distinct draws from many ranges: uniform, and no more work than the ranges ask for."""

from __future__ import annotations

import numpy as np

from reeltalk.data.ragged import Ints
from reeltalk.data.sampling import Bools, draw_distinct

ROWS, SIZE, EVERY = 3_000, 30_000, 60  # one position of so many is valid


def test_few_valid_positions_of_a_large_range_are_found_without_a_list_of_it() -> None:
    asked: list[int] = []

    def is_valid(row: Ints, position: Ints) -> Bools:
        asked.append(len(position))
        found: Bools = (position + row) % EVERY == 0
        return found

    columns = np.arange(ROWS), np.full(ROWS, SIZE), np.full(ROWS, 4)
    rows, positions = draw_distinct(*columns, is_valid=is_valid, rng=np.random.default_rng(0))
    assert np.array_equal(rows, np.repeat(np.arange(ROWS), 4))
    assert is_valid(rows, positions).all() and (np.diff(positions)[np.diff(rows) == 0] > 0).all()
    assert sum(asked) < 0.1 * ROWS * SIZE
    share = (positions - rows) / SIZE
    assert abs(share.mean() - 0.5) < 0.01 and abs(share.std() - 12**-0.5) < 0.01


def test_a_row_with_less_than_wanted_gets_all_of_it() -> None:
    rows, positions = draw_distinct(
        np.array([5, 0]),
        np.array([10_000, 10_000]),
        np.array([3, 3]),
        is_valid=lambda row, position: (position == 77) | ((row == 1) & (position % 2 == 0)),
        rng=np.random.default_rng(0),
    )
    assert rows.tolist() == [0, 1, 1, 1] and positions[0] == 77
