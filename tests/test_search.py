"""Choosing settings: what is tried of a grid, who goes on, and the processes that do it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_jobs import dies_at_two, sleeps, threads

from reeltalk.experiments.experiment import SearchSettings
from reeltalk.experiments.search import halving, trials_of
from reeltalk.experiments.workers import Died, Workers


def test_a_small_grid_is_tried_whole() -> None:
    grid: dict[str, list[Any]] = {"a": [1, 2], "b": ["x", "y", "z"]}
    everything = [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]
    assert trials_of(grid, limit=6, seed=0) == everything
    assert trials_of(grid, limit=None, seed=0) == everything
    assert trials_of({}, limit=3, seed=0) == [{}]


def test_of_a_large_grid_every_value_is_drawn_as_often() -> None:
    grid: dict[str, list[Any]] = {"rate": [1, 2, 3, 4, 5], "dropout": [0.2, 0.5], "width": [32, 64, 128]}
    drawn = trials_of(grid, limit=10, seed=3)
    assert len({tuple(each.values()) for each in drawn}) == 10
    for name, values in grid.items():
        used = Counter(each[name] for each in drawn)
        assert len(used) == len(values)
        assert max(used.values()) - min(used.values()) <= 1
    assert drawn == trials_of(grid, limit=10, seed=3)
    assert drawn != trials_of(grid, limit=10, seed=4)


def test_no_two_settings_go_together() -> None:
    grid: dict[str, list[Any]] = {"rate": [1, 2, 3, 4, 5], "encoder": [True, False], "dropout": [0.2, 0.5]}
    for limit, least in ((9, 2), (12, 3)):
        drawn = trials_of(grid, limit=limit, seed=0)
        together = Counter((each["encoder"], each["dropout"]) for each in drawn)
        assert len(together) == 4
        assert min(together.values()) >= least


def learn(trials: Sequence[float], epochs: int | None) -> list[float | None]:
    """A fake objective: every trial nears its own number, which it reaches in full; one always fails."""
    return [None if trial == 13 else trial * (1 - 0.5 ** (epochs or 100)) for trial in trials]


def choose(trials: list[float], rungs: Sequence[int], keep: int) -> tuple[float | None, list[tuple[int, int | None]]]:
    search, spent = halving(trials, rungs=rungs, keep=keep), []
    try:
        asked, epochs = next(search)
        while True:
            spent.append((len(asked), epochs))
            asked, epochs = search.send(learn(asked, epochs))
    except StopIteration as end:
        return end.value, spent


@pytest.mark.parametrize(
    ("trials", "rungs", "keep", "best", "spent"),
    [
        ([3, 9, 1, 13, 7, 2, 4, 8, 6], (2, 6), 3, 9, [(9, 2), (3, 6)]),
        ([5, 1, 2, 3], (2,), 3, 5, [(4, 2), (2, None)]),  # a third of four is rounded up
        ([1, 2, 3], (), 3, 3, [(3, None)]),
        ([4], (2, 6), 3, 4, []),
        ([13, 13], (2,), 2, None, [(2, 2)]),
    ],
)
def test_halving_finds_the_winner(
    trials: list[float], rungs: tuple[int, ...], keep: int, best: float | None, spent: list[tuple[int, int | None]]
) -> None:
    assert choose(trials, rungs, keep) == (best, spent)


def test_rungs_are_parts_of_what_a_system_trains_for() -> None:
    search = SearchSettings(rungs=(0.07, 0.2))
    assert [search.epochs(full) for full in (90, 30, 8, 2, 1)] == [[6, 18], [2, 6], [1, 2], [1], []]


def test_workers_share_the_cores_and_keep_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # print would write every word by itself
    with Workers(threads, count=2, log=tmp_path / "log") as workers:
        for job in range(3):
            workers.put(job)
        found = dict(workers.take() for _ in range(3))
    assert found == {job: (2 * job, "3") for job in range(3)}
    assert "OMP_NUM_THREADS" not in os.environ
    assert sorted((tmp_path / "log").read_text().splitlines()) == [f"said by {job}" for job in range(3)]
    assert "said by" not in "".join(capfd.readouterr())


def test_a_process_that_dies_takes_its_job_alone(tmp_path: Path) -> None:
    with Workers(dies_at_two, count=1, log=tmp_path / "log") as workers:
        for job in (1, 2, 3):
            workers.put(job)
        found = dict(workers.take() for _ in range(3))
    died = found.pop(2)
    assert found == {1: 1, 3: 3}
    assert isinstance(died, Died)
    assert "by SIGKILL; the system may have run out of memory" in died.reason
    assert str(tmp_path / "log") in died.reason


def test_interrupted_it_leaves_no_process(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(sleeps, count=1, log=tmp_path / "log") as workers:
        workers.put(0)
        _, pid = workers.take()
        workers.put(1)
        workers._hand_out()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)  # type: ignore[arg-type]
