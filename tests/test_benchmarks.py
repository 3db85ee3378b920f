"""The benchmarks' own parts: generated logs, and how measurements become rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import logs, run
from benchmarks.protocol import FirstBatches
from benchmarks.rows import OURS, Measurement, emit, read_measurements
from reeltalk.data.dataset import Split


@pytest.fixture(scope="module")
def small() -> logs.Logs:
    return logs.generate(1_500, num_items=1_000, num_events=13_000, seed=3)


def test_logs_have_the_size_asked_for_and_repeat_with_the_seed(small: logs.Logs) -> None:
    lengths = np.bincount(small.user_id)[1:]
    assert len(small.item_id) == 13_000 and len(lengths) == 1_500 and lengths.min() >= 3
    assert set(small.item_id) == set(range(1, 1_001))
    same_user = small.user_id[1:] == small.user_id[:-1]
    assert not np.any(same_user & (small.item_id[1:] == small.item_id[:-1]))
    again = logs.generate(1_500, num_items=1_000, num_events=13_000, seed=3)
    other = logs.generate(1_500, num_items=1_000, num_events=13_000, seed=4)
    assert np.array_equal(small.item_id, again.item_id) and not np.array_equal(small.item_id, other.item_id)


def test_the_last_item_tells_of_the_next(small: logs.Logs) -> None:
    """An item is followed by one of its three commonest followers far more often than by three items at random."""
    same_user = small.user_id[1:] == small.user_id[:-1]
    pairs = small.item_id[:-1][same_user] * 10_000 + small.item_id[1:][same_user]
    counts = np.sort(np.unique(pairs, return_counts=True)[1])[::-1]
    assert counts[:3_000].sum() / counts.sum() > 0.4


def test_an_item_has_one_topic(small: logs.Logs) -> None:
    """Items that follow each other are of one topic in two of three cases: those that follow and those that stay."""
    same_user = small.user_id[1:] == small.user_id[:-1]
    topic = small.topic[small.item_id - 1]
    assert set(topic) == set(range(logs.NUM_TOPICS))
    assert 0.6 < (topic[1:] == topic[:-1])[same_user].mean() < 0.85


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_events=5 is fewer than 3"):
        logs.generate(2, num_items=1_000, num_events=5)
    with pytest.raises(ValueError, match="num_items=300"):
        logs.generate(2, num_items=300, num_events=6)


def test_both_written_forms_hold_the_same_events(small: logs.Logs, tmp_path: Path) -> None:
    folder = logs.write(small, tmp_path / "logs")
    atomic = np.loadtxt(folder / "logs.inter", delimiter="\t", skiprows=1, dtype=np.int64)
    assert np.array_equal(atomic[:, 0], small.user_id) and np.array_equal(atomic[:, 1], small.item_id)
    assert np.array_equal(atomic[:, 2], np.arange(13_000))
    dataset = logs.dataset_of(folder, tmp_path / "dataset", seed=0)
    events = dataset.item_events
    assert len(events) == 13_000
    assert [(events["split"] == int(split)).sum() for split in (Split.TRAIN, Split.VALID, Split.TEST)] == [
        10_000,
        1_500,
        1_500,
    ]


def test_measurements_come_back_from_among_other_output(capsys: pytest.CaptureFixture[str]) -> None:
    sent = Measurement(name="pass", value=1.5, unit="s", seed=0, versions={"torch": "2"})
    print("{'a library': 'says hello'}")
    emit(sent)
    assert read_measurements(capsys.readouterr().out) == [sent]


def measured(name: str, value: float, unit: str, system: str) -> Measurement:
    return Measurement(name=name, value=value, unit=unit, system=system, seed=0)


def test_rows_pair_ours_with_each_peer_and_take_medians() -> None:
    rows = run.rows_of(
        "finetune",
        [
            *(measured("pass", value, "s", OURS) for value in (4.0, 5.0, 100.0)),
            measured("pass", 50.0, "s", "RecBole"),
            measured("pass", 80.0, "s", "RePlay"),
            measured("speed", 300.0, "tokens/s", OURS),
            measured("speed", 100.0, "tokens/s", "RecBole"),
            measured("recall", 0.2, "", "RecBole"),
            measured("alone", 3.0, "MiB", OURS),
            measured("goal", math.nan, "s", OURS),
            measured("goal", 9.0, "s", "RecBole"),
        ],
    )
    found = {(row.name, row.peer): (row.value, row.peer_value, row.ratio, row.repeats) for row in rows}
    assert found == {
        ("pass", "RecBole"): (5.0, 50.0, 10.0, 3),
        ("pass", "RePlay"): (5.0, 80.0, 16.0, 3),
        ("speed", "RecBole"): (300.0, 100.0, 3.0, 1),
        ("recall", "RecBole"): (None, 0.2, None, 1),
        ("alone", None): (3.0, None, None, 1),
        ("goal", "RecBole"): (None, 9.0, None, 1),
    }
    with pytest.raises(ValueError, match="do not compare"):
        run.rows_of("finetune", [measured("pass", 1, "s", OURS), measured("pass", 1, "ms", "RecBole")])


def test_the_tables_replace_the_marked_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    monkeypatch.setattr(run, "PERFORMANCE", page)
    rows = run.rows_of("finetune", [measured("pass", 5.0, "s", OURS), measured("pass", 50.0, "s", "RecBole")])
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks the line"):
        run.write_tables(rows)
    page.write_text(f"above\n{run.BEGIN}\nold\n{run.END}\nbelow\n")
    run.write_tables(rows)
    written = page.read_text()
    assert written.startswith("above\n") and written.endswith("\nbelow\n") and "old" not in written
    assert "| pass | 5 s | RecBole | 50 s | 10.0 |  |" in written


def test_a_run_replaces_the_rows_of_its_own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = run.rows_of("finetune", [measured("pass", 5.0, "s", OURS)])
    there = [replace(row, value=7.0, hardware={"cpu": "another"}) for row in here]
    encoding = run.rows_of("encode", [measured("speed", 9.0, "tokens/s", OURS)])
    again = run.rows_of("finetune", [measured("pass", 4.0, "s", OURS)])
    kept = run.replaced([*there, *here, *encoding], again)
    assert kept == [*there, *encoding, *again]
    other = run.rows_of("finetune", [measured("memory", 3.0, "MiB", OURS)])
    assert run.replaced([*here, *other], again, by_name=True) == [*other, *again]
    page = tmp_path / "performance.md"
    page.write_text(f"{run.BEGIN}\n{run.END}\n")
    monkeypatch.setattr(run, "PERFORMANCE", page)
    run.write_tables(kept)
    _, first, second = page.read_text().split("**Machine: ")
    assert first.startswith("cpu another") and "| pass | 7 s |" in first
    assert "| speed | 9 tokens/s |" in second and "| pass | 4 s |" in second and "| 7 s |" not in second


def test_first_batches_cut_a_loader_and_leave_the_rest_to_it() -> None:
    batches = FirstBatches(range(10), 3)
    assert list(batches) == [0, 1, 2] and len(batches) == 3 and batches.stop == 10
