"""Packing: every entry of every window once, both histories of a user in one row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import Log, packed_batch, random_log

from reeltalk.data.batch import ALIGN, PackedWindows, distinct_comments, pack
from reeltalk.data.dataset import Task
from reeltalk.data.histories import training_windows
from reeltalk.models.attention import causal_mask, known_mask

SIZES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12)), max_size=40)


@settings(max_examples=80)
@given(sizes=SIZES)
def test_pack_gives_each_window_cells_of_its_own(sizes: list[tuple[int, int]]) -> None:
    items, records = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    packing = pack(items, records)
    assert packing.item_columns % ALIGN == packing.record_columns % ALIGN == 0
    for lengths, columns, column in (
        (items, packing.item_columns, packing.item_column),
        (records, packing.record_columns, packing.record_column),
    ):
        taken = np.zeros((packing.num_rows, columns), dtype=int)
        for window, length in enumerate(lengths):
            assert column[window] + length <= columns
            taken[packing.row[window], column[window] : column[window] + length] += 1
        assert taken.max(initial=0) <= 1
        assert taken.sum() == lengths.sum()
    for row in range(packing.num_rows):
        numbers = sorted(packing.segment[packing.row == row].tolist())
        assert numbers == list(range(1, len(numbers) + 1))


def test_pack_wastes_little() -> None:
    rng = np.random.default_rng(0)
    items, records = rng.geometric(0.12, 512).clip(max=50), rng.geometric(0.25, 512).clip(max=50)
    none = np.zeros_like(items)
    alone = pack(items, none)
    assert items.sum() / (alone.num_rows * alone.item_columns) > 0.95
    both = pack(items, records)
    assert items.sum() / (both.num_rows * both.item_columns) > 0.7


@pytest.mark.parametrize("task", ["item", "comment"])
@pytest.mark.parametrize("has_start", [True, False])
def test_every_entry_stands_in_the_grid_once(task: Task, has_start: bool) -> None:
    log = random_log(4, num_users=30)
    h = log.histories
    windows = training_windows(h, task, length=4, has_start=has_start)
    packed, batch = packed_batch(log, windows, task, has_start=has_start)
    is_item = task == "item"
    items = (windows.begin, windows.end) if is_item else (windows.other_begin, windows.other_end)
    records = (windows.other_begin, windows.other_end) if is_item else (windows.begin, windows.end)
    start = int(has_start)
    num_entries = 0
    for window in range(len(windows)):
        row, segment = packed.packing.row[window], packed.packing.segment[window]
        for grid, (begin, end), first in (
            (batch.items, items, packed.packing.item_column[window]),
            (batch.records, records, packed.packing.record_column[window]),
        ):
            cells = (row, slice(first, first + start + end[window] - begin[window]))
            assert (grid.segment_RL[cells] == segment).all()
            assert int((grid.segment_RL[row] == segment).sum()) == cells[1].stop - cells[1].start
            assert grid.position_RL[cells].tolist() == list(range(-start, end[window] - begin[window]))
            num_entries += cells[1].stop - cells[1].start
            events = (row, slice(first + start, cells[1].stop))
            history = slice(begin[window], end[window])
            is_items = grid is batch.items
            assert grid.item_RL[events].tolist() == (h.item if is_items else h.record_item)[history].tolist()
            assert grid.known_RL[events].tolist() == (h.time if is_items else h.end)[history].tolist()
            moments = [*(h.time if is_items else h.start)[history].tolist(), int(windows.request[window])]
            assert grid.horizon_RL[cells].tolist() == moments[1 - start :]
            if has_start:
                assert grid.item_RL[row, first] == 0 and grid.known_RL[row, first] == -1
            assert batch.comment_U[grid.comment_RLK[events]].tolist() == comments(
                log, history, is_items, grid.comment_RLK
            )
    for grid in (batch.items, batch.records):
        is_padding = grid.segment_RL == 0
        assert (grid.item_RL[is_padding] == 0).all() and (grid.comment_RLK[is_padding] == 0).all()
    assert num_entries == int((batch.items.segment_RL > 0).sum() + (batch.records.segment_RL > 0).sum())


def comments(log: Log, history: slice, is_items: bool, grid_RLK: torch.Tensor) -> list[list[int]]:
    """The hot comment, or a record's last three, padded with 0."""
    h = log.histories
    rows = range(history.start, history.stop)
    if is_items:
        return [[int(h.hot_comment[row])] for row in rows]
    chosen = [h.comment[h.comment_offsets[row] : h.comment_offsets[row + 1]][-3:].tolist() for row in rows]
    return [ids + [0] * (grid_RLK.shape[2] - len(ids)) for ids in chosen]


@pytest.mark.parametrize("task", ["item", "comment"])
@pytest.mark.parametrize("has_start", [True, False])
def test_targets_are_predicted_from_the_entry_before_them(task: Task, has_start: bool) -> None:
    log = random_log(5, num_users=30)
    windows = training_windows(log.histories, task, length=4, has_start=has_start)
    packed, batch = packed_batch(log, windows, task, has_start=has_start)
    rows, window = packed.target_rows()
    positions = packed.target_positions(rows, window, task)
    grid = batch.items if task == "item" else batch.records
    times = log.histories.time if task == "item" else log.histories.start
    assert (positions >= 0).all()
    assert (grid.segment_RL.flatten()[positions].numpy() == packed.packing.segment[window]).all()
    assert (grid.position_RL.flatten()[positions].numpy() == rows - windows.begin[window] - 1).all()
    assert (grid.horizon_RL.flatten()[positions].numpy() == times[rows]).all()


def test_a_history_without_events_or_start_has_no_position() -> None:
    log = random_log(5)
    windows = training_windows(log.histories, "item", length=4, has_start=True)
    packed = PackedWindows.of(log.histories, windows, "item", has_start=False, record_comments=3)
    rows, window = packed.target_rows()
    positions = packed.target_positions(rows, window, "item")
    assert ((positions == -1) == (rows == windows.begin[window])).all()


@pytest.mark.parametrize("task", ["item", "comment"])
def test_masks_against_loops(task: Task) -> None:
    log = random_log(6)
    _, batch = packed_batch(log, training_windows(log.histories, task, length=9, has_start=True), task)
    own, other = (batch.items, batch.records) if task == "item" else (batch.records, batch.items)
    causal_RLL, known_RLM = causal_mask(own), known_mask(other, own)
    num_rows, length = own.segment_RL.shape
    for row in range(num_rows):
        for i in range(length):
            segment = own.segment_RL[row, i]
            for j in range(length):
                assert causal_RLL[row, i, j] == (j <= i and own.segment_RL[row, j] == segment)
            for j in range(other.segment_RL.shape[1]):
                expected = other.segment_RL[row, j] == segment and other.known_RL[row, j] < own.horizon_RL[row, i]
                assert known_RLM[row, i, j] == expected
    is_entry = own.segment_RL > 0
    assert known_RLM.any(2)[is_entry].all()  # the start entry of the other history, if nothing else


def test_distinct_comments_begin_with_none() -> None:
    assert distinct_comments([np.array([5, 3, 5]), np.array([[7], [3]])]).tolist() == [0, 3, 5, 7]
    assert distinct_comments([np.zeros(0, np.int64)]).tolist() == [0]


def test_no_window_at_all() -> None:
    log = random_log(7)
    windows = training_windows(log.histories, "item", length=4, has_start=True)[:0]
    packed, batch = packed_batch(log, windows, "item")
    assert len(packed.target_rows()[0]) == 0
    assert batch.comment_U.tolist() == [0]
